"""Produces messages: none lost, none twice, and never more than the embedded broker can hold.

The embedded broker forgets without a word beyond about 5 MB a partition. So a producer to it compares what the
broker holds with the positions in the lake's log, and waits for the lander when too much has not landed.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as Delivered
from confluent_kafka import Producer as KafkaProducer

from fraud_assets.core.schema import Table, fraud_labels, raw_transactions
from fraud_assets.errors import BrokerError, MessagesLostError
from fraud_assets.kafka.broker import Broker
from fraud_assets.kafka.broker_errors import ConnectionErrorListener
from fraud_assets.kafka.client import client_config, missing_topic, unreachable_error
from fraud_assets.kafka.connection import EMBEDDED, connection
from fraud_assets.kafka.serializer import serializers
from fraud_assets.lake.positions import SourcePartition, committed_offset
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings

HELD_BYTES = 3_000_000
"""Most bytes per partition that may wait in the embedded broker; it forgets from about 5 MB on."""

CHECK_BYTES = 200_000
"""How much is sent to the embedded broker between two looks at what has landed."""

OVERHEAD_BYTES = 100
"""What a message takes in the broker beside key and body, when it is alone in its batch."""

PATIENCE_SECONDS = 2.0

MISSING = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.TOPIC_EXCEPTION)
"""What a broker says of a topic that is not there, may not be used, or cannot be."""


logger = logging.getLogger(__name__)


class Message(NamedTuple):
    """What is sent: a body to a topic, with the key that chooses the partition."""

    topic: str
    key: bytes | None
    value: bytes


@dataclass
class Producer:
    """A connection to send with; use it in a `with` block, whose end waits until everything is delivered.

    Args:
        broker: where to send.
        settings: topics, time-outs, and the lake that the lander fills.
        on_wait: called instead of a pause while waiting for the lander; may land.

    Raises:
        BrokerError: no broker answers, or a message could not be delivered; from the constructor, `send`, `flush`.
        MessagesLostError: the embedded broker has forgotten messages that had not landed.
    """

    broker: Broker
    settings: Settings
    on_wait: Callable[[], object] | None = None
    delivered: int = 0
    _failure: str = ""
    _backlog: Backlog | None = None
    _known: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._serializers = serializers(self.settings)
        config = client_config(self.broker, self.settings)
        reached = EMBEDDED if self.broker.embedded else connection(self.settings)
        heard = ConnectionErrorListener(self.broker, reached)
        self._kafka = reached.client(
            KafkaProducer,
            {
                **config,
                "error_cb": heard,
                "enable.idempotence": True,
                "acks": "all",
                # As Kafka's Java clients and REST API choose: a customer has one partition, whoever produces.
                "partitioner": "murmur2_random",
                "linger.ms": 20,
                "queue.buffering.max.messages": 100_000,
                "queue.buffering.max.kbytes": 32_768,
                "message.timeout.ms": int(max(self.settings.kafka_timeout_seconds, 30) * 1000),
            },
        )
        if not heard.wait(self._kafka, self.settings.kafka_timeout_seconds):
            raise unreachable_error(self.broker, heard.cause("timed out"))
        if self.broker.embedded:
            self._backlog = Backlog(self.broker, self.settings, config)

    def send(self, message: Message) -> None:
        """Queue one message; waits while the queue is full or the lander is behind."""
        if self._failure:
            raise BrokerError(self._failure)
        if message.topic not in self._known:
            self._check_topic(message.topic)
        if serialize := self._serializers.get(message.topic):
            message = message._replace(value=serialize(message.value))
        if self._backlog is not None and not self._backlog.fits(message):
            self._wait_for_lander(message, self._backlog)
        while True:
            try:
                self._kafka.produce(message.topic, message.value, message.key, on_delivery=self._on_delivery)
                break
            except BufferError:
                self._kafka.poll(0.1)
            except KafkaException as error:
                raise BrokerError(f"A message of {len(message.value)} bytes was refused: {error.args[0]}.") from error
        self._kafka.poll(0)

    def flush(self) -> None:
        """Wait until everything queued is delivered."""
        while self._kafka.flush(1.0) and not self._failure:
            continue
        if self._failure:
            raise BrokerError(self._failure)

    def __enter__(self) -> Producer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.flush()
        else:
            # What is queued still goes out, but a failure is told as it happened and not waited upon.
            self._kafka.flush(1.0)
        if self._backlog is not None:
            self._backlog.close()

    def _check_topic(self, topic: str) -> None:
        """Raises at once where a topic is missing; librdkafka would wait half a minute for it to appear."""
        if not self.broker.embedded:
            try:
                found = self._kafka.list_topics(topic, timeout=self.settings.kafka_timeout_seconds).topics[topic]
            except KafkaException as error:
                raise unreachable_error(self.broker, error.args[0].str()) from error
            if found.error is not None and found.error.code() in MISSING:
                raise missing_topic(self.broker, topic, self.settings)
        self._known.add(topic)

    def _on_delivery(self, error: Any, message: Delivered) -> None:
        if error is not None:
            self._failure = self._failure or (
                f"A message to topic {message.topic()} was not delivered to {self.broker.name}: {error.str()}. "
                "Check that it runs and that the topic may be written (KAFKA_BOOTSTRAP_SERVERS), and send again: "
                "what arrives twice is kept once, by its id."
            )
            return
        self.delivered += 1
        if self._backlog is not None:
            self._backlog.took(message)

    def _wait_for_lander(self, message: Message, backlog: Backlog) -> None:
        began = time.monotonic()
        while True:
            # Only what has been delivered has a partition and can be compared with what has landed.
            self.flush()
            backlog.refresh(message.topic)
            if backlog.fits(message):
                return
            if time.monotonic() - began > PATIENCE_SECONDS and not backlog.told:
                backlog.told = True
                logger.warning(
                    "waiting for the lander: the embedded broker holds only a few MB. "
                    "Start `fraud-assets land` in another terminal, with the same FRAUD_HOME."
                )
            if self.on_wait is not None:
                self.on_wait()
            else:
                time.sleep(0.1)


@dataclass
class _Held:
    """Of one partition: (offset, bytes) of this producer's messages that have not landed, and others' bytes."""

    own: deque[tuple[int, int]] = field(default_factory=deque)
    own_bytes: int = 0
    foreign_bytes: int = 0


class Backlog:
    """Bytes in the embedded broker that have not landed, per partition, from above."""

    def __init__(self, broker: Broker, settings: Settings, config: dict[str, Any]) -> None:
        self.told = False
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

    def fits(self, message: Message) -> bool:
        """Whether the message may be sent now; counts it as sent if so.

        Its partition is not known before it is delivered, so what was sent since the last look counts for each.
        """
        if message.topic not in self._unseen:
            return True
        size = _size(message.key, message.value)
        self._largest = max(self._largest, size)
        if self._unseen[message.topic] + size > CHECK_BYTES and self._unseen[message.topic] > 0:
            return False
        fullest = max((held.own_bytes + held.foreign_bytes for held in self._held[message.topic].values()), default=0)
        if fullest + size > HELD_BYTES and fullest > 0:
            return False
        self._unseen[message.topic] += size
        return True

    def took(self, message: Delivered) -> None:
        """Note where a message of ours went."""
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        if topic in self._unseen and partition is not None and offset is not None:
            held = self._held.setdefault(topic, {}).setdefault(partition, _Held())
            size = _size(message.key(), message.value())
            held.own.append((offset, size))
            held.own_bytes += size

    def refresh(self, topic: str) -> None:
        """Compare what the broker holds of a topic with what has landed. Nothing may be in flight."""
        table = self._tables[topic]
        partitions = self._held.setdefault(topic, {})
        try:
            known = self._consumer.list_topics(topic, timeout=self._timeout).topics[topic].partitions
            # The broker first, the lake second: what lands in between makes us too careful, never too bold.
            marks = {
                partition: self._consumer.get_watermark_offsets(TopicPartition(topic, partition), self._timeout)
                for partition in known
            }
        except KafkaException as error:
            raise BrokerError(f"Topic {topic} cannot be asked for its offsets: {error.args[0].str()}.") from error
        handle = self._lake.open(table) if self._lake.exists(table) else None
        for partition, (low, high) in marks.items():
            stream = SourcePartition(topic, self._topic_id, partition)
            landed = committed_offset(handle, stream) if handle is not None else -1
            if low > landed + 1:
                raise MessagesLostError(
                    f"The embedded broker has forgotten {low - landed - 1} messages of {topic}/{partition} before they "
                    "landed. Restart `fraud-assets broker` and send again."
                )
            held = partitions.setdefault(partition, _Held())
            while held.own and held.own[0][0] <= landed:
                held.own_bytes -= held.own.popleft()[1]
            # Another producer's messages: their size is not known, so each counts as our largest.
            held.foreign_bytes = max(0, high - 1 - landed - len(held.own)) * self._largest
        self._unseen[topic] = 0

    def close(self) -> None:
        """Let go of the connection."""
        self._consumer.close()


def produce(
    messages: Iterable[Message],
    broker: Broker,
    settings: Settings,
    on_wait: Callable[[], object] | None = None,
) -> int:
    """Send all messages and wait until they are delivered; gives how many.

    Raises:
        BrokerError: no broker answers, or a message could not be delivered.
    """
    with Producer(broker, settings, on_wait) as producer:
        for message in messages:
            producer.send(message)
    return producer.delivered


def _size(key: bytes | str | None, value: bytes | str | None) -> int:
    return len(key or b"") + len(value or b"") + OVERHEAD_BYTES
