"""Where reading of a topic begins, and what the broker no longer has: the rules that landing and the doctor share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fraud_assets.errors import BrokerError, MessagesLostError
from fraud_assets.kafka.broker import Broker
from fraud_assets.lake.positions import NOTHING, Positions, SourcePartition
from fraud_assets.settings import Settings


@dataclass(frozen=True)
class Beginning:
    """Where the partitions of a topic are read on.

    Attributes:
        first: first offset to read.
        lost: last offset that was landed of partitions whose log starts later than the next one; -1 for none.
        given_up: per `topic/partition` the lost offsets that FRAUD_ACCEPT_LOST gives up.
        ahead: last offset that was landed of partitions that end before it.
    """

    first: dict[SourcePartition, int] = field(default_factory=dict)
    lost: dict[SourcePartition, int] = field(default_factory=dict)
    given_up: dict[str, str] = field(default_factory=dict)
    ahead: dict[SourcePartition, int] = field(default_factory=dict)


def first_readable_offset(
    landed: Positions, low: Mapping[int, int], high: Mapping[int, int], accept_lost: Mapping[str, int]
) -> Beginning:
    """Compares what was landed of a topic that the lake knows with what the broker has.

    Args:
        landed: last offset that was landed, per partition; -1 for none, so that the log has to start at 0.
        low: log start per partition number.
        high: offset after the last message per partition number.
        accept_lost: FRAUD_ACCEPT_LOST.
    """
    found = Beginning()
    for stream, last in landed.items():
        start = low[stream.partition]
        if start > last + 1:
            place = f"{stream.topic}/{stream.partition}"
            if accept_lost.get(place, NOTHING) >= start:
                found.given_up[place] = f"{last + 1} to {start - 1}"
            else:
                found.lost[stream] = last
        if last >= high[stream.partition]:
            found.ahead[stream] = last
        found.first[stream] = max(last + 1, start)
    return found


def messages_ahead(ahead: Positions, high: Mapping[int, int]) -> BrokerError:
    """The sentence on partitions of which the lake holds more than the broker."""
    parts = [
        f"Partition {stream.partition} of topic {stream.topic!r} ends at offset {high[stream.partition] - 1}, but the "
        f"lake holds offset {last} of it"
        for stream, last in sorted(ahead.items())
    ]
    return BrokerError(
        f"{'. '.join(parts)}: the broker lost messages that it had delivered. "
        "Find out what happened to the broker before landing on; a topic recreated lands from its start."
    )


def messages_lost(lost: Positions, low: Mapping[int, int], broker: Broker, settings: Settings) -> MessagesLostError:
    """The sentence on partitions whose log starts after what was landed of them, with what to do."""
    gone = []
    for stream, last in sorted(lost.items()):
        start = low[stream.partition]
        held = "no message of it" if last == NOTHING else f"offsets up to {last}"
        gone.append(
            f"Up to {start - last - 1} messages of partition {stream.partition} of topic {stream.topic!r} are "
            f"gone: the lake holds {held}, {broker.name} starts at {start}"
        )
    if broker.embedded:
        remedy = (
            "The embedded broker keeps about 5 MB a partition: restart it with `fraud-assets broker`, run "
            "`fraud-assets land` while messages are produced, and put bulk data into the drop folder"
        )
    else:
        accepted = ",".join(f"{stream.topic}/{stream.partition}={low[stream.partition]}" for stream in sorted(lost))
        remedy = (
            "Landing stops here rather than skip them: bring them back from another copy into the drop folder "
            f"{settings.incoming} and raise the topic's retention; FRAUD_ACCEPT_LOST={accepted} goes on without them"
        )
    return MessagesLostError(f"{'. '.join(gone)}. {remedy}.")
