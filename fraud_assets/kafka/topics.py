"""The platform's topics: which are missing at the broker, and how to make them."""

from __future__ import annotations

from fraud_assets.errors import BrokerError
from fraud_assets.kafka.broker import Broker
from fraud_assets.kafka.client import client_config, topic_setting, unreachable_error
from fraud_assets.settings import Settings


def create_topics(broker: Broker, settings: Settings) -> None:
    """Makes both topics, with the broker's own defaults; leaves those that are there as they are.

    Raises:
        BrokerError: the broker refuses or does not answer.
    """
    from confluent_kafka import KafkaError, KafkaException
    from confluent_kafka.admin import AdminClient, NewTopic

    # Without the security settings: they are those of another broker, or of none.
    admin = AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0})
    wanted = [NewTopic(topic) for topic in dict.fromkeys((settings.transactions_topic, settings.labels_topic))]
    for topic, made in admin.create_topics(wanted, request_timeout=settings.kafka_timeout_seconds).items():
        try:
            made.result(timeout=settings.kafka_timeout_seconds + 1)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise BrokerError(f"Topic {topic!r} cannot be made at {broker.name}: {error.args[0].str()}.") from None
        except TimeoutError:
            raise BrokerError(f"Topic {topic!r} was not made in time by {broker.name}. Start it again.") from None


def describe_missing_topics(broker: Broker, settings: Settings) -> list[str]:
    """A sentence for each topic that the embedded broker does not have yet; it creates them when they are read.

    A real broker gives an error instead, when the topic is read.

    Raises:
        BrokerError: the embedded broker does not answer.
    """
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    if not broker.embedded:
        return []
    config = {**client_config(broker, settings)}
    config.pop("allow.auto.create.topics")
    try:
        known = AdminClient(config).list_topics(timeout=settings.kafka_timeout_seconds).topics
    except KafkaException as error:
        raise unreachable_error(broker, error.args[0].str()) from None
    return [
        f"Topic {topic!r} did not exist at {broker.name}, which creates it empty. If you mean another topic, set "
        f"{topic_setting(topic, settings)}."
        for topic in (settings.labels_topic, settings.transactions_topic)
        if topic not in known
    ]
