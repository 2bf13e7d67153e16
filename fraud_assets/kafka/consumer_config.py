"""librdkafka settings of the platform's consumer."""

from __future__ import annotations

from fraud_assets.kafka.broker import Broker
from fraud_assets.kafka.client import build_client_config
from fraud_assets.settings import Settings

_SESSION_SECONDS = 10
"""If a reader sends no heartbeat for this long, its partitions go to the other members of its group."""
_COMMIT_SECONDS = 600
"""Maximum seconds of one commit. After that time, the group considers the reader failed."""
_NEW_PARTITIONS_SECONDS = 15
UNPACKED_BYTES = 1_000_000_000
"""Largest size of an unpacked batch of messages. librdkafka holds a whole batch in memory."""
_QUEUE_BYTES = 8_000_000
"""Keys and bodies in the client's queue. The client keeps about 400 more bytes per message."""


def build_consumer_config(broker: Broker, settings: Settings, group: str) -> dict[str, str | int | float | bool]:
    """Returns librdkafka's settings, including secrets, of a consumer that reads from explicit offsets.

    Raises:
        SettingError: A setting of the connection is invalid.
    """
    queue_bytes = max(min(settings.land_batch_bytes, _QUEUE_BYTES), 1_000_000)
    return {
        **build_client_config(broker, settings),
        "group.id": group,
        "session.timeout.ms": _SESSION_SECONDS * 1000,
        "max.poll.interval.ms": _COMMIT_SECONDS * 1000,
        "topic.metadata.refresh.interval.ms": _NEW_PARTITIONS_SECONDS * 1000,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "enable.partition.eof": True,
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        # These limits apply to all partitions together.
        "queued.max.messages.kbytes": queue_bytes // 1000,
        "queued.min.messages": 10_000,
        "fetch.max.bytes": min(queue_bytes, 16_000_000),
        # These two limits apply to packed bytes, which unpack to many times as much. Larger messages still arrive.
        "max.partition.fetch.bytes": 256_000,
        "message.max.bytes": 1_000_000,
        # This limit applies to one answer, and to one batch after it is unpacked.
        "receive.message.max.bytes": UNPACKED_BYTES,
        # Without this check, a damaged batch is delivered with wrong values.
        "check.crcs": True,
        # A bounded read ends at a known offset, so a long wait for new messages would only delay it.
        "fetch.wait.max.ms": 10 if broker.embedded else 50,
        "fetch.queue.backoff.ms": 5,
    }
