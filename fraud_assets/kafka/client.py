"""librdkafka settings that all clients of the platform share, and the id of a topic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fraud_assets.errors import BrokerError
from fraud_assets.kafka.broker import Broker
from fraud_assets.kafka.broker_errors import ConnectionErrorListener
from fraud_assets.kafka.connection import load_connection, select_known_settings
from fraud_assets.settings import Settings, environment_name

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

_REFUSAL_SECONDS = 10.0
"""Maximum seconds that a new client waits for a refusal by the broker. Later calls have their own time-outs."""


def build_client_config(broker: Broker, settings: Settings) -> dict[str, str | int | float | bool]:
    """Returns the librdkafka settings, including secrets, that producers, consumers and admin clients share.

    Raises:
        SettingError: A setting of the connection is invalid.
    """
    wait = int(settings.kafka_timeout_seconds * 1000)
    return {
        "client.id": "fraud-assets",
        "socket.timeout.ms": max(wait, 1000),
        "socket.connection.setup.timeout.ms": min(max(wait, 1000), 30_000),
        "reconnect.backoff.max.ms": 1000,
        # With the default of 100 ms, a broker's first answer would wait for the next metadata request.
        "topic.metadata.refresh.fast.interval.ms": 50,
        **({} if broker.embedded else select_known_settings(load_connection(settings))),
        "bootstrap.servers": broker.bootstrap,
        # The platform's errors report failures once; librdkafka would repeat them on stderr every second.
        "log_level": 0,
        "allow.auto.create.topics": broker.embedded,
    }


def name_topic_setting(topic: str, settings: Settings) -> str:
    """Returns the environment variable that names the topic, for error messages."""
    field = "labels_topic" if topic == settings.labels_topic else "transactions_topic"
    return environment_name(field)


def unreachable_error(broker: Broker, cause: object) -> BrokerError:
    """Returns the error for a broker that does not answer."""
    if broker.embedded:
        remedy = "Restart `fraud-assets broker`"
    else:
        remedy = f"{broker.named_by} is {broker.bootstrap!r}: check the address and that the broker runs"
    return BrokerError(f"No answer from {broker.name} ({cause}). {remedy}.")


def missing_topic_error(broker: Broker, topic: str, settings: Settings) -> BrokerError:
    """Returns the error for a topic that does not exist or may not be read."""
    return BrokerError(
        f"Topic {topic!r} does not exist at {broker.name}, or may not be read. "
        f"Create it, or set {name_topic_setting(topic, settings)} to the right topic."
    )


def create_admin_client(broker: Broker, settings: Settings) -> AdminClient:
    """Returns an admin client of an external broker; the embedded broker does not answer admin calls.

    Raises:
        BrokerRefusedError: The broker refuses the connection. If the broker does not answer, no error is raised
            here; the calls of the client have their own time-outs.
        SettingError: A setting of the connection is invalid.
    """
    from confluent_kafka.admin import AdminClient

    configured = load_connection(settings)
    listener = ConnectionErrorListener(broker, configured)
    config = build_client_config(broker, settings)
    config.pop("allow.auto.create.topics")
    client = configured.client(AdminClient, {**config, "error_cb": listener})
    listener.wait(client, min(settings.kafka_timeout_seconds, _REFUSAL_SECONDS))
    return client


def find_topic_id(broker: Broker, topic: str, settings: Settings, admin: AdminClient | None = None) -> str:
    """Returns the id of the topic. A recreated topic, or a restarted embedded broker, has another id.

    Raises:
        BrokerError: The broker does not answer, or the topic does not exist.
    """
    if broker.topic_id is not None:
        return broker.topic_id
    from confluent_kafka import KafkaError, KafkaException, TopicCollection

    client = admin or create_admin_client(broker, settings)
    try:
        future = client.describe_topics(TopicCollection([topic]), request_timeout=settings.kafka_timeout_seconds)
        description = future[topic].result(timeout=settings.kafka_timeout_seconds + 1)
    except KafkaException as error:
        if error.args[0].code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_AUTHORIZATION_FAILED):
            raise missing_topic_error(broker, topic, settings) from None
        raise unreachable_error(broker, error.args[0].str()) from None
    except TimeoutError:
        raise unreachable_error(broker, "timed out") from None
    topic_id = str(description.topic_id)
    # Kafka uses the id of zeros (in base64) if a topic has no id.
    if topic_id.strip("A=") == "":
        raise BrokerError(
            f"{broker.title} reports no id for topic {topic!r}, so a recreated topic could not be distinguished from "
            "the previous one. Use Apache Kafka 2.8 or newer."
        )
    return topic_id
