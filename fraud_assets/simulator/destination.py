"""Selects the destination of simulated and replayed messages: a Kafka broker or Confluent's REST API."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self

import click

from fraud_assets.errors import SettingError
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from fraud_assets.kafka.producer import Message

Via = Literal["kafka", "rest"]

via_option = click.option(
    "--via",
    type=click.Choice(["kafka", "rest"]),
    help="Kafka's protocol, or Confluent's REST API. The default is rest if only CONFLUENT_API is set, else kafka.",
)


class MessageProducer(Protocol):
    """Sends messages. The end of its `with` block waits until all are delivered.

    Attributes:
        delivered: number of delivered messages.
    """

    delivered: int

    def send(self, message: Message) -> None:
        """Queues one message."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_producer(
    settings: Settings, via: Via | None = None, on_wait: Callable[[], object] | None = None
) -> MessageProducer:
    """Returns a producer for the destination of `via`, or of the settings if `via` is None.

    Args:
        settings: define the broker and the REST API.
        via: value of the option `--via`.
        on_wait: called while the Kafka producer waits for the broker.

    Raises:
        FraudAssetsError: no destination is configured, or it cannot be reached.
    """
    from fraud_assets.kafka.broker import find_broker, uses_external_broker

    if via is None:
        via = "rest" if settings.confluent_api and not uses_external_broker(settings) else "kafka"
    if via == "kafka":
        from fraud_assets.kafka.producer import Producer

        return Producer(find_broker(settings), settings, on_wait)
    if not settings.confluent_api:
        raise SettingError("Setting CONFLUENT_API is empty, but --via rest needs it. Set it to https://host:port.")
    from fraud_assets.kafka.rest import RestProducer

    return RestProducer(settings)
