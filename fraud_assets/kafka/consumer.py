"""Reads a topic from the positions that the lake holds, in bounded memory.

`read` reads from explicit offsets up to explicit ends; `follow` reads as a member of a consumer group until it is
stopped. In both, the lake's positions determine where a partition starts.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import pyarrow as pa

from fraud_assets.kafka.bounded_reader import BoundedReader
from fraud_assets.kafka.broker import Broker
from fraud_assets.kafka.group_reader import GroupReader
from fraud_assets.kafka.topic_client import CommittedOffsets, TopicClient, never
from fraud_assets.lake.positions import Positions, SourcePartition
from fraud_assets.settings import Settings


class TopicReader(TopicClient):
    """A connection to one topic with both readers: `BoundedReader` and `GroupReader`.

    Args:
        topic: Name of the topic.
        settings: The connection to the broker, and the limits of a batch.
        broker: The broker; found from the settings if None.
        group: Name of the consumer group.
    """

    def __init__(self, topic: str, settings: Settings, broker: Broker | None = None, group: str = "") -> None:
        super().__init__(topic, settings, broker, group)
        self._bounded = BoundedReader(self)
        self._group_reader = GroupReader(self)

    def read(
        self, stored: Positions, target: Positions, stop: Callable[[], bool] = never
    ) -> Generator[pa.Table, None, None]:
        """See `BoundedReader.read`."""
        return self._bounded.read(stored, target, stop)

    def tails(self, landed: Positions) -> dict[SourcePartition, int]:
        """See `BoundedReader.tails`."""
        return self._bounded.tails(landed)

    def follow(
        self, committed_offsets: CommittedOffsets, stop: Callable[[], bool] = never
    ) -> Generator[tuple[pa.Table, dict[SourcePartition, int]], None, None]:
        """See `GroupReader.follow`."""
        return self._group_reader.follow(committed_offsets, stop)

    def mark_landed(self, reached: Positions) -> None:
        """See `GroupReader.mark_landed`."""
        self._group_reader.mark_landed(reached)

    def lag(self) -> dict[int, int]:
        """See `GroupReader.lag`."""
        return self._group_reader.lag()
