"""Partitions whose next messages the client cannot read, while the other partitions of the topic continue.

librdkafka reports such a fault as an event of the partition. It repeatedly fetches a batch that it cannot decompress,
and it may skip a batch with a wrong checksum. This module drops everything that comes from the partition after such an
event, so that nothing is skipped. The partition is read again from the same offset at growing intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from time import monotonic
from typing import TYPE_CHECKING

from fraud_assets.errors import UnreadableError
from fraud_assets.kafka.broker import Broker
from fraud_assets.kafka.consumer_config import UNPACKED_BYTES

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Message

_TRIES = 3
"""An error that repeats this often without a message in between is not temporary."""
_FIRST_PAUSE_SECONDS = 0.3
_LONGEST_PAUSE_SECONDS = 5.0


@dataclass
class _Fault:
    offset: int
    reason: str
    tries: int = 0
    is_held: bool = False
    pause: float = _FIRST_PAUSE_SECONDS
    retry_at: float = 0.0


class UnreadablePartitions:
    """Records which partitions of a topic cannot be read, and retries them.

    Args:
        topic: Name of the topic.
        broker: The broker, for the error messages.
    """

    def __init__(self, topic: str, broker: Broker) -> None:
        self._topic = topic
        self._broker = broker
        self._faults: dict[int, _Fault] = {}

    def __bool__(self) -> bool:
        return bool(self._faults)

    def __contains__(self, partition: object) -> bool:
        return partition in self._faults

    def add(self, partition: int, offset: int, error: KafkaError) -> None:
        """Records an error of a partition at an offset, and holds the partition there."""
        fault = self._faults.setdefault(partition, _Fault(offset, ""))
        if fault.is_held:
            return
        fault.offset, fault.reason = offset, _describe_error(error)
        fault.tries += 1
        fault.is_held = True
        fault.retry_at = monotonic() + fault.pause
        if fault.tries >= _TRIES:
            fault.pause = min(fault.pause * 2, _LONGEST_PAUSE_SECONDS)

    def passes(self, partition: int) -> bool:
        """Returns whether a message of the partition may be delivered.

        It may not while the partition is held. A message that comes after a retry ends the fault.
        """
        fault = self._faults.get(partition)
        if fault is None:
            return True
        if fault.is_held:
            return False
        del self._faults[partition]
        return True

    def retry(self, consumer: Consumer) -> None:
        """Seeks back to the offset of the fault in each partition whose pause is over."""
        from confluent_kafka import KafkaException, TopicPartition

        for partition, fault in self._faults.items():
            if fault.is_held and monotonic() >= fault.retry_at:
                try:
                    consumer.seek(TopicPartition(self._topic, partition, fault.offset))
                except KafkaException:
                    # The partition is not assigned at this moment.
                    fault.retry_at = monotonic() + fault.pause
                else:
                    fault.is_held = False

    def clear(self) -> None:
        """Forgets all faults. Call this when partitions are assigned again."""
        self._faults = {}

    @property
    def sentences(self) -> Mapping[int, str]:
        """The fault and the fix per partition whose error repeats. Safe to call from another thread."""
        return {
            partition: self._sentence(partition, fault)
            for partition, fault in sorted(self._faults.copy().items(), key=itemgetter(0))
            if fault.tries >= _TRIES
        }

    def error(self) -> UnreadableError:
        """Returns one error for all partitions that cannot be read now."""
        return UnreadableError(
            " ".join(self._sentence(*item) for item in sorted(self._faults.items(), key=itemgetter(0)))
        )

    def _sentence(self, partition: int, fault: _Fault) -> str:
        if self._broker.embedded:
            remedy = "Restart `fraud-assets broker` and send the messages again."
        else:
            remedy = (
                "Repair the broker's copy of the partition. To continue without these messages, delete the partition's "
                "records up to the end of that batch (kafka-delete-records) and set "
                f"FRAUD_ACCEPT_LOST={self._topic}/{partition}=N; N is the new log start."
            )
        return (
            f"Partition {partition} of topic {self._topic!r} cannot be read at offset {fault.offset}: {fault.reason}. "
            f"No later message of this partition lands until it can be read. {remedy}"
        )


def is_end(event: Message) -> bool:
    """Returns whether the event is the end of a partition."""
    from confluent_kafka import KafkaError

    error = event.error()
    return error is not None and error.code() == KafkaError._PARTITION_EOF


def _describe_error(error: KafkaError) -> str:
    from confluent_kafka import KafkaError as Codes

    limit = f" (the limit of an unpacked batch is {UNPACKED_BYTES // 1_000_000:,} MB)"
    return error.str().rstrip(".") + (limit if error.code() == Codes._BAD_COMPRESSION else "")
