"""The platform survives hundreds of kills, with three brokers and with an object store."""

from __future__ import annotations

from pathlib import Path

import pytest

from fraud_assets_tests.support.chaos_runs import chaos

pytestmark = pytest.mark.xdist_group("apache")


@pytest.mark.timeout(3600)
def test_two_hundred_kills_on_three_brokers_lose_and_repeat_no_message(tmp_path: Path) -> None:
    outcome = chaos(tmp_path, "--kills", "200", "--brokers", "3", "--seed", "7", seconds=3500)
    assert outcome["kills"] >= 200
    assert len(outcome["faults"]) >= 10


@pytest.mark.timeout(1800)
def test_forty_kills_with_the_lake_on_an_object_store_lose_and_repeat_no_message(tmp_path: Path) -> None:
    outcome = chaos(tmp_path, "--kills", "40", "--object-store", "--rate", "100", "--seed", "3", seconds=1700)
    assert outcome["kills"] >= 40
    assert {"kill_store", "freeze_store"} <= set(outcome["faults"])
