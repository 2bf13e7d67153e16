"""Compares the first and the last of many landing commits under maintenance: python benchmarks/commits.py [--full]

The benchmark makes 50,000 commits of 10 messages with --full, else 5,000. At one commit per second, 50,000 commits take
14 hours. Maintenance runs in a separate process after every 900 commits, which is the rate of its schedule. The log
keeps the entries of 7,200 commits, as FRAUD_LOG_HOURS does at one commit per second. For comparison, 2,000 commits run
without maintenance. The benchmark prints wall and CPU time, because other load on the machine changes only wall time.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import pyarrow as pa

from fraud_assets.core.schema import HEADERS, TIME, raw_transactions
from fraud_assets.lake.append import append_landed
from fraud_assets.lake.tables import Lake

ROWS, MAINTENANCE_EVERY, KEPT = 10, 900, 7_200
MAINTENANCE = """
import sys
from fraud_assets.core.schema import raw_transactions
from fraud_assets.operations import maintenance as maintenance
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import load_settings
lake, settings = Lake(sys.argv[1]), load_settings()
for line in sys.stdin:
    # The log keeps as many commits as the setting keeps at one commit per second.
    lake.open(raw_transactions).alter.set_table_properties({maintenance._LOG_RETENTION: f"interval {line.strip()} seconds"})
    maintenance._shorten_log = lambda handle, settings: (handle.create_checkpoint(), handle.cleanup_metadata())
    maintenance.maintain_table(lake, raw_transactions, settings)
    print("done", flush=True)
"""


def message_rows(first: int) -> pa.Table:
    return pa.table(
        {
            "topic": pa.repeat("transactions", ROWS),
            "topic_id": pa.repeat("benchmark", ROWS),
            "partition": pa.array([0] * ROWS, pa.int32()),
            "offset": pa.array(range(first, first + ROWS), pa.int64()),
            "timestamp": pa.nulls(ROWS, TIME),
            "key": pa.array([b"4711"] * ROWS, pa.binary()),
            "value": pa.array([b'{"transaction_id": 1, "tx_amount": 12.5}' * 4] * ROWS, pa.binary()),
            "headers": pa.nulls(ROWS, HEADERS),
        }
    )


def commits(count: int, maintenance: bool) -> tuple[list[float], list[float]]:
    """Returns the wall and CPU seconds of each commit."""
    seconds, busy = [], []
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(str(Path(folder) / "lake"))
        lake.open(raw_transactions)
        tender = subprocess.Popen(
            [sys.executable, "-c", MAINTENANCE, lake.root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        begun = time.monotonic()
        for number in range(count):
            began, used = time.perf_counter(), time.process_time()
            append_landed(lake, raw_transactions, message_rows(number * ROWS))
            seconds.append(time.perf_counter() - began)
            busy.append(time.process_time() - used)
            if maintenance and number % MAINTENANCE_EVERY == MAINTENANCE_EVERY - 1:
                rate = (number + 1) / (time.monotonic() - begun)
                tender.stdin.write(f"{max(1, round(KEPT / rate))}\n")
            if number % 1000 == 999:
                log = sum(1 for _ in (Path(lake.root) / "raw_transactions" / "_delta_log").iterdir())
                median = 1000 * statistics.median(seconds[-1000:])
                print(f"  {number + 1:6,} commits: {median:5.1f} ms each, {log:,} files in the log", flush=True)
        tender.stdin.close()
        tender.wait(60)
    return seconds, busy


def main() -> None:
    count = 50_000 if "--full" in sys.argv else 5_000
    result = {}
    for name, number, maintenance in (("with maintenance", count, True), ("without", 2_000, False)):
        print(f"{number:,} commits of {ROWS} messages, {name}")
        result[name] = {}
        for kind, measured in zip(("wall", "cpu"), commits(number, maintenance), strict=True):
            parts = (measured[a:b] for a, b in pairwise(range(0, number + 1, 1000)))
            thousands = [statistics.median(part) for part in parts]
            # The log has reached its maximum length once it contains KEPT commits.
            steady = thousands[min(KEPT // 1000, len(thousands) - 1)]
            result[name][kind] = {
                "first_1000_ms": round(1000 * thousands[0], 1),
                "last_1000_ms": round(1000 * thousands[-1], 1),
                "worst_1000_ms": round(1000 * max(thousands), 1),
                "last_of_first": round(thousands[-1] / thousands[0], 2),
                "last_of_steady": round(thousands[-1] / steady, 2),
            }
            print(f"{name}, {kind}: {result[name][kind]}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
