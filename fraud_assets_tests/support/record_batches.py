"""Record batches as brokers store them, built byte by byte so that tests can damage them."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

ZSTD = 4


def crc32c(data: bytes) -> int:
    """The checksum of a batch."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def record_batch(payload: bytes, records: int = 1, codec: int = ZSTD, crc: int | None = None) -> bytes:
    """A batch (magic 2) that claims `records` records; `payload` is not checked, and `crc` replaces the checksum."""
    checked = struct.pack(">hiqqqhii", codec, records - 1, 0, 0, -1, -1, -1, records) + payload
    crc = crc32c(checked) if crc is None else crc
    return struct.pack(">qiibI", 0, 4 + 1 + 4 + len(checked), -1, 2, crc) + checked


def produce_batch(bootstrap: str, topic: str, partition: int, batch: bytes) -> None:
    """Sends a batch to the embedded broker, which stores it unchanged."""

    def text(value: str) -> bytes:
        return struct.pack(">h", len(value)) + value.encode()

    body = struct.pack(">hhi", 0, 7, 1) + text("test") + struct.pack(">hhii", -1, -1, 5000, 1) + text(topic)
    body += struct.pack(">iii", 1, partition, len(batch)) + batch
    host, port = bootstrap.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(struct.pack(">i", len(body)) + body)
        answer = connection.makefile("rb").read(4 + 4 + 4 + 2 + len(topic) + 4 + 4 + 2)
    assert answer[-2:] == b"\0\0", answer


def damage(folder: Path, topic: str, partition: int, text: bytes, other: bytes = b"?") -> None:
    """Changes a byte in the log file of a partition of Apache Kafka: the last byte of `text`, to `other`."""
    path = next(folder.glob(f"node-*/data/{topic}-{partition}/00000000000000000000.log"))
    with path.open("r+b") as log:
        position = log.read().index(text) + len(text) - 1
        log.seek(position)
        log.write(other)
