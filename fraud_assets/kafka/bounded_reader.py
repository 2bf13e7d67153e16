"""Reads a topic from given offsets up to given ends, with manually assigned partitions."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

import pyarrow as pa

from fraud_assets.errors import BrokerError, MessagesLostError
from fraud_assets.kafka.client import unreachable_error
from fraud_assets.kafka.message_batch import Batch
from fraud_assets.kafka.topic_client import POLL_SECONDS, TopicClient, never
from fraud_assets.kafka.unreadable_partitions import is_end
from fraud_assets.lake.positions import NOTHING, Positions, SourcePartition

if TYPE_CHECKING:
    from confluent_kafka import Message


@dataclass
class _Progress:
    """One read, by partition number: its source partition, last offset to read and next offset.

    `open_partitions` are the partitions that have not reached their end.
    """

    sources: dict[int, SourcePartition]
    ends: dict[int, int]
    next_offsets: dict[int, int]
    open_partitions: set[int]


class BoundedReader:
    """Reads a topic between explicit offsets.

    Args:
        client: The connection to read through.
    """

    def __init__(self, client: TopicClient) -> None:
        self._client = client
        self._tails: dict[SourcePartition, tuple[int, int]] = {}

    def read(
        self, stored: Positions, target: Positions, stop: Callable[[], bool] = never
    ) -> Generator[pa.Table, None, None]:
        """Yields batches of all messages after `stored` up to and including `target`, in order within each partition.

        A partition that is not in `stored` must start at offset 0; see `find_positions`. Offsets at the end of a
        partition may carry no message; see `tails`.

        Args:
            stored: Last landed offset per partition.
            target: Last offset to read per partition.
            stop: Polled between requests to the broker. If it returns True, the messages read so far are yielded and
                the read ends.

        Yields:
            Tables with the schema `MESSAGES`, of at most FRAUD_LAND_BATCH_ROWS rows and about FRAUD_LAND_BATCH_BYTES
            bytes of keys and bodies.

        Raises:
            UnreadableError: The client cannot read a partition.
        """
        client = self._client
        client.watermarks.update([source.partition for source in target], stop)
        first = client.offsets_after({source: stored.get(source, NOTHING) for source in target})
        for source, offset in first.items():
            # The messages of offsets that were given up no longer exist.
            if offset - 1 > (last := stored.get(source, NOTHING)):
                self._tails[source] = (last, offset - 1)
        start = {
            source: offset
            for source, offset in first.items()
            if offset <= target[source] and not self._is_empty_tail(source, offset - 1, target[source])
        }
        if not start:
            return
        client.assign({source.partition: offset for source, offset in start.items()})
        try:
            yield from self._read_batches(start, target, stop)
        finally:
            # Without an assignment, nothing is fetched between reads.
            client.consumer.unassign()

    def tails(self, landed: Positions) -> dict[SourcePartition, int]:
        """Returns the last offset of partitions in which `read` found no message after the landed offset.

        A committed transaction ends with such an offset, and an aborted one has no other offsets. Once the broker
        removes these offsets, a position before them would look like a loss.

        Args:
            landed: Last landed offset per partition.
        """
        return {
            source: end
            for source, (last, end) in self._tails.items()
            if end > last and landed.get(source, NOTHING) == last
        }

    def _read_batches(
        self, start: Positions, target: Positions, stop: Callable[[], bool]
    ) -> Generator[pa.Table, None, None]:
        client, settings = self._client, self._client.settings
        sources = {source.partition: source for source in start}
        progress = _Progress(
            sources,
            {partition: target[source] for partition, source in sources.items()},
            {partition: start[source] for partition, source in sources.items()},
            set(sources),
        )
        batch = Batch(client.topic, next(iter(start)).topic_id, settings.land_batch_rows, settings.land_batch_bytes)
        last_event = monotonic()
        while progress.open_partitions and not stop():
            client.faults.retry(client.consumer)
            events = client.consumer.consume(batch.call_rows, timeout=POLL_SECONDS)
            messages, lost = self._select_messages(events, progress)
            batch.add(messages)
            if messages or any(map(is_end, events)):
                last_event = monotonic()
            failure = lost or self._find_stall(progress.open_partitions, last_event)
            if batch.rows and (batch.is_full or failure or not progress.open_partitions):
                yield self._take(batch)
                last_event = monotonic()
            if failure:
                raise failure
        if batch.rows:
            yield self._take(batch)

    def _select_messages(
        self, events: Iterable[Message], progress: _Progress
    ) -> tuple[list[Message], MessagesLostError | None]:
        """Returns the messages within the bounds, and the error that ends the read; None if there is no error."""
        messages: list[Message] = []
        for event in events:
            partition = event.partition()
            try:
                is_message = self._client.is_next_message(event, progress.next_offsets)
            except MessagesLostError as error:
                return messages, error
            offset = event.offset()
            if partition not in progress.open_partitions or offset is None:
                continue
            end = progress.ends[partition]
            if is_message:
                if offset <= end:
                    messages.append(event)
                    progress.next_offsets[partition] = offset + 1
                if offset >= end:
                    progress.open_partitions.discard(partition)
            elif is_end(event) and partition not in self._client.faults and offset > end:
                # The partition may end in offsets without a message, such as a transaction's marker.
                progress.open_partitions.discard(partition)
                source = progress.sources[partition]
                last = self._last_landed(source, progress.next_offsets[partition] - 1)
                self._tails[source] = (last, offset - 1)
        return messages, None

    def _find_stall(self, open_partitions: set[int], last_event: float) -> BrokerError | None:
        """Returns the error if the open partitions can yield no more messages; None if they still may."""
        client = self._client
        patience = client.settings.kafka_timeout_seconds
        is_silent = monotonic() - last_event > patience
        if client.faults and open_partitions and (is_silent or open_partitions <= client.unreadable.keys()):
            return client.faults.error()
        return unreachable_error(client.broker, f"no messages for {patience:g} s") if is_silent else None

    def _take(self, batch: Batch) -> pa.Table:
        """Returns the messages of the batch, after a check that they belong to the current topic."""
        table = batch.take()
        self._client.check_topic_id(table["topic_id"][0].as_py())
        return table

    def _last_landed(self, source: SourcePartition, last: int) -> int:
        """Returns the last landed offset of the partition once all messages up to `last` have landed."""
        before, end = self._tails.get(source, (last, last))
        return before if end == last else last

    def _is_empty_tail(self, source: SourcePartition, known: int, end: int) -> bool:
        """Returns whether an earlier read found only offsets without messages after `known` up to `end`."""
        tail_known, tail_end = self._tails.get(source, (None, NOTHING))
        return tail_known == known and end <= tail_end
