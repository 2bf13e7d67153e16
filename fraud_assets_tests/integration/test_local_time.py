"""Local times come from `zoneinfo`, with or without a time zone database of the system."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest

from fraud_assets.core.local_time import format_iso, to_local_times

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST, LAST = (int((datetime(year, 1, 1, tzinfo=UTC) - EPOCH).total_seconds()) for year in (1900, 2200))


@pytest.mark.parametrize(
    "zone",
    [
        "UTC",
        "Europe/Brussels",
        "Asia/Kolkata",  # an offset with half an hour
        "America/St_Johns",  # changed at one minute past midnight
        "Australia/Lord_Howe",  # changes by half an hour
        "Pacific/Apia",  # skipped a day
        "Europe/Amsterdam",  # offsets in seconds before 1937
        "Africa/Casablanca",
    ],
)
def test_local_times_equal_those_of_zoneinfo(zone: str) -> None:
    seconds = np.random.default_rng(1).integers(FIRST, LAST, 2_000)
    # Add the seconds around each offset change of two years. After 2037, Arrow ignores daylight saving time.
    for year in (2026, 2040):
        start = int((datetime(year, 1, 1, tzinfo=UTC) - EPOCH).total_seconds())
        offsets = [_offset(zone, start + 900 * k) for k in range(4 * 24 * 366)]
        changes = [start + 900 * k for k in range(1, len(offsets)) if offsets[k] != offsets[k - 1]]
        seconds = np.concatenate([seconds, [change + shift for change in changes for shift in (-1, 0, 1)]])
    times = pa.array(seconds.astype(np.int64) * 1_000_000).cast(pa.timestamp("us", tz="UTC"))
    local = to_local_times(pa.chunked_array([times[:1_000], times[1_000:]]), zone).cast(pa.int64()).to_numpy()
    assert local.tolist() == [(second + _offset(zone, second)) * 1_000_000 for second in seconds.tolist()]


def _offset(zone: str, second: int) -> int:
    offset = (EPOCH + timedelta(seconds=second)).astimezone(ZoneInfo(zone)).utcoffset()
    assert offset is not None
    return round(offset.total_seconds())


def test_an_empty_column_is_converted() -> None:
    times = pa.chunked_array([], pa.timestamp("us", tz="UTC"))
    assert to_local_times(times, "Europe/Brussels").type == pa.timestamp("us")


def test_times_are_formatted_as_iso_text() -> None:
    assert format_iso(pa.array([0, None], pa.timestamp("ms", "Europe/Brussels"))).to_pylist() == [
        "1970-01-01T00:00:00.000000Z",
        None,
    ]
    assert format_iso(pa.array([1_500], pa.timestamp("ns"))).to_pylist() == ["1970-01-01T00:00:00.000001"]


SCRIPT = """
import pyarrow as pa
from datetime import datetime, UTC
import pyarrow.compute as pc
try:
    pc.local_timestamp(pa.array([0], pa.timestamp("us", tz="Europe/Brussels")))
except pa.ArrowInvalid:
    pass
else:
    raise SystemExit("Arrow found a time zone database")
from pathlib import Path
from fraud_assets.core.parsing import parse_transactions
from fraud_assets.lake.tables import Lake, read
from fraud_assets.core.schema import fraud_labels, transaction_features
from fraud_assets.stages.features import process_landed
from fraud_assets.ingest.landing import land_once
from fraud_assets.settings import load_settings
import pyarrow.parquet as pq, sys
settings = load_settings(_env_file=None, home=Path(sys.argv[1]), time_zone="Europe/Brussels", file_quiet_seconds=0)
settings.incoming.mkdir(parents=True)
# Saturday 06:30 UTC is Saturday 07:30 in Brussels, Sunday 22:30 UTC is Monday 00:30.
times = [datetime(2026, 7, 4, 4, 30, tzinfo=UTC), datetime(2026, 7, 4, 6, 30, tzinfo=UTC),
         datetime(2026, 7, 5, 22, 30, tzinfo=UTC)]
pq.write_table(pa.table({"transaction_id": ["a", "b", "c"], "tx_datetime": pa.array(times, pa.timestamp("us", "UTC")),
    "customer_id": ["c"] * 3, "terminal_id": ["t"] * 3, "tx_amount": [1.0] * 3, "is_fraud": [0, 1, None]}),
    settings.incoming / "day.parquet")
lake = Lake.of(settings)
land_once(lake, settings, transactions=True, topics=False)
process_landed(lake, settings)
rows = read(lake.open(transaction_features)).sort_by("transaction_id")
print("flags", rows["tx_during_weekend"].to_pylist(), rows["tx_during_night"].to_pylist(),
      read(lake.open(fraud_labels)).num_rows)
"""


def test_landing_and_features_work_without_a_time_zone_database_of_the_system(tmp_path: Path) -> None:
    hide_database = "mount -t tmpfs tmpfs /usr/share/zoneinfo"
    if subprocess.run(["unshare", "-m", "sh", "-c", hide_database], capture_output=True, check=False).returncode:
        pytest.skip("the time zone database cannot be hidden here (needs root)")
    (tmp_path / "slim.py").write_text(SCRIPT)
    result = subprocess.run(
        [
            "unshare",
            "-m",
            "sh",
            "-c",
            f'{hide_database} && exec "$@"',
            "sh",
            sys.executable,
            "slim.py",
            str(tmp_path / "home"),
        ],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "flags [1, 1, 0] [1, 0, 1] 2"
