"""Where the simulator and replays send to: a Kafka broker, or Confluent's REST API."""

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
    help="Kafka's protocol, or Confluent's REST API; by default the latter where CONFLUENT_API is set and no broker.",
)


class Outlet(Protocol):
    """Sends messages; the end of its `with` block waits until all are delivered."""

    delivered: int

    def send(self, message: Message) -> None:
        """Queue one message."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def outlet(settings: Settings, via: Via | None = None, on_wait: Callable[[], object] | None = None) -> Outlet:
    """What `--via` says, else what the settings name.

    Raises:
        FraudAssetsError: nothing is named, or it cannot be reached.
    """
    from fraud_assets.kafka.broker import find_broker, uses_external_broker

    if via is None:
        via = "rest" if settings.confluent_api and not uses_external_broker(settings) else "kafka"
    if via == "kafka":
        from fraud_assets.kafka.producer import Producer

        return Producer(find_broker(settings), settings, on_wait)
    if not settings.confluent_api:
        raise SettingError("Setting CONFLUENT_API is empty and --via rest needs it: set it to https://host:port.")
    from fraud_assets.kafka.rest import RestProducer

    return RestProducer(settings)
