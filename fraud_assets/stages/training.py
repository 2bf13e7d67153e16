"""Trains a champion: fits a model, calibrates the alert threshold, registers the model and moves the alias last.

Scoring uses the old champion until the alias moves. So every champion has a threshold.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.sampling import DRAW, select_candidates, select_sample
from fraud_assets.core.schema import (
    ALERT_THRESHOLDS,
    FEATURE_VERSION,
    MODEL_INPUTS,
    POSITION_COLUMNS,
    TRANSACTION_FEATURES,
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
from fraud_assets.core.training import fit, to_treelite
from fraud_assets.engines.base import Engine, RowFunction, TrainingWindow
from fraud_assets.errors import LakeError, NotEnoughDataError
from fraud_assets.lake.append import commit_append
from fraud_assets.lake.tables import Lake, read
from fraud_assets.registry.champion import describe_lost_registry, load_champion
from fraud_assets.registry.models import TrainingFacts, register_model, set_champion
from fraud_assets.settings import Settings
from fraud_assets.stages.training_window import choose_range, choose_window_engine, measure_window, sort_by_time

if TYPE_CHECKING:
    import treelite

logger = logging.getLogger(__name__)

CALIBRATION_DAYS = 7
"""Days of the newest traffic that determine the threshold: a week, so that each weekday counts once."""

_COLUMNS = ("transaction_id", "tx_datetime", *MODEL_INPUTS)
_EXAMPLE_ROWS = 5
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

    def metadata(self) -> dict[str, str | int | float]:
        """Returns plain values, for plots in the web UI."""
        return {
            "model_version": self.model_version,
            "model_run_id": self.model_run_id,
            "threshold": self.threshold,
            "budget_per_day": self.budget_per_day,
            "calibration_start": self.window_start.isoformat(),
            "calibration_end": self.window_end.isoformat(),
            "calibration_rows": self.rows,
            "alerts_per_day": round(self.alerts_per_day, 3),
            "alert_rate": round(self.alert_rate, 6),
        }


@dataclass(frozen=True)
class TrainingReport:
    """A new champion, trained on `rows` of the `window_rows` in [window_start, window_end), and its threshold."""

    version: int
    rows: int
    window_rows: int
    trees: int
    seed: int
    window_start: datetime
    window_end: datetime
    seconds: float
    calibration: CalibrationReport

    def metadata(self) -> dict[str, str | int | float]:
        """Returns plain values of the model, for plots in the web UI; `calibration` has those of its threshold."""
        return {
            "model_version": self.version,
            "model_run_id": self.calibration.model_run_id,
            "rows": self.rows,
            "window_rows": self.window_rows,
            "trees": self.trees,
            "seed": self.seed,
            "window_start": self.window_start.isoformat(),
            "window_end": self.window_end.isoformat(),
            "seconds": round(self.seconds, 3),
        }


def train(
    lake: Lake,
    settings: Settings,
    start: datetime | None = None,
    end: datetime | None = None,
    engine: Engine | None = None,
) -> TrainingReport:
    """Trains a new champion on the features of `tx_datetime` in [start, end).

    A window of more than FRAUD_TRAIN_MAX_ROWS rows is sampled; the same FRAUD_TRAIN_SEED gives the same sample. The
    threshold is always computed from all the traffic.

    Args:
        lake: The lake.
        settings: The settings of the window, the model and the alert budget.
        start: Start of the range (inclusive), with time zone; default: FRAUD_TRAIN_DAYS before the end.
        end: End of the range (exclusive); default: just after the newest transaction in the lake.
        engine: The engine that reads windows of more than FRAUD_TRAIN_MAX_ROWS rows; default: this process.

    Raises:
        NotEnoughDataError: The window has fewer rows than FRAUD_TRAIN_MIN_ROWS.
        SettingError: The window is empty or has no time zone.
        ModelRegistryError: The registry cannot be written.
        LakeError: A table cannot be read or written.
    """
    started = time.monotonic()
    if lost := describe_lost_registry(lake, settings):
        logger.info(f"{lost} This run trains a new champion. Version numbers start at 1 again.")
    window = TrainingWindow.of(lake, *choose_range(lake, settings, start, end))
    engine = choose_window_engine(window, settings, engine)
    window_rows, newest = measure_window(window, engine)
    if newest is None or window_rows < settings.train_min_rows:
        raise NotEnoughDataError(
            f"Training needs {settings.train_min_rows:,} transactions (FRAUD_TRAIN_MIN_ROWS); from "
            f"{window.start:%Y-%m-%d %H:%M} to {window.end:%Y-%m-%d %H:%M} UTC (exclusive) the lake holds "
            f"{window_rows:,} of feature version {FEATURE_VERSION}. Land more, lower the setting, or widen the window "
            "(FRAUD_TRAIN_DAYS)."
        )
    features = read_training_rows(window, window_rows, settings, engine)
    logger.info(f"training {settings.train_trees} trees on {features.num_rows:,} of {window_rows:,} transactions")
    forest = fit(features, settings.train_trees, settings.train_seed)
    calibration = _calibrate(window, newest, to_treelite(forest), ModelVersion(0, ""), settings, engine)
    facts = _describe_training(window, window_rows, features, calibration, settings, time.monotonic() - started)
    registered = register_model(forest, facts, settings)
    calibration = replace(calibration, model_version=registered.version, model_run_id=registered.run_id)
    _store_threshold(lake, settings, calibration)
    set_champion(registered.version, settings)
    logger.info(f"version {registered.version} is the champion; {calibration.alerts_per_day:.1f} alerts per day")
    return TrainingReport(
        version=registered.version,
        rows=features.num_rows,
        window_rows=window_rows,
        trees=settings.train_trees,
        seed=settings.train_seed,
        window_start=window.start,
        window_end=window.end,
        seconds=time.monotonic() - started,
        calibration=calibration,
    )


def _describe_training(
    window: TrainingWindow,
    window_rows: int,
    features: pa.Table,
    calibration: CalibrationReport,
    settings: Settings,
    fit_seconds: float,
) -> TrainingFacts:
    """Returns the facts that the registry records about a training."""
    return TrainingFacts(
        rows=features.num_rows,
        window_start=window.start,
        window_end=window.end,
        trees=settings.train_trees,
        seed=settings.train_seed,
        example=features.slice(0, _EXAMPLE_ROWS),
        metrics={
            "rows": features.num_rows,
            "threshold": calibration.threshold,
            "alerts_per_day": calibration.alerts_per_day,
            "alert_rate": calibration.alert_rate,
            "fit_seconds": fit_seconds,
        },
        window_rows=window_rows,
    )


def read_training_rows(window: TrainingWindow, rows: int, settings: Settings, engine: Engine) -> pa.Table:
    """Reads the rows to train on, in time order: all rows of the window, or a uniform sample of FRAUD_TRAIN_MAX_ROWS.

    Args:
        window: The training window.
        rows: Number of rows of the window.
        settings: FRAUD_TRAIN_MAX_ROWS and FRAUD_TRAIN_SEED.
        engine: The engine that reads the window.

    Raises:
        LakeError: A file cannot be read.
    """
    size, seed = settings.train_max_rows, settings.train_seed
    columns = (*_COLUMNS, *POSITION_COLUMNS)
    schema = pa.schema([TRANSACTION_FEATURES.field(name) for name in columns]).append(DRAW)

    def draw(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield select_candidates(batch, size, rows, seed)

    return sort_by_time(select_sample(engine.map_window(window, columns, draw, schema), size).select(_COLUMNS))


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
    report = _calibrate(window, newest, current.model, current, settings, engine)
    _store_threshold(lake, settings, report)
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


def _calibrate(
    window: TrainingWindow,
    newest: datetime,
    model: treelite.Model,
    model_version: ModelVersion,
    settings: Settings,
    engine: Engine,
) -> CalibrationReport:
    """Calibrates the threshold on the last CALIBRATION_DAYS of all the traffic in the window."""
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


def _store_threshold(lake: Lake, settings: Settings, report: CalibrationReport) -> None:
    """Appends a threshold to `alert_thresholds`."""
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
