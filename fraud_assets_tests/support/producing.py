"""Sends messages and waits for their delivery."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fraud_assets.kafka.broker import Broker
from fraud_assets.kafka.producer import Message, Producer
from fraud_assets.settings import Settings


def produce(
    messages: Iterable[Message],
    broker: Broker,
    settings: Settings,
    on_wait: Callable[[], object] | None = None,
) -> int:
    """Sends all messages, waits until they are delivered, and returns their number.

    Raises:
        BrokerError: the broker does not answer, or a message could not be delivered.
    """
    with Producer(broker, settings, on_wait) as producer:
        for message in messages:
            producer.send(message)
    return producer.delivered
