"""Fills lakes for the benchmarks in seconds by committing Arrow tables, and measures and compares durations."""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.schema import HEADERS, TIME, fraud_labels, raw_transactions
from fraud_assets.lake.append import append_landed
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings, load_settings

FEEDBACK_DELAY_US = 7 * 86_400 * 1_000_000


def log_progress(text: str) -> None:
    """Prints progress to standard error."""
    print(text, file=sys.stderr, flush=True)


def handbook_files(settings: Settings | None = None) -> list[Path]:
    """Returns the files of the handbook's transactions. If there are none, prints the reason and ends the benchmark."""
    folder = (settings or load_settings()).handbook_data
    files = sorted(folder.glob("transactions_*.parquet"))
    if not files:
        print(f"Skipped: no handbook data in {folder.absolute()} (set FRAUD_HANDBOOK_DATA).")
        sys.exit(0)
    return files


def handbook_rows(file: Path) -> pa.Table:
    """Returns the five fields of the contract, `is_fraud`, and `body`, the JSON message."""
    import duckdb

    with duckdb.connect() as connection:
        return connection.sql(
            f"""
            select TRANSACTION_ID::varchar as transaction_id, TX_DATETIME as tx_datetime,
                CUSTOMER_ID::varchar as customer_id, TERMINAL_ID::varchar as terminal_id, TX_AMOUNT as tx_amount,
                TX_FRAUD = 1 as is_fraud,
                encode(to_json(struct_pack(transaction_id := TRANSACTION_ID, tx_datetime := TX_DATETIME,
                    customer_id := CUSTOMER_ID, terminal_id := TERMINAL_ID, tx_amount := TX_AMOUNT))::varchar) as body
            from read_parquet('{file}')
            """
        ).to_arrow_table()


def land_handbook(lake: Lake, files: list[Path]) -> int:
    """Lands each file as its own source partition, with a label for each transaction, known seven days later.

    Returns:
        The number of landed transactions.
    """
    rows = 0
    for file in files:
        data = handbook_rows(file)
        known = pc.add(data["tx_datetime"].cast(pa.int64()), FEEDBACK_DELAY_US).cast(pa.timestamp("us")).cast(TIME)
        land(lake, f"file:{file.name}", data["body"], data["transaction_id"], data["is_fraud"], known)
        rows += data.num_rows
    return rows


def land(
    lake: Lake, topic: str, bodies: pa.Array, ids: pa.Array, frauds: pa.Array, known: pa.Array, first_offset: int = 0
) -> None:
    """Commits labels and messages to the landing tables, as the lander does."""
    count = len(bodies)
    position = {
        "topic": pa.repeat(topic, count),
        "topic_id": pa.repeat(sha256(topic.encode()).hexdigest(), count),
        "partition": pa.repeat(pa.scalar(0, pa.int32()), count),
        "offset": pa.array(range(first_offset, first_offset + count), pa.int64()),
    }
    empty = pa.nulls(count, pa.binary())
    labels = {"transaction_id": ids, "is_fraud": frauds, "labelled_at": known, "value": empty}
    append_landed(lake, fraud_labels, pa.table({**position, **labels}))
    message = {"timestamp": pa.nulls(count, TIME), "key": empty, "value": bodies, "headers": pa.nulls(count, HEADERS)}
    append_landed(lake, raw_transactions, pa.table({**position, **message}))


def seconds(action: Callable[[], object]) -> float:
    """Returns the wall time of a call in seconds."""
    gc.collect()
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def alternately(repeats: int, **actions: Callable[[], float]) -> dict[str, float]:
    """Returns the median result of each action. The actions alternate, so that other load affects all equally."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(repeats):
        for name, action in actions.items():
            taken[name].append(action())
        log_progress(
            f"round {number + 1} of {repeats}: " + ", ".join(f"{name} {taken[name][-1]:.2f} s" for name in actions)
        )
    return {name: statistics.median(values) for name, values in taken.items()}


def describe_aim(ratio: float, aim: float, *, least: bool) -> str:
    """Returns a text that states the aim and whether it is met."""
    met = ratio >= aim if least else ratio <= aim
    return f"aim: at {'least' if least else 'most'} {aim}, {'met' if met else 'NOT met'}"
