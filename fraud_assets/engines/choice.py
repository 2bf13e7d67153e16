"""Chooses the compute engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from fraud_assets.engines.base import Engine
from fraud_assets.engines.local.engine import LocalEngine
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def choose_engine(
    settings: Settings, session: Callable[[], SparkSession], name: Literal["duckdb", "spark"] | None = None
) -> Engine:
    """Returns an engine by its name.

    Args:
        settings: FRAUD_ENGINE and the settings of the engine.
        session: Returns the Spark session; called only if work is pending.
        name: Name of the engine; default: FRAUD_ENGINE.
    """
    match name or settings.engine:
        case "duckdb":
            return LocalEngine(settings)
        case "spark":
            from fraud_assets.engines.spark.engine import SparkEngine

            return SparkEngine(settings, session)
