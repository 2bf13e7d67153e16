"""Landing: topics and dropped files to the landing tables, labels first, exactly once by source position."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.pseudonyms import pseudonymise
from fraud_assets.core.schema import Table, fraud_labels, quarantined_transactions, raw_transactions
from fraud_assets.kafka.schemas import label_decoder, transaction_decoder
from fraud_assets.lake.append import append_landed
from fraud_assets.lake.known_topics import positions_in
from fraud_assets.lake.positions import Positions, SourcePartition, committed_offset, positions_of
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from fraud_assets.ingest.files.landing import FileReport
    from fraud_assets.kafka.consumer import TopicReader

Progress = Callable[[str], None]
LandTopics = Callable[..., dict[str, "LandingReport"]]
"""`land_topics`, or what does the same on another engine."""


def never() -> bool:
    """Nobody asks to stop."""
    return False


def silent(line: str) -> None:
    """Progress that nobody reads."""


@dataclass(frozen=True)
class LandingReport:
    """What one landing did to one table.

    `rows` are those that this call committed, `bytes` those of keys and bodies that it read for them,
    `quarantined` the labels that it refused. `offsets` and `lag` are per `topic/partition`: the last offset
    in the table, and the messages up to the end seen at the start that are not in it. `failed` are dropped files that
    went to `failed/`, and `stuck` entries of the drop folder that could not be taken and are still there, with reasons.
    """

    table: str
    rows: int = 0
    bytes: int = 0
    quarantined: int = 0
    seconds: float = 0.0
    offsets: Mapping[str, int] = field(default_factory=dict)
    lag: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    stuck: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_news(self) -> bool:
        """Whether rows or files came in, or entries of the drop folder could not be landed."""
        return bool(self.rows or self.files or self.failed or self.stuck)

    def metadata(self) -> dict[str, Any]:
        """The report as JSON values, for Dagster and the command line."""
        values: dict[str, Any] = {
            "rows": self.rows,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
            "offsets": dict(self.offsets),
            "lag": dict(self.lag),
            "files": dict(self.files),
        }
        if self.table == fraud_labels.name:
            values["quarantined_labels"] = self.quarantined
        if self.failed:
            values["failed_files"] = dict(self.failed)
        if self.stuck:
            values["stuck_files"] = dict(self.stuck)
        return values


@dataclass
class TopicReaders:
    """One reader a topic, for one landing or for many. A context manager.

    Attributes:
        drained: ends of the labels topic up to which the lake is known to hold it.
    """

    labels: TopicReader
    transactions: TopicReader
    drained: Positions = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings, group: str = "") -> Self:
        """Readers of both topics; with a `group` the transactions' may follow as a member of it.

        Raises:
            BrokerError: no broker is named, or the embedded one is gone.
        """
        from fraud_assets.kafka.broker import broker_of
        from fraud_assets.kafka.consumer import TopicReader

        broker = broker_of(settings)
        with ExitStack() as opened:
            labels = opened.enter_context(TopicReader(settings.labels_topic, settings, broker))
            transactions = opened.enter_context(TopicReader(settings.transactions_topic, settings, broker, group))
            opened.pop_all()
        return cls(labels, transactions)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends both connections; where the broker is away for one of them it is for both."""
        wait = self.labels.answers and self.transactions.answers
        self.labels.close(wait=wait)
        self.transactions.close(wait=wait)


def land_everything(
    lake: Lake,
    settings: Settings,
    progress: Progress,
    *,
    transactions: bool = True,
    topics: bool = True,
    by: LandTopics | None = None,
) -> dict[str, LandingReport]:
    """Lands the drop folder, then the topics; gives a report by table name.

    Args:
        transactions: without, only the labels topic is drained (files hold transactions, so they wait).
        topics: without, only the drop folder.
        by: what lands the topics; `land_topics` if not given.

    Raises:
        BrokerError: the broker or a topic cannot be read; files landed before stay landed. Not raised where
            files landed and no broker is named at all: then the files are all there is.
        LakeError: a table cannot be written.
    """
    from fraud_assets.ingest.files.landing import land_files
    from fraud_assets.kafka.broker import broker_is_configured

    reports = empty_reports(transactions=transactions)
    if transactions:
        files = land_files(lake, settings, progress)
        reports = with_files(reports, files)
        if topics and files and not broker_is_configured(settings):
            progress("No broker is named, so only the drop folder was landed.")
            topics = False
    if topics:
        landed = (by or land_topics)(lake, settings, progress, transactions=transactions)
        reports = {name: merged(report, landed[name]) for name, report in reports.items()}
    return reports


