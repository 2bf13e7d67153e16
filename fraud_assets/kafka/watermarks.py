"""What the broker says of one topic: its partitions, where their logs start and end, and its identity."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from fraud_assets.errors import TopicRecreatedError
from fraud_assets.kafka.broker import Broker, find_broker
from fraud_assets.kafka.client import admin_client, find_topic_id, missing_topic, unreachable_error
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from confluent_kafka import Consumer
    from confluent_kafka.admin import AdminClient

Answer = TypeVar("Answer")

_SLICE_SECONDS = 1.0


class Watermarks:
    """Asks the broker about one topic, within FRAUD_KAFKA_TIMEOUT_SECONDS.

    Args:
        topic: name of the topic.
        settings: how to reach the broker.
        broker: where it is.
        consumer: gives the client to ask with.

    Attributes:
        low: log start per partition, as of the last `look`.
        high: offset after the last message per partition, as of the last `look`.
        answers: whether the broker gave an answer when it was asked last.
    """

    def __init__(self, topic: str, settings: Settings, broker: Broker, consumer: Callable[[], Consumer]) -> None:
        self.topic = topic
        self.low: dict[int, int] = {}
        self.high: dict[int, int] = {}
        self.answers = True
        self._settings = settings
        self._broker = broker
        self._consumer = consumer
        self._admin: AdminClient | None = None if broker.embedded else admin_client(broker, settings)

    def partitions(self, stop: Callable[[], bool]) -> list[int]:
        """Partitions of the topic. An embedded broker creates the topic when it is asked.

        Raises:
            BrokerError: the topic does not exist, or the broker does not answer.
        """
        from confluent_kafka import KafkaError

        deadline = monotonic() + self._settings.kafka_timeout_seconds
        while True:
            metadata = self._ask(lambda wait: self._consumer().list_topics(self.topic, timeout=wait), stop)
            entry = metadata.topics[self.topic]
            if entry.error is None and entry.partitions:
                return sorted(entry.partitions)
            unknown = entry.error is not None and entry.error.code() in (
                KafkaError.UNKNOWN_TOPIC_OR_PART,
                KafkaError.TOPIC_AUTHORIZATION_FAILED,
            )
            if (unknown and not self._broker.embedded) or monotonic() > deadline or stop():
                raise missing_topic(self._broker, self.topic, self._settings)

    def look(self, partitions: Iterable[int], stop: Callable[[], bool]) -> None:
        """Asks for the log starts and ends of the partitions. Raises `BrokerError` if the broker does not answer."""
        from confluent_kafka import TopicPartition

        for partition in partitions:
            place = TopicPartition(self.topic, partition)
            self.low[partition], self.high[partition] = self._ask(
                lambda wait, place=place: self._consumer().get_watermark_offsets(place, timeout=wait), stop
            )

    def topic_id(self) -> str:
        """Identity of this life of the topic. Raises `BrokerError`."""
        return find_topic_id(self._broker, self.topic, self._settings, self._admin)

    def check_topic_id(self, topic_id: str) -> None:
        """Asks the broker whether the topic is still in this life of it, and so all that was read by now is of it.

        Raises:
            TopicRecreatedError: it was deleted and recreated.
        """
        broker = find_broker(self._settings) if self._broker.embedded else self._broker
        if find_topic_id(broker, self.topic, self._settings, self._admin) != topic_id:
            raise TopicRecreatedError(
                f"Topic {self.topic!r} was recreated while it was read; what was read last did not land. Its new life "
                "lands from its start, when landing runs again."
            )

    def _ask(self, question: Callable[..., Answer | None], stop: Callable[[], bool]) -> Answer:
        """The broker's answer within FRAUD_KAFKA_TIMEOUT_SECONDS, in slices so that `stop` is heard."""
        from confluent_kafka import KafkaException

        deadline = monotonic() + self._settings.kafka_timeout_seconds
        while True:
            wait = max(min(_SLICE_SECONDS, deadline - monotonic()), 0.05)
            try:
                answer = question(wait)
                if answer is not None:
                    self.answers = True
                    return answer
                cause = "timed out"
            except KafkaException as error:
                cause = error.args[0].str()
            if monotonic() >= deadline or stop():
                self.answers = False
                raise unreachable_error(self._broker, cause)
