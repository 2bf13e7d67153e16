"""Calibrates the alert threshold of a model: the lowest one whose alerts fit the daily budget of the analysts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.schema import (
    ALERT_THRESHOLDS,
    FEATURE_VERSION,
    MODEL_INPUTS,
    alert_thresholds,
)
from fraud_assets.core.scoring import ModelVersion, score
from fraud_assets.core.threshold import (
    ScoredTraffic,
    count_scores_needed,
    find_lowest_threshold,
    merge_traffic,
    summarize_traffic,
)
from fraud_assets.engines.base import Engine, RowFunction, TrainingWindow
from fraud_assets.errors import LakeError, ModelRegistryError, NotEnoughDataError
from fraud_assets.lake.append import commit_append
from fraud_assets.lake.tables import Lake, read
from fraud_assets.registry.champion import load_champion
from fraud_assets.registry.registration import record_threshold
from fraud_assets.settings import Settings
from fraud_assets.stages.training_window import choose_range, choose_window_engine, measure_window

if TYPE_CHECKING:
    import treelite

logger = logging.getLogger(__name__)

CALIBRATION_DAYS = 7
"""Days of the newest traffic that determine the threshold: a week, so that each weekday counts once."""

_TRAFFIC = pa.schema(
    [
        pa.field("rows", pa.int64()),
        pa.field("first", pa.int64()),
        pa.field("last", pa.int64()),
        pa.field("highest", pa.list_(pa.float64())),
    ]
)


@dataclass(frozen=True)
class CalibrationReport:
    """A threshold of a model version, and its effect on the window [window_start, window_end)."""

    model_version: int
    model_run_id: str
    threshold: float
    budget_per_day: float
    window_start: datetime
    window_end: datetime
    rows: int
    alerts_per_day: float
    alert_rate: float


def recalibrate(lake: Lake, settings: Settings, engine: Engine | None = None) -> CalibrationReport:
    """Calibrates a new threshold for the champion from the newest days and the current budget, without training.

    Args:
        lake: The lake.
        settings: The settings of the alert budget and the registry.
        engine: The engine that reads windows of more than FRAUD_TRAIN_MAX_ROWS rows; default: this process.

    Raises:
        NoChampionError: No champion exists yet.
        NotEnoughDataError: The lake has no features.
        LakeError: A table cannot be read or written.
    """
    current = load_champion(lake, settings)
    end = choose_range(lake, settings, None, None)[1]
    window = TrainingWindow.of(lake, end - timedelta(days=CALIBRATION_DAYS), end)
    engine = choose_window_engine(window, settings, engine)
    newest = measure_window(window, engine)[1]
    if newest is None:
        raise NotEnoughDataError(f"The lake has no features of version {FEATURE_VERSION}. Recompute them first.")
    report = calibrate(window, newest, current.model, current, settings, engine)
    store_threshold(lake, settings, report)
    try:
        record_threshold(current, report.threshold, report.budget_per_day, settings)
    except ModelRegistryError as error:
        # The threshold is already in effect.
        logger.warning(f"The registry does not show the new threshold: {error}")
    logger.info(
        f"threshold of version {current.version}: {report.threshold:.4f}, {report.alerts_per_day:.1f} alerts per day"
    )
    return report


def read_threshold(lake: Lake, model: ModelVersion, settings: Settings) -> float:
    """Reads the newest threshold of a model, identified by its version number and its MLflow run.

    Raises:
        LakeError: The model was never calibrated on this lake.
    """
    same = (pc.field("model_name") == settings.model_name) & (pc.field("model_version") == model.version)
    named = read(lake.open(alert_thresholds), ["calibrated_at", "threshold", "model_run_id"], same)
    rows = named.filter(pc.equal(named["model_run_id"], model.run_id))
    if not rows.num_rows:
        others = ", ".join(sorted(set(named["model_run_id"].to_pylist())))
        hint = (
            f"; its thresholds for this version belong to a model of another registry (run {others})" if others else ""
        )
        raise LakeError(
            f"Version {model.version} of model {settings.model_name} (MLflow run {model.run_id}) has no threshold in "
            f"{lake.uri(alert_thresholds)}{hint}, so nothing is scored. Materialize only alert_thresholds, which "
            "calibrates the champion."
        )
    newest = int(np.argmax(rows["calibrated_at"].cast(pa.int64()).to_numpy()))
    return rows["threshold"][newest].as_py()


def calibrate(
    window: TrainingWindow,
    newest: datetime,
    model: treelite.Model,
    model_version: ModelVersion,
    settings: Settings,
    engine: Engine,
) -> CalibrationReport:
    """Calibrates the threshold on the last CALIBRATION_DAYS of all the traffic in the window.

    Args:
        window: The training window.
        newest: Time of its newest transaction.
        model: The model.
        model_version: Its version.
        settings: The alert budget.
        engine: The engine that reads windows of more than FRAUD_TRAIN_MAX_ROWS rows.

    Raises:
        LakeError: A file cannot be read.
    """
    since = newest - timedelta(days=CALIBRATION_DAYS) + timedelta(microseconds=1)
    recent = TrainingWindow.of(window.lake, max(window.start, since), window.end, window.handle)
    keep = count_scores_needed(settings.alert_budget_per_day, CALIBRATION_DAYS)
    columns = ("tx_datetime", *MODEL_INPUTS)
    parts = choose_window_engine(recent, settings, engine).map_window(
        recent, columns, _make_traffic_function(model.serialize_bytes(), keep), _TRAFFIC
    )
    traffic = merge_traffic((_to_traffic(part) for part in parts.to_pylist()), keep)
    threshold = find_lowest_threshold(traffic, settings.alert_budget_per_day, settings.alert_max_rate)
    alerts = traffic.alerts(threshold)
    return CalibrationReport(
        model_version=model_version.version,
        model_run_id=model_version.run_id,
        threshold=threshold,
        budget_per_day=settings.alert_budget_per_day,
        window_start=recent.start,
        window_end=newest + timedelta(microseconds=1),
        rows=traffic.rows,
        alerts_per_day=alerts / traffic.days,
        alert_rate=alerts / traffic.rows,
    )


def _make_traffic_function(serialized: bytes, keep: int) -> RowFunction:
    """Creates a function that scores rows with a serialized model and yields a row of _TRAFFIC, if there are rows."""

    def summarize(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import treelite

        model = treelite.Model.deserialize_bytes(serialized)
        known: list[ScoredTraffic] = []
        for batch in batches:
            if batch.num_rows:
                rows = pa.Table.from_batches([batch])
                part = summarize_traffic(score(model, rows), rows["tx_datetime"].to_numpy(), keep)
                known = [merge_traffic([*known, part], keep)]
        for traffic in known:
            first, last = (int(moment.astype("datetime64[us]").astype(int)) for moment in (traffic.first, traffic.last))
            columns = {"rows": [traffic.rows], "first": [first], "last": [last], "highest": [traffic.highest]}
            yield pa.RecordBatch.from_pydict(columns, schema=_TRAFFIC)

    return summarize


def _to_traffic(row: dict[str, Any]) -> ScoredTraffic:
    first, last = (np.datetime64(row[name], "us") for name in ("first", "last"))
    return ScoredTraffic(row["rows"], first, last, np.array(row["highest"]))


def store_threshold(lake: Lake, settings: Settings, report: CalibrationReport) -> None:
    """Appends a threshold to `alert_thresholds`. Raises `LakeError`."""
    row = {
        "model_name": settings.model_name,
        "model_version": report.model_version,
        "model_run_id": report.model_run_id,
        "threshold": report.threshold,
        "budget_per_day": report.budget_per_day,
        "window_start": report.window_start,
        "window_end": report.window_end,
        "calibrated_at": datetime.now(UTC),
    }
    # The row has no source position, so the commit cannot conflict with another writer.
    rows = pa.Table.from_pylist([row], schema=ALERT_THRESHOLDS)
    info = {"model_version": report.model_version, "model_run_id": report.model_run_id}
    commit_append(lake.open(alert_thresholds), alert_thresholds, rows, {}, info)
