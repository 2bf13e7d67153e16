"""Creates the platform's topics and finds those that do not exist."""

from __future__ import annotations

from fraud_assets.errors import BrokerError
from fraud_assets.kafka.broker import Broker
from fraud_assets.kafka.client import build_client_config, name_topic_setting, unreachable_error
from fraud_assets.settings import Settings


def create_topics(broker: Broker, settings: Settings) -> None:
    """Creates both topics with the broker's own defaults; existing topics stay unchanged.

    Raises:
        BrokerError: The broker refuses or does not answer.
    """
    from confluent_kafka import KafkaError, KafkaException
    from confluent_kafka.admin import AdminClient, NewTopic

    # The security settings are left out: they belong to another broker, if they are set at all.
    admin = AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0})
    wanted = [NewTopic(topic) for topic in dict.fromkeys((settings.transactions_topic, settings.labels_topic))]
    for topic, created in admin.create_topics(wanted, request_timeout=settings.kafka_timeout_seconds).items():
        try:
            created.result(timeout=settings.kafka_timeout_seconds + 1)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise BrokerError(
                    f"Topic {topic!r} cannot be created at {broker.name}: {error.args[0].str()}."
                ) from None
        except TimeoutError:
            raise BrokerError(
                f"Topic {topic!r} was not created within {settings.kafka_timeout_seconds:g} s by {broker.name}. "
                "Restart the broker."
            ) from None


def describe_missing_topics(broker: Broker, settings: Settings) -> list[str]:
    """Returns a sentence for each topic that the embedded broker does not have; reading a topic creates it there.

    For any other broker the list is empty: reading a missing topic raises an error there.

    Raises:
        BrokerError: The embedded broker does not answer.
    """
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    if not broker.embedded:
        return []
    config = {**build_client_config(broker, settings)}
    config.pop("allow.auto.create.topics")
    try:
        known = AdminClient(config).list_topics(timeout=settings.kafka_timeout_seconds).topics
    except KafkaException as error:
        raise unreachable_error(broker, error.args[0].str()) from None
    return [
        f"Topic {topic!r} did not exist at {broker.name}, which creates it empty. If you mean another topic, set "
        f"{name_topic_setting(topic, settings)}."
        for topic in (settings.labels_topic, settings.transactions_topic)
        if topic not in known
    ]
