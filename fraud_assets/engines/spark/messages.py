"""Converts the messages that Spark reads from Kafka to the landing schema and writes data files, on the executors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.pseudonyms import pseudonymise
from fraud_assets.core.schema import MESSAGES, TIME, raw_transactions
from fraud_assets.engines.landing_tables import count_payload_bytes
from fraud_assets.engines.spark.headers import headers_from_text
from fraud_assets.engines.spark.tables import DATA_FILE
from fraud_assets.kafka.message_batch import LATEST
from fraud_assets.kafka.schemas import create_transaction_decoder
from fraud_assets.lake.append import stamp_ingest
from fraud_assets.lake.data_files import DataFile, write_data_files
from fraud_assets.lake.location import TableLocation
from fraud_assets.lake.positions import Positions, select_after
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


_NO_TIME = -1
"""Kafka's `timestampType` of a message without a time."""
_REPORT = pa.schema(
    [
        pa.field("files", pa.list_(pa.struct(DATA_FILE))),
        pa.field("bytes", pa.int64()),
        pa.field("newest", TIME),
    ]
)


@dataclass(frozen=True)
class WrittenFiles:
    """Data files that are not committed yet.

    Attributes:
        files: The data files.
        bytes: Bytes of the keys and bodies in `files`.
        newest: Latest message time in `files`; None if no message has one.
    """

    files: list[DataFile] = field(default_factory=list)
    bytes: int = 0
    newest: datetime | None = None

    @property
    def rows(self) -> int:
        """Number of rows in `files`."""
        return sum(file.rows for file in self.files)


@dataclass(frozen=True)
class MessageWriter:
    """Writes messages to data files. Every task gets a copy.

    Attributes:
        location: The location of the table.
        settings: The settings of pseudonyms and formats.
        topic: The name of the topic.
        topic_id: The id of the topic.
        held: Offsets that the table holds. Messages up to these offsets are skipped.
        moment: The landing time of all messages.
    """

    location: TableLocation
    settings: Settings
    topic: str
    topic_id: str
    held: Positions
    moment: datetime

    def write(self, frame: DataFrame, tasks: int) -> WrittenFiles:
        """Writes rows of Spark's Kafka source to data files, one for each task.

        Args:
            frame: The rows.
            tasks: Maximum number of tasks.

        Returns:
            The data files of all tasks, not committed.
        """
        from pyspark.sql import functions as F  # noqa: N812
        from pyspark.sql.pandas.types import from_arrow_schema

        writer = self
        flat = frame.withColumn("headers", F.to_json("headers"))

        def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            yield writer._write_part(batches)

        reports = flat.coalesce(tasks).mapInArrow(run, from_arrow_schema(_REPORT)).toArrow().to_pylist()
        return WrittenFiles(
            [DataFile(**file) for report in reports for file in report["files"]],
            sum(report["bytes"] for report in reports),
            max((report["newest"] for report in reports if report["newest"]), default=None),
        )

    def _write_part(self, batches: Iterator[pa.RecordBatch]) -> pa.RecordBatch:
        """Writes the messages of one task and returns its report."""
        decoder = create_transaction_decoder(self.settings)
        size, newest = 0, None

        def rows() -> Iterator[pa.RecordBatch]:
            nonlocal size, newest
            for batch in batches:
                messages = to_messages(batch, self.topic_id)
                fresh = select_after(messages, self.held)
                if fresh.num_rows:
                    size += count_payload_bytes(fresh)
                    newest = max(filter(None, (newest, pc.max(fresh["timestamp"]).as_py())), default=None)
                    treated = pseudonymise(fresh, self.settings.pseudonym_policy, decoder)
                    yield from stamp_ingest(treated, raw_transactions, self.moment).to_batches()

        files = [vars(file) for file in write_data_files(self.location, raw_transactions, rows())]
        report = {"files": files, "bytes": size, "newest": newest}
        return pa.RecordBatch.from_pylist([report], schema=_REPORT)


def to_messages(batch: pa.RecordBatch, topic_id: str) -> pa.Table:
    """Converts rows of Spark's Kafka source, with their headers as Spark's JSON, to the schema `MESSAGES`."""
    milliseconds = pc.divide(batch["timestamp"].cast(pa.int64()), 1000)
    has_time = pc.and_(
        pc.not_equal(batch["timestampType"], _NO_TIME),
        pc.and_(pc.greater_equal(milliseconds, 0), pc.less_equal(milliseconds, LATEST)),
    )
    columns = {
        "topic_id": pa.repeat(pa.scalar(topic_id, pa.string()), batch.num_rows),
        "timestamp": pc.if_else(has_time, batch["timestamp"], pa.scalar(None, batch["timestamp"].type)),
    }
    columns["headers"] = headers_from_text(batch["headers"])
    arrays = [
        (columns[name] if name in columns else batch[name]).cast(kind)
        for name, kind in zip(MESSAGES.names, MESSAGES.types, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=MESSAGES)
