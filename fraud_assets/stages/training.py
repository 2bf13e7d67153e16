"""Training: fit, register, calibrate the alert threshold, then hand over the alias, in this order.

Whatever scores meanwhile keeps the old champion; a new one is never without its threshold.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
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
    TIME,
    TRANSACTION_FEATURES,
    alert_thresholds,
    transaction_features,
)
from fraud_assets.core.scoring import ModelVersion, score
from fraud_assets.core.threshold import (
    ScoredTraffic,
    count_scores_needed,
    lowest_threshold,
    merge_traffic,
    summarize_traffic,
)
from fraud_assets.core.training import fit, to_treelite
from fraud_assets.engines.base import Engine, RowFunction, TrainingWindow
from fraud_assets.errors import LakeError, NotEnoughDataError, SettingError
from fraud_assets.lake.append import commit_append
from fraud_assets.lake.log import add_actions
from fraud_assets.lake.tables import Lake, read
from fraud_assets.registry.champion import describe_lost_registry, load_champion
from fraud_assets.registry.models import TrainingFacts, register_model, set_champion
from fraud_assets.settings import Settings
from fraud_assets.stages.training_window import choose_window_engine, measure_window

if TYPE_CHECKING:
    import treelite

logger = logging.getLogger(__name__)

CALIBRATION_DAYS = 7
"""The threshold follows the last days of the traffic: a week, so that each weekday counts once."""

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
    """A threshold of a model version and what it means on its window [window_start, window_end)."""

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
        """Plain values, for plots in the web UI."""
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
        """Plain values of the model, for plots in the web UI; `calibration` has those of its threshold."""
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
    """Train a new champion on the features of [start, end), by default the last FRAUD_TRAIN_DAYS days of the lake.

    Of more than FRAUD_TRAIN_MAX_ROWS it is trained on a sample, the same one with the same FRAUD_TRAIN_SEED. The
    threshold is always that of all the traffic.

    Args:
        lake: where the tables are.
        settings: of window, model and budget.
        start: of the window.
        end: of the window.
        engine: reads windows of more rows than FRAUD_TRAIN_MAX_ROWS; default: this process.

    Raises:
        NotEnoughDataError: the window holds fewer rows than FRAUD_TRAIN_MIN_ROWS.
        SettingError: the window is empty or has no zone.
        ModelRegistryError: the registry cannot be written.
        LakeError: a table cannot be read or written.
    """
    began = time.monotonic()
    if lost := describe_lost_registry(lake, settings):
        logger.info(f"{lost} This run trains one. Version numbers start at 1 again.")
    start, end = _window(lake, settings, start, end)
    window = TrainingWindow.of(lake, start, end)
    engine = choose_window_engine(window, settings, engine)
    window_rows, newest = measure_window(window, engine)
    if newest is None or window_rows < settings.train_min_rows:
        raise NotEnoughDataError(
            f"Training needs {settings.train_min_rows:,} transactions (FRAUD_TRAIN_MIN_ROWS); from "
            f"{start:%Y-%m-%d %H:%M} to before {end:%Y-%m-%d %H:%M} UTC the lake holds {window_rows:,} of "
            f"feature version {FEATURE_VERSION}. Land more, lower the setting, or widen the window (FRAUD_TRAIN_DAYS)."
        )
    features = read_training_rows(window, window_rows, settings, engine)
    logger.info(f"training {settings.train_trees} trees on {features.num_rows:,} of {window_rows:,} transactions")
    forest = fit(features, settings.train_trees, settings.train_seed)
    calibration = _calibrated(window, newest, to_treelite(forest), ModelVersion(0, ""), settings, engine)
    facts = TrainingFacts(
        rows=features.num_rows,
        window_start=start,
        window_end=end,
        trees=settings.train_trees,
        seed=settings.train_seed,
        example=features.slice(0, _EXAMPLE_ROWS),
        metrics={
            "rows": features.num_rows,
            "threshold": calibration.threshold,
            "alerts_per_day": calibration.alerts_per_day,
            "alert_rate": calibration.alert_rate,
            "fit_seconds": time.monotonic() - began,
        },
        window_rows=window_rows,
    )
    made = register_model(forest, facts, settings)
    calibration = replace(calibration, model_version=made.version, model_run_id=made.run_id)
    _store(lake, settings, calibration)
    set_champion(made.version, settings)
    logger.info(f"version {made.version} is champion; it alerts {calibration.alerts_per_day:.1f} times a day")
    return TrainingReport(
        version=made.version,
        rows=features.num_rows,
        window_rows=window_rows,
        trees=settings.train_trees,
        seed=settings.train_seed,
        window_start=start,
        window_end=end,
        seconds=time.monotonic() - began,
        calibration=calibration,
    )


def read_training_rows(window: TrainingWindow, rows: int, settings: Settings, engine: Engine) -> pa.Table:
    """The rows to train on, in time order: all `rows` of the window, or FRAUD_TRAIN_MAX_ROWS of them, drawn uniformly.

    Raises:
        LakeError: a file cannot be read.
    """
    size, seed = settings.train_max_rows, settings.train_seed
    columns = (*_COLUMNS, *POSITION_COLUMNS)
    schema = pa.schema([TRANSACTION_FEATURES.field(name) for name in columns]).append(DRAW)

    def draw(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield select_candidates(batch, size, rows, seed)

    return _in_time_order(select_sample(engine.map_window(window, columns, draw, schema), size).select(_COLUMNS))


def recalibrate(lake: Lake, settings: Settings, engine: Engine | None = None) -> CalibrationReport:
    """A new threshold for the champion, from the lake's last days and the budget of now, without training.

    Args:
        lake: where the tables are.
        settings: of the budget and the registry.
        engine: reads more rows than FRAUD_TRAIN_MAX_ROWS; default: this process.

    Raises:
        NoChampionError: there is no champion yet.
        NotEnoughDataError: the lake holds no features.
        LakeError: a table cannot be read or written.
    """
    current = load_champion(lake, settings)
    end = _window(lake, settings, None, None)[1]
    window = TrainingWindow.of(lake, end - timedelta(days=CALIBRATION_DAYS), end)
    engine = choose_window_engine(window, settings, engine)
    newest = measure_window(window, engine)[1]
    if newest is None:
        raise NotEnoughDataError(f"The lake holds no features of version {FEATURE_VERSION}: recompute them first.")
    report = _calibrated(window, newest, current.model, current, settings, engine)
    _store(lake, settings, report)
    logger.info(
        f"threshold of version {current.version}: {report.threshold:.4f}, {report.alerts_per_day:.1f} alerts a day"
    )
    return report


def read_threshold(lake: Lake, model: ModelVersion, settings: Settings) -> float:
    """The newest threshold of a model: of its version and of the MLflow run that made it.

    Raises:
        LakeError: the model was never calibrated on this lake.
    """
    same = (pc.field("model_name") == settings.model_name) & (pc.field("model_version") == model.version)
    named = read(lake.open(alert_thresholds), ["calibrated_at", "threshold", "model_run_id"], same)
    rows = named.filter(pc.equal(named["model_run_id"], model.run_id))
    if not rows.num_rows:
        others = ", ".join(sorted(set(named["model_run_id"].to_pylist())))
        which = f"; what it holds for this version is of another registry's model (run {others})" if others else ""
        raise LakeError(
            f"Version {model.version} of model {settings.model_name} (MLflow run {model.run_id}) has no threshold in "
            f"{lake.uri(alert_thresholds)}{which}. Nothing is scored: materialize alert_thresholds alone, which "
            "calibrates the champion."
        )
    newest = int(np.argmax(rows["calibrated_at"].cast(pa.int64()).to_numpy()))
    return rows["threshold"][newest].as_py()


def read_features(lake: Lake, start: datetime, end: datetime, columns: Sequence[str]) -> pa.Table:
    """Columns (with tx_datetime and transaction_id) of the features of [start, end), in time order.

    Only rows of this FEATURE_VERSION. The order is fixed, because what a forest draws depends on it.
    """
    low, high = pa.scalar(start, TIME), pa.scalar(end, TIME)
    within = (
        (pc.field("tx_date") >= start.astimezone(UTC).date())
        & (pc.field("tx_date") <= end.astimezone(UTC).date())
        & (pc.field("tx_datetime") >= low)
        & (pc.field("tx_datetime") < high)
        & (pc.field("feature_version") == FEATURE_VERSION)
    )
    return _in_time_order(read(lake.open(transaction_features), columns, within))


def _in_time_order(rows: pa.Table) -> pa.Table:
    return rows.sort_by([("tx_datetime", "ascending"), ("transaction_id", "ascending")])


def find_newest_transaction(lake: Lake) -> datetime | None:
    """Largest `tx_datetime` that has features; None if there are none."""
    handle = lake.open(transaction_features)
    actions = add_actions(handle)
    if not actions.num_rows:
        return None
    last = pc.max(actions["partition.tx_date"]).as_py()
    times = read(handle, ["tx_datetime"], pc.field("tx_date") == last)
    return pc.max(times["tx_datetime"]).as_py()


def _window(lake: Lake, settings: Settings, start: datetime | None, end: datetime | None) -> tuple[datetime, datetime]:
    """The training window [start, end); what is not given comes from the newest transaction."""
    if any(edge is not None and edge.tzinfo is None for edge in (start, end)):
        raise SettingError(f"The window from {start} to {end} has no zone: give UTC times.")
    if end is None:
        newest = find_newest_transaction(lake)
        if newest is None:
            raise NotEnoughDataError(
                f"Training needs {settings.train_min_rows:,} transactions (FRAUD_TRAIN_MIN_ROWS); the lake holds 0. "
                "Land some first."
            )
        end = newest + timedelta(microseconds=1)
    if start is None:
        start = end - timedelta(days=settings.train_days)
    if start >= end:
        raise SettingError(f"The window from {start} to {end} is empty: give start < end.")
    return start, end


def _calibrated(
    window: TrainingWindow,
    newest: datetime,
    model: treelite.Model,
    made: ModelVersion,
    settings: Settings,
    engine: Engine,
) -> CalibrationReport:
    """The threshold on the last CALIBRATION_DAYS of all the traffic in the window, up to its newest transaction."""
    since = newest - timedelta(days=CALIBRATION_DAYS) + timedelta(microseconds=1)
    recent = TrainingWindow.of(window.lake, max(window.start, since), window.end, window.handle)
    keep = count_scores_needed(settings.alert_budget_per_day, CALIBRATION_DAYS)
    columns = ("tx_datetime", *MODEL_INPUTS)
    parts = choose_window_engine(recent, settings, engine).map_window(
        recent, columns, _scoring(model.serialize_bytes(), keep), _TRAFFIC
    )
    traffic = merge_traffic((_traffic(part) for part in parts.to_pylist()), keep)
    threshold = lowest_threshold(traffic, settings.alert_budget_per_day, settings.alert_max_rate)
    alerts = traffic.alerts(threshold)
    return CalibrationReport(
        model_version=made.version,
        model_run_id=made.run_id,
        threshold=threshold,
        budget_per_day=settings.alert_budget_per_day,
        window_start=since,
        window_end=newest + timedelta(microseconds=1),
        rows=traffic.rows,
        alerts_per_day=alerts / traffic.days,
        alert_rate=alerts / traffic.rows,
    )


def _scoring(serialised: bytes, keep: int) -> RowFunction:
    """Scores rows by the model of these bytes; a row of _TRAFFIC comes of them, if there are any."""

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import treelite

        model = treelite.Model.deserialize_bytes(serialised)
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

    return work


def _traffic(row: dict[str, Any]) -> ScoredTraffic:
    first, last = (np.datetime64(row[name], "us") for name in ("first", "last"))
    return ScoredTraffic(row["rows"], first, last, np.array(row["highest"]))


def _store(lake: Lake, settings: Settings, report: CalibrationReport) -> None:
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
    # No positions: nothing to take exactly once, and so nothing that another writer could conflict with.
    rows = pa.Table.from_pylist([row], schema=ALERT_THRESHOLDS)
    facts = {"model_version": report.model_version, "model_run_id": report.model_run_id}
    commit_append(lake.open(alert_thresholds), alert_thresholds, rows, {}, facts)
