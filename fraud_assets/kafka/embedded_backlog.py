"""Limits the bytes that a producer sends to the embedded broker before the messages have landed.

The embedded broker keeps about 5 MB per partition and drops older messages without an error. The backlog compares the
broker's offsets with the positions in the lake's log.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from fraud_assets.core.schema import Table, fraud_labels, raw_transactions
from fraud_assets.errors import BrokerError, MessagesLostError
from fraud_assets.kafka.broker import Broker
from fraud_assets.lake.positions import SourcePartition, committed_offset
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings

HELD_BYTES = 3_000_000
"""Limit of bytes per partition that wait in the embedded broker; it drops messages from about 5 MB on."""

CHECK_BYTES = 200_000
"""Bytes that are sent to the embedded broker between two comparisons with the lake."""

OVERHEAD_BYTES = 100
"""Bytes of a message in the broker in addition to key and body, if it is the only message in its batch."""


@dataclass
class _Held:
    """Messages of one partition that have not landed.

    `own` has (offset, bytes) of this producer's messages. `foreign_bytes` estimates those of other producers.
    """

    own: deque[tuple[int, int]] = field(default_factory=deque)
    own_bytes: int = 0
    foreign_bytes: int = 0


class EmbeddedBacklog:
    """An upper bound of the bytes in the embedded broker that have not landed, per partition.

    Args:
        broker: The embedded broker.
        settings: Topics, time-outs, and the lake.
        config: librdkafka settings of a client.

    Attributes:
        has_warned: Whether the warning that the producer waits for the lander was logged.
    """

    def __init__(self, broker: Broker, settings: Settings, config: dict[str, Any]) -> None:
        self.has_warned = False
        self._topic_id = broker.topic_id or ""
        self._lake = Lake.of(settings)
        self._timeout = settings.kafka_timeout_seconds
        self._tables: dict[str, Table] = {
            settings.transactions_topic: raw_transactions,
            settings.labels_topic: fraud_labels,
        }
        self._consumer = Consumer({**config, "group.id": "fraud-assets-producer", "enable.auto.commit": False})
        self._held: dict[str, dict[int, _Held]] = {}
        self._unseen = dict.fromkeys(self._tables, CHECK_BYTES)
        self._largest = OVERHEAD_BYTES

    def reserve(self, topic: str, key: bytes | None, value: bytes) -> bool:
        """Returns whether a message may be sent now; if so, counts it as sent.

        The partition of a message is unknown until it is delivered, so the bytes since the last `refresh` count for
        every partition.
        """
        if topic not in self._unseen:
            return True
        size = _size(key, value)
        self._largest = max(self._largest, size)
        if self._unseen[topic] + size > CHECK_BYTES and self._unseen[topic] > 0:
            return False
        fullest = max((held.own_bytes + held.foreign_bytes for held in self._held[topic].values()), default=0)
        if fullest + size > HELD_BYTES and fullest > 0:
            return False
        self._unseen[topic] += size
        return True

    def add_delivered(self, message: Message) -> None:
        """Records the partition and offset of a delivered message."""
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        if topic in self._unseen and partition is not None and offset is not None:
            held = self._held.setdefault(topic, {}).setdefault(partition, _Held())
            size = _size(message.key(), message.value())
            held.own.append((offset, size))
            held.own_bytes += size

    def refresh(self, topic: str) -> None:
        """Compares the broker's offsets of a topic with the landed ones. No message may be in flight.

        Raises:
            BrokerError: The broker does not answer.
            MessagesLostError: The broker has dropped messages that did not land.
        """
        table = self._tables[topic]
        partitions = self._held.setdefault(topic, {})
        try:
            known = self._consumer.list_topics(topic, timeout=self._timeout).topics[topic].partitions
            # The broker is queried first: messages that land before the lake is read only make the bound too high.
            watermarks = {
                partition: self._consumer.get_watermark_offsets(TopicPartition(topic, partition), self._timeout)
                for partition in known
            }
        except KafkaException as error:
            raise BrokerError(
                f"The broker did not return the offsets of topic {topic}: {error.args[0].str()}. Try again."
            ) from error
        handle = self._lake.open(table) if self._lake.exists(table) else None
        for partition, (low, high) in watermarks.items():
            source = SourcePartition(topic, self._topic_id, partition)
            landed = committed_offset(handle, source) if handle is not None else -1
            if low > landed + 1:
                raise MessagesLostError(
                    f"The embedded broker has dropped {low - landed - 1} messages of {topic}/{partition} before they "
                    "landed. Restart `fraud-assets broker` and send them again."
                )
            held = partitions.setdefault(partition, _Held())
            while held.own and held.own[0][0] <= landed:
                held.own_bytes -= held.own.popleft()[1]
            # The size of another producer's messages is unknown, so each counts like this producer's largest message.
            held.foreign_bytes = max(0, high - 1 - landed - len(held.own)) * self._largest
        self._unseen[topic] = 0

    def close(self) -> None:
        """Closes the connection."""
        self._consumer.close()


def _size(key: bytes | str | None, value: bytes | str | None) -> int:
    return len(key or b"") + len(value or b"") + OVERHEAD_BYTES
