"""The chaos harness kills processes at random and then counts every message."""

from __future__ import annotations

from pathlib import Path

import pytest

from fraud_assets.chaos.traffic import Sent
from fraud_assets.chaos.verification import verify
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings
from fraud_assets_tests.support.chaos_runs import chaos

pytestmark = pytest.mark.xdist_group("apache")


def test_ten_kills_lose_and_repeat_no_message(tmp_path: Path) -> None:
    outcome = chaos(tmp_path, "--minutes", "0", "--kills", "10", "--rate", "150", seconds=280)
    assert outcome["kills"] >= 10
    assert outcome["transactions"] > 2000
    assert all(check["holds"] for check in outcome["checks"])


def test_verification_finds_a_lost_and_a_repeated_message(lake: Lake, settings: Settings) -> None:
    """The harness proves nothing unless its verification fails when it must."""
    import pyarrow as pa

    from fraud_assets.chaos.traffic import NUMBER
    from fraud_assets.core.schema import HEADERS, TIME, raw_transactions
    from fraud_assets.lake.append import append_landed

    def land(numbers: list[int], first_offset: int) -> None:
        count = len(numbers)
        rows = {
            "topic": pa.repeat("t", count),
            "topic_id": pa.repeat("l", count),
            "partition": pa.array([0] * count, pa.int32()),
            "offset": pa.array(range(first_offset, first_offset + count), pa.int64()),
            "timestamp": pa.nulls(count, TIME),
            "key": pa.nulls(count, pa.binary()),
            "value": pa.array([b"{"] * count),
            "headers": pa.array([[{"key": NUMBER, "value": b"%d" % n}] for n in numbers], HEADERS),
        }
        append_landed(lake, raw_transactions, pa.table(rows))

    def failing(numbers: set[int], failed_processes: list[str]) -> set[str]:
        return {check.name for check in verify(lake, settings, Sent(numbers), failed_processes) if not check.holds}

    land([0, 1, 2], 0)
    assert "every transaction landed once" not in failing({0, 1, 2}, [])
    # The messages are landed, but they are neither in features nor in quarantine.
    assert "every landed transaction is once in features or quarantine" in failing({0, 1, 2}, [])
    assert "every transaction landed once" in failing({0, 1, 2, 3}, [])
    land([2], 3)
    assert "every transaction landed once" in failing({0, 1, 2}, [])
    assert "no process ended by itself" in failing({0, 1, 2}, ["land-1 ended"])
