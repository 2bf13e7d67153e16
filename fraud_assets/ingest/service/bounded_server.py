"""A WSGI server for short answers that no client can make use up threads, memory or open files.

wsgiref's own server gives every connection a thread and waits for ever for a request: a thousand idle connections
would take all files that a process may open.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

MOST_CONNECTIONS = 32
CONNECTION_SECONDS = 10.0
"""A connection that has not got its whole answer by then is closed, whatever it waits for."""

_EVICTION_SECONDS = 1.0
_PAUSE_SECONDS = 0.1


class BoundedServer(ThreadingMixIn, WSGIServer):
    """Has at most `most_connections` open connections, each for at most `connection_seconds`.

    Where one more comes in, the oldest is closed: a client that sends its request at once is answered also while
    others hold connections and say nothing.
    """

    daemon_threads = True
    # Two landers at one port would share its connections by chance.
    allow_reuse_port = False
    request_queue_size = 64
    most_connections = MOST_CONNECTIONS
    connection_seconds = CONNECTION_SECONDS

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._opened: dict[socket.socket, float] = {}
        self._changed = threading.Condition()
        super().__init__(*arguments, **named)

    def get_request(self) -> tuple[socket.socket, Any]:
        """The next connection. Without a free file descriptor it waits a moment: the server asks again at once."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(_PAUSE_SECONDS)
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Makes room for a connection; False where there is none."""
        del client_address
        deadline = time.monotonic() + _EVICTION_SECONDS
        with self._changed:
            while len(self._opened) >= self.most_connections:
                # The thread of that connection wakes up and closes it.
                _end(min(self._opened, key=self._opened.__getitem__))
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
        """Ends the connections whose time is over; the server calls this twice a second."""
        super().service_actions()
        latest = time.monotonic() - self.connection_seconds
        with self._changed:
            for request, opened in self._opened.items():
                if opened < latest:
                    _end(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a client that went away or was cut off; no fault of ours."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class SilentHandler(WSGIRequestHandler):
    """Logs no requests."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a line a scrape would drown the others."""


def _end(request: socket.socket) -> None:
    """Makes whoever reads from a connection or writes to it go on at once."""
    try:
        request.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has ended already
