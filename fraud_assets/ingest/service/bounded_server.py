"""A WSGI server for short responses. No client can exhaust its threads, memory or open files.

The server of wsgiref gives every connection a thread and waits forever for the request. A thousand idle connections
would therefore use up the files that a process can open.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

MAX_CONNECTIONS = 32
CONNECTION_SECONDS = 10.0
"""A connection is closed after this time, even if its response is incomplete."""

_EVICTION_SECONDS = 1.0
_PAUSE_SECONDS = 0.1


class BoundedServer(ThreadingMixIn, WSGIServer):
    """Keeps at most `max_connections` connections open, each for at most `connection_seconds`.

    If another connection arrives, the oldest is closed. A client that sends its request immediately therefore gets a
    response even while other clients hold idle connections.
    """

    daemon_threads = True
    # With a reused port the system would distribute connections at random between two landers.
    allow_reuse_port = False
    request_queue_size = 64
    max_connections = MAX_CONNECTIONS
    connection_seconds = CONNECTION_SECONDS

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._opened: dict[socket.socket, float] = {}
        self._changed = threading.Condition()
        super().__init__(*arguments, **named)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Returns the next connection. Without a free file descriptor it pauses, because the server retries at once."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(_PAUSE_SECONDS)
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Makes room for a connection and returns whether it succeeded."""
        del client_address
        deadline = time.monotonic() + _EVICTION_SECONDS
        with self._changed:
            while len(self._opened) >= self.max_connections:
                # The thread of that connection wakes up and closes it.
                _shut_down(min(self._opened, key=self._opened.__getitem__))
                if not self._changed.wait(deadline - time.monotonic()):
                    return False
            self._opened[request] = time.monotonic()
        return True

    def shutdown_request(self, request: Any) -> None:
        """Closes a connection."""
        super().shutdown_request(request)
        with self._changed:
            self._opened.pop(request, None)
            self._changed.notify_all()

    def service_actions(self) -> None:
        """Ends the connections that have reached `connection_seconds`. The server calls this twice a second."""
        super().service_actions()
        latest = time.monotonic() - self.connection_seconds
        with self._changed:
            for request, opened in self._opened.items():
                if opened < latest:
                    _shut_down(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores a client that disconnected or was disconnected, which is not a fault of the server."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class SilentHandler(WSGIRequestHandler):
    """Logs no requests."""

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing, because one line per scrape would hide the other lines."""


def _shut_down(request: socket.socket) -> None:
    """Makes every thread that reads from or writes to a connection continue immediately."""
    try:
        request.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # The connection has already ended.
