"""What the platform's consumer is configured with."""

from __future__ import annotations

from fraud_assets.kafka.broker import Broker
from fraud_assets.kafka.client import client_config
from fraud_assets.settings import Settings

_SESSION_SECONDS = 10
"""After so long without a sign of life, the partitions of a reader go to the others of its group."""
_COMMIT_SECONDS = 600
"""So long may one commit take before the others of the group think that the reader hangs."""
_NEW_PARTITIONS_SECONDS = 15
UNPACKED_BYTES = 1_000_000_000
"""A batch of messages may unpack to so much. librdkafka holds a whole batch in memory."""
_QUEUE_BYTES = 8_000_000
"""Of keys and bodies that wait to be read. The client keeps some 400 bytes beside each message."""


def consumer_config(broker: Broker, settings: Settings, group: str) -> dict[str, str | int | float | bool]:
    """librdkafka settings of a consumer that reads from explicit offsets, secrets among them.

    Raises:
        SettingError: one of them cannot be used.
    """
    queue_bytes = max(min(settings.land_batch_bytes, _QUEUE_BYTES), 1_000_000)
    return {
        **client_config(broker, settings),
        "group.id": group,
        "session.timeout.ms": _SESSION_SECONDS * 1000,
        "max.poll.interval.ms": _COMMIT_SECONDS * 1000,
        "topic.metadata.refresh.interval.ms": _NEW_PARTITIONS_SECONDS * 1000,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "enable.partition.eof": True,
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        # Memory: over all partitions.
        "queued.max.messages.kbytes": queue_bytes // 1000,
        "queued.min.messages": 10_000,
        "fetch.max.bytes": min(queue_bytes, 16_000_000),
        # As they are sent: unpacked they are many times as much, and a larger message comes all the same.
        "max.partition.fetch.bytes": 256_000,
        "message.max.bytes": 1_000_000,
        # Of one answer, and of one batch once it is unpacked.
        "receive.message.max.bytes": UNPACKED_BYTES,
        # A damaged batch is an error and not other values.
        "check.crcs": True,
        # A read ends at a known offset: an empty fetch is a wait for nothing.
        "fetch.wait.max.ms": 10 if broker.embedded else 50,
        "fetch.queue.backoff.ms": 5,
    }
