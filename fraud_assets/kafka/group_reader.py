"""Follows a topic as a member of a consumer group, until it is stopped.

The group assigns the partitions; the lake's positions determine where each of them starts. The offsets that are
committed to the broker serve lag monitors and are never read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Generator
from typing import TYPE_CHECKING

import pyarrow as pa

from fraud_assets.errors import MessagesLostError
from fraud_assets.kafka.message_batch import Batch
from fraud_assets.kafka.topic_client import POLL_SECONDS, CommittedOffsets, TopicClient, never
from fraud_assets.kafka.unreadable_partitions import is_end
from fraud_assets.lake.positions import Positions, SourcePartition, find_largest_positions

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Message, TopicPartition

    from fraud_assets.lake.known_topics import LogStarts


class GroupReader:
    """Follows the partitions that a consumer group assigns to this reader.

    One thread calls `follow`; another may call `mark_landed` and `lag`.

    Args:
        client: The connection to read through; its group is the consumer group.
    """

    def __init__(self, client: TopicClient) -> None:
        self._client = client
        self._assigned: set[int] = set()
        self._has_new_assignment = False
        self._lock = threading.Lock()
        self._next_to_land: dict[int, int] = {}
        self._delivered: dict[int, int] = {}
        self._ends: dict[int, int] = {}

    def follow(
        self, committed_offsets: CommittedOffsets, stop: Callable[[], bool] = never
    ) -> Generator[tuple[pa.Table, dict[SourcePartition, int]], None, None]:
        """Yields batches of the assigned partitions until `stop` returns True.

        A batch is yielded when it has FRAUD_LAND_BATCH_ROWS rows or FRAUD_LAND_BATCH_BYTES bytes, or
        FRAUD_LAND_INTERVAL_SECONDS after its first message. If no message comes for that time, an empty batch is
        yielded.

        A newly assigned partition is read from its committed offset. When a partition is revoked, its uncommitted
        messages are dropped; its next owner reads them. A partition that cannot be read is retried while the others
        continue; see `TopicClient.unreadable`. Before a batch is committed, call `TopicClient.check_topic_id`; after
        it, call `mark_landed`. Both may be called from another thread.

        Args:
            committed_offsets: Returns the last offset of each partition that the lake holds.
            stop: Polled at least every 0.1 s.

        Yields:
            A table with the schema `MESSAGES`, and the positions of the lake once this batch and all before it have
            landed. A position may lie beyond the last message, as those of `BoundedReader.tails` do.
        """
        client, settings = self._client, self._client.settings
        self._join_group(stop)
        batch = Batch(client.topic, "", settings.land_batch_rows, settings.land_batch_bytes)
        lost: MessagesLostError | None = None
        try:
            while not stop():
                if self._has_new_assignment:
                    batch.clear()
                    batch.topic_id = self._start_partitions(committed_offsets, stop)
                client.faults.retry(client.consumer)
                wait = min(POLL_SECONDS, max(settings.land_interval_seconds - batch.age, 0.001))
                events = client.consumer.consume(batch.call_rows, timeout=wait)
                if self._has_new_assignment:
                    continue
                try:
                    batch.add([event for event in events if self._is_next_message(event)])
                except MessagesLostError as error:
                    # The messages of this poll are not in the batch, so the batch must not carry a partition's end.
                    lost, self._ends = error, {}
                if batch.is_full or lost or batch.age >= settings.land_interval_seconds:
                    yield self._take(batch)
                if lost:
                    raise lost
            yield self._take(batch)
        finally:
            self._leave_group()

    def mark_landed(self, reached: Positions) -> None:
        """Records which offsets of `follow` have landed, and commits them to the broker for lag monitors."""
        with self._lock:
            # A partition that was revoked meanwhile no longer belongs to this reader.
            for source, offset in reached.items():
                if source.partition in self._next_to_land:
                    self._next_to_land[source.partition] = max(offset + 1, self._next_to_land[source.partition])
        self._client.commit_to_broker(reached)

    def lag(self) -> dict[int, int]:
        """Returns the number of messages after the last landed one, per assigned partition.

        The ends of the partitions are the last ones that the broker reported; no request is sent.
        """
        from confluent_kafka import TopicPartition

        client = self._client
        with self._lock:
            next_to_land, delivered = dict(self._next_to_land), dict(self._delivered)
        assigned = [TopicPartition(client.topic, partition) for partition in next_to_land]
        lag = {}
        for position in client.consumer.position(assigned) if assigned else []:
            _, high = client.consumer.get_watermark_offsets(position, cached=True)
            landed, end = next_to_land[position.partition], max(high, client.watermarks.high[position.partition])
            # A partition that was read to its end has no more messages, only offsets without one.
            is_drained = position.offset >= end and landed >= delivered[position.partition]
            lag[position.partition] = 0 if is_drained else end - landed
        return lag

    def _join_group(self, stop: Callable[[], bool]) -> None:
        client = self._client
        partitions = client.watermarks.list_partitions(stop)
        if client.broker.embedded:
            # The embedded broker delays a new group by 3 s, and it serves one lander only.
            self._assigned, self._has_new_assignment = set(partitions), True
        else:
            client.consumer.subscribe(
                [client.topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
            )

    def _leave_group(self) -> None:
        consumer = self._client.consumer
        consumer.unassign() if self._client.broker.embedded else consumer.unsubscribe()
        self._assigned, self._has_new_assignment = set(), False

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._assigned = {entry.partition for entry in partitions}
        self._has_new_assignment = True
        # Without this call, librdkafka would start at the offsets that are committed to the broker.
        consumer.assign([])

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._assigned -= {entry.partition for entry in partitions}
        self._has_new_assignment = True
        consumer.unassign()

    def _start_partitions(self, committed_offsets: CommittedOffsets, stop: Callable[[], bool]) -> str:
        """Starts reading the assigned partitions at their committed offsets; returns the topic id."""
        self._has_new_assignment = False
        committed: Positions = {}

        def remember_committed(sources: Collection[SourcePartition], log_starts: LogStarts) -> Positions:
            nonlocal committed
            committed = committed_offsets(sources, log_starts)
            return committed

        first = self._client.first_offsets(remember_committed, stop, sorted(self._assigned))
        start = {source.partition: offset for source, offset in first.items()}
        with self._lock:
            self._next_to_land, self._ends = dict(start), dict(start)
            # The committed offset lies before the first offset if FRAUD_ACCEPT_LOST gives up messages.
            self._delivered = {source.partition: committed[source] + 1 for source in first}
        self._client.assign(start)
        return next(iter(first)).topic_id if first else ""

    def _is_next_message(self, event: Message) -> bool:
        """As `TopicClient.is_next_message`; also records the end of a partition."""
        is_message = self._client.is_next_message(event, self._next_to_land)
        if not is_message and is_end(event) and event.partition() not in self._client.faults:
            self._ends[event.partition()] = event.offset() or 0
        return is_message

    def _take(self, batch: Batch) -> tuple[pa.Table, dict[SourcePartition, int]]:
        table = batch.take()
        reached = find_largest_positions(table)
        with self._lock:
            self._delivered.update({source.partition: offset + 1 for source, offset in reached.items()})
            for partition, end in self._ends.items():
                if end > self._delivered.get(partition, end):
                    self._delivered[partition] = end
                    reached[SourcePartition(self._client.topic, batch.topic_id, partition)] = end - 1
        return table, reached
