"""Chooses the compute engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fraud_assets.engines.base import Engine
from fraud_assets.engines.local.engine import LocalEngine
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def choose_engine(settings: Settings, session: Callable[[], SparkSession]) -> Engine:
    """Returns the engine that FRAUD_ENGINE names.

    Args:
        settings: FRAUD_ENGINE and the settings of the engine.
        session: Returns the Spark session; called only if work is pending.
    """
    if settings.engine == "duckdb":
        return LocalEngine(settings)
    from fraud_assets.engines.spark.engine import SparkEngine

    return SparkEngine(settings, session)
