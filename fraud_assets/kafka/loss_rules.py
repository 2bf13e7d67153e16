"""Rules for the first offset to read of a partition and for lost messages; landing and the doctor share them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fraud_assets.errors import BrokerError, MessagesLostError
from fraud_assets.kafka.broker import Broker
from fraud_assets.lake.positions import NOTHING, Positions, SourcePartition
from fraud_assets.settings import Settings


@dataclass(frozen=True)
class StartOffsets:
    """The first offset to read of each partition, and the lost messages before it.

    Attributes:
        first: First offset to read.
        lost: Last landed offset (-1 for none) of partitions whose log starts after the next offset.
        given_up: Per `topic/partition`, the lost offsets that FRAUD_ACCEPT_LOST gives up.
        ahead: Last landed offset of partitions whose log ends before it.
    """

    first: dict[SourcePartition, int] = field(default_factory=dict)
    lost: dict[SourcePartition, int] = field(default_factory=dict)
    given_up: dict[str, str] = field(default_factory=dict)
    ahead: dict[SourcePartition, int] = field(default_factory=dict)


def find_first_readable_offset(
    landed: Positions, low: Mapping[int, int], high: Mapping[int, int], accept_lost: Mapping[str, int]
) -> StartOffsets:
    """Compares the landed offsets of a known topic with the broker's log.

    Args:
        landed: Last landed offset per partition; -1 for none, which means that the log must start at 0.
        low: Log start per partition number.
        high: Offset after the last message per partition number.
        accept_lost: FRAUD_ACCEPT_LOST.
    """
    found = StartOffsets()
    for source, last in landed.items():
        start = low[source.partition]
        if start > last + 1:
            name = f"{source.topic}/{source.partition}"
            if accept_lost.get(name, NOTHING) >= start:
                found.given_up[name] = f"{last + 1} to {start - 1}"
            else:
                found.lost[source] = last
        if last >= high[source.partition]:
            found.ahead[source] = last
        found.first[source] = max(last + 1, start)
    return found


def messages_ahead_error(ahead: Positions, high: Mapping[int, int]) -> BrokerError:
    """Returns the error for partitions that end at the broker before their last landed offset."""
    parts = [
        f"Partition {source.partition} of topic {source.topic!r} ends at offset {high[source.partition] - 1}, but the "
        f"lake holds its offset {last}"
        for source, last in sorted(ahead.items())
    ]
    return BrokerError(
        f"{'. '.join(parts)}: the broker lost messages that it had delivered. "
        "Find the cause before you restart landing; a recreated topic lands from its start."
    )


def messages_lost_error(
    lost: Positions, low: Mapping[int, int], broker: Broker, settings: Settings
) -> MessagesLostError:
    """Returns the error for partitions whose log starts after the offset that should land next, with the fix."""
    parts = []
    for source, last in sorted(lost.items()):
        start = low[source.partition]
        held = "no message of it" if last == NOTHING else f"offsets up to {last}"
        parts.append(
            f"Up to {start - last - 1} messages of partition {source.partition} of topic {source.topic!r} are "
            f"lost: the lake holds {held}, but {broker.name} starts at offset {start}"
        )
    if broker.embedded:
        remedy = (
            "The embedded broker keeps about 5 MB per partition. Restart it with `fraud-assets broker`, run "
            "`fraud-assets land` while messages are produced, and put bulk data into the drop folder"
        )
    else:
        accepted = ",".join(f"{source.topic}/{source.partition}={low[source.partition]}" for source in sorted(lost))
        remedy = (
            "Landing stops and does not skip them. Put another copy of them into the drop folder "
            f"{settings.incoming} and raise the topic's retention. To continue without them, set "
            f"FRAUD_ACCEPT_LOST={accepted}"
        )
    return MessagesLostError(f"{'. '.join(parts)}. {remedy}.")
