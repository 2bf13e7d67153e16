"""The demo with the handbook's data set."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from fraud_assets.settings import load_settings
from fraud_assets_tests.support.demo_runs import demo


def test_a_demo_of_the_handbook_takes_at_most_three_minutes_and_two_gigabytes(tmp_path: Path) -> None:
    """The demo lands and scores all 1,236,698 rows of the five transaction files."""
    data = load_settings().handbook_data.absolute()
    files = sorted(data.glob("transactions_*.parquet"))
    if not files:
        pytest.skip(f"the handbook's data is not at {data} (FRAUD_HANDBOOK_DATA)")
    summary = demo(tmp_path / "home", *(part for file in files for part in ("--data", str(file))))
    rows = 1_236_698
    assert (summary["landed"], summary["features"], summary["scored"]) == (rows, rows, rows)
    assert summary["seconds"] < 180
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < 2e9
