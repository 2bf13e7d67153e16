"""A proxy on 127.0.0.1 that forwards HTTP requests and injects faults of a network into some of them."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal["unavailable", "answer lost"] | None
FaultChoice = Callable[[str, str], Fault]


@dataclass
class FaultyProxy:
    """The proxy's address, the function that chooses a fault by method and path, and the faults so far."""

    endpoint: str = ""
    choose_fault: FaultChoice = lambda method, path: None
    done: list[tuple[str, str, str]] = field(default_factory=list)


@contextmanager
def faulty_proxy(target: str) -> Iterator[FaultyProxy]:
    """Runs a proxy that forwards to `target` until the block ends."""
    proxy = FaultyProxy()
    address = urlsplit(target).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = proxy.choose_fault(self.command, self.path)
            if fault is not None:
                proxy.done.append((fault, self.command, self.path))
            if fault == "unavailable":
                self.send_response(503)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            onward = http.client.HTTPConnection(address, timeout=30)
            # The Host header is part of the signature, so it stays as the client sent it.
            onward.request(self.command, self.path, body, dict(self.headers.items()))
            answer = onward.getresponse()
            content = answer.read()
            onward.close()
            if fault == "answer lost":
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_one

        def log_message(self, *arguments: object) -> None:
            """Prints nothing."""

    class Server(ThreadingHTTPServer):
        # The standard library's queue of 5 makes further connections wait for seconds.
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            """Ignores clients that closed their connection."""

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
