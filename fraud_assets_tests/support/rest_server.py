"""A Kafka REST server (v3 records) on 127.0.0.1 that forwards to a real broker and can return faults."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from confluent_kafka import Producer

CLUSTER = "lkc-0815"
KEY, SECRET = "REST-KEY-31", "rest-secret-4711"

Answer = tuple[int, dict[str, str], str]


@dataclass
class RestServer:
    """The requests that the server received and the responses that it sends.

    Attributes:
        answers: responses (status, headers, body) to the next requests, which produce no record.
        codes: the error code that a record gets once, by the number of the record since the start.
        largest: the maximum size of an accepted request in bytes.
        cut_after: the number of records of the next request that are produced before the connection breaks.
    """

    url: str
    answers: deque[Answer] = field(default_factory=deque)
    codes: dict[int, int] = field(default_factory=dict)
    largest: int = 10_000_000
    cut_after: int | None = None
    requests: list[int] = field(default_factory=list)
    records: int = 0


class _Listening(ThreadingHTTPServer):
    daemon_threads = True
    state: RestServer
    producer: Producer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listening

    def do_POST(self) -> None:
        state = self.server.state
        body = self._chunks()
        expected = base64.b64encode(f"{KEY}:{SECRET}".encode()).decode()
        parts = self.path.split("/")
        topic = unquote(parts[6])
        if state.answers:
            self._answer(*state.answers.popleft())
        elif self.headers["Authorization"] != f"Basic {expected}":
            self._error(401, 40101, "Authentication failed")
        elif parts[:5] != ["", "kafka", "v3", "clusters", CLUSTER] or parts[7:] != ["records"]:
            self._error(404, 404, "HTTP 404 Not Found")
        elif len(body) > state.largest:
            self._error(413, 413, "Request too large")
        elif topic not in self.server.producer.list_topics(timeout=10).topics:
            self._error(404, 40403, "This server does not host this topic-partition.")
        else:
            self._take(topic, [json.loads(line) for line in body.splitlines()])

    def _take(self, topic: str, records: list[dict[str, Any]]) -> None:
        state = self.server.state
        state.requests.append(len(records))
        reports = [self._produce(topic, record) for record in records[: state.cut_after]]
        self.server.producer.flush(10)
        text = "".join(f"{json.dumps(report)}\r\n" for report in reports)
        if state.cut_after is None:
            self._answer(200, {}, text)
            return
        state.cut_after = None
        self.close_connection = True
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(f"{len(text):x}\r\n{text}\r\n".encode())

    def _produce(self, topic: str, record: dict[str, Any]) -> dict[str, Any]:
        """Produces a record and returns its report, which is complete after a flush of the producer."""
        state = self.server.state
        code = state.codes.pop(state.records, 200)
        state.records += 1
        if code != 200:
            return {"error_code": code, "message": f"code {code} was asked for"}
        report: dict[str, Any] = {"error_code": 500, "message": "not delivered"}

        def report_delivery(error: Any, message: Any) -> None:
            if error is None:
                report.update(error_code=200, partition_id=message.partition(), offset=message.offset())

        assert record["value"]["type"] == "BINARY"
        key = record.get("key")
        self.server.producer.produce(
            topic,
            base64.b64decode(record["value"]["data"]),
            None if key is None else base64.b64decode(key["data"]),
            on_delivery=report_delivery,
        )
        return report

    def _chunks(self) -> bytes:
        assert self.headers["Transfer-Encoding"] == "chunked"
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _error(self, status: int, code: int, message: str) -> None:
        self._answer(status, {}, json.dumps({"error_code": code, "message": message}))

    def _answer(self, status: int, headers: dict[str, str], text: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(text.encode())), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def rest_server(bootstrap: str, certificate: Path | None = None) -> Iterator[RestServer]:
    """Runs a server until the block ends, with TLS if `certificate` is given (PEM, including the key)."""
    listening = _Listening(("127.0.0.1", 0), _Handler)
    listening.producer = Producer(
        {"bootstrap.servers": bootstrap, "log_level": 0, "linger.ms": 5, "partitioner": "murmur2_random"}
    )
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        listening.socket = context.wrap_socket(listening.socket, server_side=True)
    scheme = "http" if certificate is None else "https"
    listening.state = RestServer(f"{scheme}://127.0.0.1:{listening.server_address[1]}")
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield listening.state
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()