def land_topics(
    lake: Lake,
    settings: Settings,
    progress: Progress,
    *,
    transactions: bool = True,
    readers: TopicReaders | None = None,
    stop: Callable[[], bool] = never,
) -> dict[str, LandingReport]:
    """Drains both topics to the ends seen at the start, labels first; gives a report by table name.

    Args:
        transactions: without, only labels.
        readers: open readers to use; without, they are opened and closed here.
        stop: asked between commits; when it says so, what is committed stays and the rest waits.

    Raises:
        BrokerError, MessagesLostError, LakeError: nothing is skipped; what was committed stays.
    """
    if readers is None:
        with TopicReaders.of(settings) as opened:
            return land_topics(lake, settings, progress, transactions=transactions, readers=opened, stop=stop)
    # Both ends before the first read: a label is never older news than the transactions drained after it.
    label_ends = readers.labels.end_offsets(stop)
    transaction_ends = readers.transactions.end_offsets(stop) if transactions else {}
    reports = {fraud_labels.name: land_labels(lake, settings, readers.labels, label_ends, progress, stop)}
    if transactions:
        reports[raw_transactions.name] = land_transactions(
            lake, settings, readers.transactions, transaction_ends, progress, stop
        )
    return reports


def land_labels(
    lake: Lake,
    settings: Settings,
    reader: TopicReader,
    ends: Positions,
    progress: Progress,
    stop: Callable[[], bool] = never,
) -> LandingReport:
    """Drains the labels topic up to `ends`; bad labels go to quarantine."""
    decoder = label_decoder(settings)

    def append(batch: pa.Table) -> tuple[int, int]:
        return append_labels(lake, settings, pseudonymise(batch, settings, decoder))

    return _drain(lake, fraud_labels, reader, ends, append, progress, stop)


def land_transactions(
    lake: Lake,
    settings: Settings,
    reader: TopicReader,
    ends: Positions,
    progress: Progress,
    stop: Callable[[], bool] = never,
) -> LandingReport:
    """Drains the transactions topic up to `ends`, every body byte for byte but for what FRAUD_PSEUDONYMISE names."""

    def append(batch: pa.Table) -> tuple[int, int]:
        return append_transactions(lake, settings, batch, reader.accepted), 0

    return _drain(lake, raw_transactions, reader, ends, append, progress, stop)


def land_batch(
    lake: Lake,
    settings: Settings,
    readers: TopicReaders,
    batch: pa.Table,
    reached: Positions,
    stop: Callable[[], bool] = never,
) -> dict[str, LandingReport]:
    """Drains the labels topic to its end of this moment, then appends a batch of transactions; a report by table.

    `reached` are the positions that go with the batch, which may have no rows; see `TopicReader.follow`.
    When `stop` says so before the labels are drained, the transactions are left for the next time.

    Raises:
        TopicRecreatedError: the batch is of a topic that is no more.
        BrokerError, MessagesLostError, LakeError: nothing is skipped, what was committed stays, and the same batch
            may be tried again.
    """
    reports = empty_reports()
    reports[fraud_labels.name], is_drained = land_new_labels(lake, settings, readers, stop)
    if reached and is_drained:
        readers.transactions.check_topic_id(next(iter(reached)).topic_id)
        begun = monotonic()
        rows = append_transactions(lake, settings, batch, readers.transactions.accepted, reached)
        reports[raw_transactions.name] = LandingReport(
            raw_transactions.name,
            rows,
            payload_bytes(batch) if rows else 0,
            seconds=monotonic() - begun,
            offsets=by_place(reached),
        )
    return reports


def land_new_labels(
    lake: Lake, settings: Settings, readers: TopicReaders, stop: Callable[[], bool] = never
) -> tuple[LandingReport, bool]:
    """Drains the labels topic to its end of this moment; gives the report, and False where `stop` came before the end.

    Most of the time there is no new label, and the table need not be opened to know it.
    """
    ends = readers.labels.end_offsets(stop)
    if ends == readers.drained:
        return LandingReport(fraud_labels.name), True
    report = land_labels(lake, settings, readers.labels, ends, silent, stop)
    readers.drained = {} if any(report.lag.values()) else ends
    return report, ends == readers.drained or not stop()


def append_transactions(
    lake: Lake, settings: Settings, batch: pa.Table, accepted: Mapping[str, str], reached: Positions | None = None
) -> int:
    """Appends a batch of messages to `raw_transactions`; gives the rows that it did not hold yet.

    `reached` are the positions that go with it (default: those of its rows).
    What FRAUD_ACCEPT_LOST gave up (`accepted`, see `TopicReader`) is noted in the commit.
    """
    rows = pseudonymise(batch, settings, transaction_decoder(settings))
    return append_landed(lake, raw_transactions, rows, reached, note_of(accepted))


def note_of(accepted: Mapping[str, str]) -> dict[str, str]:
    """What a commit's metadata says of messages that were given up."""
    lost = ", ".join(f"{place}: {offsets}" for place, offsets in sorted(accepted.items()))
    return {"accepted_lost": lost} if lost else {}


