"""What every Kafka client of the platform is configured with, and the identity of a topic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fraud_assets.errors import BrokerError
from fraud_assets.kafka.broker import Broker
from fraud_assets.kafka.broker_errors import ConnectionErrorListener
from fraud_assets.kafka.connection import checked, connection
from fraud_assets.settings import Settings, environment_name

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

_REFUSAL_SECONDS = 10.0
"""How long a new client listens for the broker's refusal, before the calls that have their own time-outs."""


def client_config(broker: Broker, settings: Settings) -> dict[str, str | int | float | bool]:
    """librdkafka settings that producers, consumers and admin clients share, secrets among them.

    Raises:
        SettingError: one of them cannot be used.
    """
    wait = int(settings.kafka_timeout_seconds * 1000)
    return {
        "client.id": "fraud-assets",
        "socket.timeout.ms": max(wait, 1000),
        "socket.connection.setup.timeout.ms": min(max(wait, 1000), 30_000),
        "reconnect.backoff.max.ms": 1000,
        # At 100 ms, the default, a broker's first answer would wait for the next try of a metadata request.
        "topic.metadata.refresh.fast.interval.ms": 50,
        **({} if broker.embedded else checked(connection(settings))),
        "bootstrap.servers": broker.bootstrap,
        # Failures reach people as one sentence of ours; librdkafka would repeat them on stderr every second.
        "log_level": 0,
        "allow.auto.create.topics": broker.embedded,
    }


def topic_setting(topic: str, settings: Settings) -> str:
    """The environment variable that names the topic, for error messages."""
    field = "labels_topic" if topic == settings.labels_topic else "transactions_topic"
    return environment_name(field)


def unreachable_error(broker: Broker, cause: object) -> BrokerError:
    """The sentence for a broker that does not answer."""
    if broker.embedded:
        remedy = "Start `fraud-assets broker` again"
    else:
        remedy = f"{broker.named_by} is {broker.bootstrap!r}: check the address and that the broker runs"
    return BrokerError(f"No answer from {broker.name} ({cause}). {remedy}.")


def admin_client(broker: Broker, settings: Settings) -> AdminClient:
    """An admin client of a real broker; the embedded one does not answer admin calls.

    Raises:
        BrokerRefusedError: the broker does not let us in. One that does not answer is left to the calls.
        SettingError: a setting of the connection cannot be used.
    """
    from confluent_kafka.admin import AdminClient

    reached = connection(settings)
    heard = ConnectionErrorListener(broker, reached)
    config = client_config(broker, settings)
    config.pop("allow.auto.create.topics")
    client = reached.client(AdminClient, {**config, "error_cb": heard})
    heard.wait(client, min(settings.kafka_timeout_seconds, _REFUSAL_SECONDS))
    return client


def find_topic_id(broker: Broker, topic: str, settings: Settings, admin: AdminClient | None = None) -> str:
    """Identity of this life of the topic: a topic recreated, or an embedded broker restarted, has another.

    Raises:
        BrokerError: the broker does not answer, or the topic does not exist.
    """
    if broker.topic_id is not None:
        return broker.topic_id
    from confluent_kafka import KafkaError, KafkaException, TopicCollection

    client = admin or admin_client(broker, settings)
    try:
        future = client.describe_topics(TopicCollection([topic]), request_timeout=settings.kafka_timeout_seconds)
        description = future[topic].result(timeout=settings.kafka_timeout_seconds + 1)
    except KafkaException as error:
        if error.args[0].code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_AUTHORIZATION_FAILED):
            raise missing_topic(broker, topic, settings) from None
        raise unreachable_error(broker, error.args[0].str()) from None
    except TimeoutError:
        raise unreachable_error(broker, "timed out") from None
    identity = str(description.topic_id)
    if identity.strip("A=") == "":
        raise BrokerError(
            f"{broker.name[0].upper()}{broker.name[1:]} gives topic {topic!r} no id, so that a topic recreated could "
            "not be told from the old one. Use Apache Kafka 2.8 or newer."
        )
    return identity


def missing_topic(broker: Broker, topic: str, settings: Settings) -> BrokerError:
    """The sentence for a topic that is not there or may not be read."""
    return BrokerError(
        f"Topic {topic!r} does not exist at {broker.name}, or may not be read. "
        f"Create it, or set {topic_setting(topic, settings)} to the topic that is meant."
    )
