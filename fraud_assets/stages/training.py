"""Trains a champion: fits a model, calibrates the alert threshold, registers the model and moves the alias last.

Scoring uses the old champion until the alias moves. So every champion has a threshold.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

import pyarrow as pa

from fraud_assets.core.sampling import DRAW, select_candidates, select_sample
from fraud_assets.core.schema import (
    FEATURE_VERSION,
    MODEL_INPUTS,
    POSITION_COLUMNS,
    TRANSACTION_FEATURES,
    transaction_features,
)
from fraud_assets.core.scoring import ModelVersion
from fraud_assets.core.training import fit, to_treelite
from fraud_assets.engines.base import Engine, TrainingWindow
from fraud_assets.errors import NotEnoughDataError
from fraud_assets.lake.tables import Lake
from fraud_assets.registry.champion import describe_lost_registry
from fraud_assets.registry.registration import TrainingFacts, register_model, set_champion
from fraud_assets.settings import Settings
from fraud_assets.stages.calibration import CalibrationReport, calibrate, store_threshold
from fraud_assets.stages.training_window import choose_range, choose_window_engine, measure_window, sort_by_time

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)

_COLUMNS = ("transaction_id", "tx_datetime", *MODEL_INPUTS)
_EXAMPLE_ROWS = 5


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


def train(
    lake: Lake,
    settings: Settings,
    start: datetime | None = None,
    end: datetime | None = None,
    engine: Engine | None = None,
    dagster_run_id: str = "",
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
        dagster_run_id: The Dagster run that trains, for the registry.

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
        raise _make_data_error(window, window_rows, settings)
    features = read_training_rows(window, window_rows, settings, engine)
    logger.info(f"training {settings.train_trees} trees on {features.num_rows:,} of {window_rows:,} transactions")
    forest = fit(features, settings.train_trees, settings.train_seed)
    calibration = calibrate(window, newest, to_treelite(forest), ModelVersion(0, ""), settings, engine)
    facts = _describe_training(window, window_rows, features, calibration, settings, time.monotonic() - started)
    facts = replace(facts, dagster_run_id=dagster_run_id)
    registered = register_model(forest, facts, settings)
    calibration = replace(calibration, model_version=registered.version, model_run_id=registered.run_id)
    store_threshold(lake, settings, calibration)
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


def _make_data_error(window: TrainingWindow, rows: int, settings: Settings) -> NotEnoughDataError:
    return NotEnoughDataError(
        f"Training needs {settings.train_min_rows:,} transactions (FRAUD_TRAIN_MIN_ROWS); from "
        f"{window.start:%Y-%m-%d %H:%M} to {window.end:%Y-%m-%d %H:%M} UTC (exclusive) the lake holds {rows:,} of "
        f"feature version {FEATURE_VERSION}. Land more, lower the setting, or widen the window (FRAUD_TRAIN_DAYS)."
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
        table_uri=window.lake.uri(transaction_features),
        table_version=window.handle.version(),
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