def append_labels(
    lake: Lake,
    settings: Settings,
    raw: pa.Table,
    parsed: tuple[pa.Table, pa.Table] | None = None,
    positions: Positions | None = None,
) -> tuple[int, int]:
    """Appends a batch of labels: bad ones to quarantine first, then the good; gives rows of good and of bad.

    `raw` are messages, of which `parsed` are the good and the rejected labels (default: `parse_labels`).
    A retry after a kill in between parses the same messages the same way and finds the quarantine done.
    """
    from fraud_assets.core.parsing import parse_labels

    good, rejected = parsed or parse_labels(raw, settings, label_decoder(settings))
    reached = positions_of(raw) if positions is None else positions
    refused = append_landed(lake, quarantined_transactions, rejected, reached) if rejected.num_rows else 0
    return append_landed(lake, fraud_labels, good, reached), refused


def empty_reports(*, transactions: bool = True) -> dict[str, LandingReport]:
    """A report of nothing for each landing table, labels first."""
    tables = (fraud_labels, raw_transactions) if transactions else (fraud_labels,)
    return {table.name: LandingReport(table.name) for table in tables}


def merged(first: LandingReport, second: LandingReport) -> LandingReport:
    """Two reports on one table as one."""
    return LandingReport(
        first.table,
        first.rows + second.rows,
        first.bytes + second.bytes,
        first.quarantined + second.quarantined,
        first.seconds + second.seconds,
        {**first.offsets, **second.offsets},
        {**first.lag, **second.lag},
        {**first.files, **second.files},
        {**first.failed, **second.failed},
        {**first.stuck, **second.stuck},
    )


def with_files(reports: dict[str, LandingReport], files: list[FileReport]) -> dict[str, LandingReport]:
    """Reports with what the drop folder added."""
    for file in files:
        failed = {file.name: file.reason} if file.reason and file.moved_to else {}
        stuck = {file.name: file.reason} if file.reason and not file.moved_to else {}
        for part in (
            LandingReport(
                fraud_labels.name,
                file.labels,
                quarantined=file.quarantined_labels,
                files={file.name: file.labels} if file.labels else {},
            ),
            LandingReport(
                raw_transactions.name,
                file.rows,
                file.bytes,
                seconds=file.seconds,
                files={file.name: file.rows} if file.rows or not file.reason else {},
                failed=failed,
                stuck=stuck,
            ),
        ):
            reports[part.table] = merged(reports[part.table], part)
    return reports


def _drain(
    lake: Lake,
    table: Table,
    reader: TopicReader,
    ends: Positions,
    append: Callable[[pa.Table], tuple[int, int]],
    progress: Progress,
    stop: Callable[[], bool],
) -> LandingReport:
    """Reads from what the table holds to `ends` and appends batch by batch.

    `append` gives the rows that it kept and those that it refused; fewer than the batch has means that another
    lander is ahead, and reading goes on from what the table holds by then.
    """
    begun = monotonic()
    rows = size = quarantined = 0
    ahead = True
    known = positions_in(lake, table, ends, lambda: reader.log_starts(stop))
    while ahead and not stop():
        ahead = False
        with closing(reader.read(known, ends, stop)) as batches:
            for batch in batches:
                kept, refused = append(batch)
                rows, quarantined = rows + kept, quarantined + refused
                known = {**known, **positions_of(batch)}
                if kept or refused:
                    size += payload_bytes(batch)
                    progress(f"{table.name}: {rows:,} rows landed from {reader.topic}")
                if stop():
                    break
                if kept + refused < batch.num_rows:
                    ahead = True
                    break
        if ahead:
            known = committed_offsets(lake, table, ends)
    if tails := reader.tails(known):
        reader.check_topic_id(next(iter(tails)).topic_id)
        append_landed(lake, table, table.schema.empty_table(), tails, note_of(reader.accepted))
        known = {**known, **tails}
    return LandingReport(
        table.name,
        rows,
        size,
        quarantined,
        monotonic() - begun,
        by_place(known),
        by_place({stream: max(0, end - known[stream]) for stream, end in ends.items()}),
    )


def committed_offsets(lake: Lake, table: Table, streams: Iterable[SourcePartition]) -> dict[SourcePartition, int]:
    """Last offset of each stream that the table holds now; -1 if none."""
    handle = lake.open(table)
    return {stream: committed_offset(handle, stream) for stream in streams}


def payload_bytes(batch: pa.Table) -> int:
    """Bytes of keys and bodies."""
    lengths = [pc.sum(pc.binary_length(batch[name])).as_py() or 0 for name in ("key", "value")]
    return sum(lengths)


def by_place(numbers: Positions) -> dict[str, int]:
    """Numbers by `topic/partition`, as reports have them."""
    return {f"{stream.topic}/{stream.partition}": number for stream, number in sorted(numbers.items())}
