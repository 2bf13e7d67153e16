"""Produces messages without losses or duplicates, and never more than the embedded broker can hold.

A producer to the embedded broker waits for the lander if too many bytes have not landed; see `embedded_backlog`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import Message as Delivered
from confluent_kafka import Producer as KafkaProducer

from fraud_assets.errors import BrokerError
from fraud_assets.kafka.broker import Broker
from fraud_assets.kafka.broker_errors import ConnectionErrorListener
from fraud_assets.kafka.client import build_client_config, missing_topic_error, unreachable_error
from fraud_assets.kafka.connection import EMBEDDED, load_connection
from fraud_assets.kafka.embedded_backlog import EmbeddedBacklog
from fraud_assets.kafka.serializer import create_serializers
from fraud_assets.settings import Settings

WARNING_SECONDS = 2.0

_MISSING_TOPIC = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.TOPIC_EXCEPTION)
"""Error codes of a topic that does not exist, that this user may not use, or that has an invalid name."""

logger = logging.getLogger(__name__)


class Message(NamedTuple):
    """A message to send: a body to a topic, with the key that determines the partition."""

    topic: str
    key: bytes | None
    value: bytes


@dataclass
class Producer:
    """A producer's connection. Use it in a `with` block: the end of the block waits until all messages are delivered.

    The constructor, `send` and `flush` raise the errors.

    Args:
        broker: The broker.
        settings: Topics, time-outs, and the lake in which the lander lands.
        on_wait: Called instead of a pause while the producer waits for the lander; it may land.

    Attributes:
        delivered: Number of delivered messages.

    Raises:
        BrokerError: The broker does not answer, or a message could not be delivered.
        MessagesLostError: The embedded broker has dropped messages that did not land.
    """

    broker: Broker
    settings: Settings
    on_wait: Callable[[], object] | None = None
    delivered: int = 0
    _failure: str = ""
    _backlog: EmbeddedBacklog | None = None
    _checked_topics: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._serializers = create_serializers(self.settings)
        config = build_client_config(self.broker, self.settings)
        configured = EMBEDDED if self.broker.embedded else load_connection(self.settings)
        listener = ConnectionErrorListener(self.broker, configured)
        self._kafka = configured.client(
            KafkaProducer,
            {
                **config,
                "error_cb": listener,
                "enable.idempotence": True,
                "acks": "all",
                # The partitioner of Kafka's Java clients and REST API: all producers use one partition per customer.
                "partitioner": "murmur2_random",
                "linger.ms": 20,
                "queue.buffering.max.messages": 100_000,
                "queue.buffering.max.kbytes": 32_768,
                "message.timeout.ms": int(max(self.settings.kafka_timeout_seconds, 30) * 1000),
            },
        )
        if not listener.wait(self._kafka, self.settings.kafka_timeout_seconds):
            raise unreachable_error(self.broker, listener.cause("timed out"))
        if self.broker.embedded:
            self._backlog = EmbeddedBacklog(self.broker, self.settings, config)

    def send(self, message: Message) -> None:
        """Queues one message; waits while the queue is full or the lander is behind."""
        if self._failure:
            raise BrokerError(self._failure)
        if message.topic not in self._checked_topics:
            self._check_topic(message.topic)
        if serialize := self._serializers.get(message.topic):
            message = message._replace(value=serialize(message.value))
        if self._backlog is not None and not self._reserve(message, self._backlog):
            self._wait_for_lander(message, self._backlog)
        while True:
            try:
                self._kafka.produce(message.topic, message.value, message.key, on_delivery=self._on_delivery)
                break
            except BufferError:
                self._kafka.poll(0.1)
            except KafkaException as error:
                raise BrokerError(
                    f"The Kafka client refused a message of {len(message.value):,} bytes: {error.args[0].str()}."
                ) from error
        self._kafka.poll(0)

    def flush(self) -> None:
        """Waits until all queued messages are delivered."""
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
            # Queued messages are still sent, but the error must not wait for their delivery.
            self._kafka.flush(1.0)
        if self._backlog is not None:
            self._backlog.close()

    def _check_topic(self, topic: str) -> None:
        """Raises at once if a topic does not exist; librdkafka would wait half a minute for it."""
        if not self.broker.embedded:
            try:
                found = self._kafka.list_topics(topic, timeout=self.settings.kafka_timeout_seconds).topics[topic]
            except KafkaException as error:
                raise unreachable_error(self.broker, error.args[0].str()) from error
            if found.error is not None and found.error.code() in _MISSING_TOPIC:
                raise missing_topic_error(self.broker, topic, self.settings)
        self._checked_topics.add(topic)

    def _on_delivery(self, error: Any, message: Delivered) -> None:
        if error is not None:
            self._failure = self._failure or (
                f"A message to topic {message.topic()} was not delivered to {self.broker.name}: {error.str()}. "
                "Check that the broker runs (KAFKA_BOOTSTRAP_SERVERS) and allows writing to the topic, and send again. "
                "A message that arrives twice counts once, by its id."
            )
            return
        self.delivered += 1
        if self._backlog is not None:
            self._backlog.add_delivered(message)

    @staticmethod
    def _reserve(message: Message, backlog: EmbeddedBacklog) -> bool:
        return backlog.reserve(message.topic, message.key, message.value)

    def _wait_for_lander(self, message: Message, backlog: EmbeddedBacklog) -> None:
        started = time.monotonic()
        while True:
            # Only delivered messages have a partition and an offset to compare with the lake.
            self.flush()
            backlog.refresh(message.topic)
            if self._reserve(message, backlog):
                return
            if time.monotonic() - started > WARNING_SECONDS and not backlog.has_warned:
                backlog.has_warned = True
                logger.warning(
                    "waiting for the lander: the embedded broker holds only a few MB. "
                    "Start `fraud-assets land` in another terminal, with the same FRAUD_HOME."
                )
            if self.on_wait is not None:
                self.on_wait()
            else:
                time.sleep(0.1)
