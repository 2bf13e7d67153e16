"""The progress lines of live traffic if the output is not a terminal."""

from __future__ import annotations

import pytest

from fraud_assets.simulator import pace


@pytest.mark.parametrize(
    ("sent", "seconds", "line"),
    [(2, 60.0, "live: 2 messages, 2.0 a minute"), (120, 60.0, "live: 120 messages, 2 a second")],
)
def test_slow_traffic_shows_its_rate_per_minute(
    sent: int, seconds: float, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(pace.time, "monotonic", lambda: now)
    with pace.show_progress(None, "live") as tick:
        for _ in range(sent - 1):
            tick()
        now = seconds
        tick()
    assert capsys.readouterr().err.splitlines()[-1] == line
