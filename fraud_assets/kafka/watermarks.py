"""The broker's facts about one topic: its partitions, their log starts and ends, and the topic id."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from fraud_assets.errors import TopicRecreatedError
from fraud_assets.kafka.broker import Broker, find_broker
from fraud_assets.kafka.client import create_admin_client, find_topic_id, missing_topic_error, unreachable_error
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from confluent_kafka import Consumer
    from confluent_kafka.admin import AdminClient

Answer = TypeVar("Answer")

_SLICE_SECONDS = 1.0


class Watermarks:
    """Requests facts about one topic from the broker, within FRAUD_KAFKA_TIMEOUT_SECONDS.

    Args:
        topic: Name of the topic.
        settings: The connection to the broker.
        broker: The broker.
        consumer: Returns the client that sends the requests.

    Attributes:
        low: Log start per partition, as of the last `update`.
        high: Offset after the last message per partition, as of the last `update`.
        is_answering: Whether the broker answered the last request.
    """

    def __init__(self, topic: str, settings: Settings, broker: Broker, consumer: Callable[[], Consumer]) -> None:
        self.topic = topic
        self.low: dict[int, int] = {}
        self.high: dict[int, int] = {}
        self.is_answering = True
        self._settings = settings
        self._broker = broker
        self._consumer = consumer
        self._admin: AdminClient | None = None if broker.embedded else create_admin_client(broker, settings)

    def list_partitions(self, stop: Callable[[], bool]) -> list[int]:
        """Returns the numbers of the topic's partitions. An embedded broker creates the topic on this request.

        Raises:
            BrokerError: The topic does not exist, or the broker does not answer.
        """
        from confluent_kafka import KafkaError

        deadline = monotonic() + self._settings.kafka_timeout_seconds
        while True:
            metadata = self._request(lambda wait: self._consumer().list_topics(self.topic, timeout=wait), stop)
            entry = metadata.topics[self.topic]
            if entry.error is None and entry.partitions:
                return sorted(entry.partitions)
            is_unknown = entry.error is not None and entry.error.code() in (
                KafkaError.UNKNOWN_TOPIC_OR_PART,
                KafkaError.TOPIC_AUTHORIZATION_FAILED,
            )
            if (is_unknown and not self._broker.embedded) or monotonic() > deadline or stop():
                raise missing_topic_error(self._broker, self.topic, self._settings)

    def update(self, partitions: Iterable[int], stop: Callable[[], bool]) -> None:
        """Updates `low` and `high` of the partitions. Raises `BrokerError` if the broker does not answer."""
        from confluent_kafka import TopicPartition

        for partition in partitions:
            entry = TopicPartition(self.topic, partition)
            self.low[partition], self.high[partition] = self._request(
                lambda wait, entry=entry: self._consumer().get_watermark_offsets(entry, timeout=wait), stop
            )

    def fetch_topic_id(self) -> str:
        """Returns the topic's current id; see `find_topic_id`. Raises `BrokerError`."""
        return find_topic_id(self._broker, self.topic, self._settings, self._admin)

    def check_topic_id(self, topic_id: str) -> None:
        """Checks that the topic still has this id, so that all messages read by now belong to this topic.

        Raises:
            TopicRecreatedError: The topic was deleted and created again.
        """
        broker = find_broker(self._settings) if self._broker.embedded else self._broker
        if find_topic_id(broker, self.topic, self._settings, self._admin) != topic_id:
            raise TopicRecreatedError(
                f"Topic {self.topic!r} was recreated while it was read. The messages that were read last did not land. "
                "Run landing again: it lands the new topic from its start."
            )

    def _request(self, send: Callable[..., Answer | None], stop: Callable[[], bool]) -> Answer:
        """Returns the broker's answer within FRAUD_KAFKA_TIMEOUT_SECONDS; polls `stop` about every second."""
        from confluent_kafka import KafkaException

        deadline = monotonic() + self._settings.kafka_timeout_seconds
        while True:
            wait = max(min(_SLICE_SECONDS, deadline - monotonic()), 0.05)
            try:
                answer = send(wait)
                if answer is not None:
                    self.is_answering = True
                    return answer
                cause = "timed out"
            except KafkaException as error:
                cause = error.args[0].str()
            if monotonic() >= deadline or stop():
                self.is_answering = False
                raise unreachable_error(self._broker, cause)
