"""Sensors, maintenance and retention."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import NoDecode

from fraud_assets.settings.pairs import KeyValuePairs
from fraud_assets.settings.source import GroupSettings
from fraud_assets.settings.values import WindowPolicy

RETAINED_TABLES = (
    "raw_transactions",
    "fraud_labels",
    "quarantined_transactions",
    "transaction_features",
    "fraud_predictions",
)

_DAYS = KeyValuePairs("table=days", key=r"\w+", value=r"[0-9]{1,6}")


class OperationSettings(GroupSettings):
    """Sensors, maintenance and retention. Retention is checked against the groups that come before this one."""

    sensor_interval_seconds: int = Field(5, ge=1, description="Pause between two looks of the sensors.")
    sensor_attempts: int = Field(3, ge=1, description="Failed runs in a row before the sensor stops and says so.")
    run_silent_seconds: int = Field(
        600, ge=60, description="A run of the sensors without any event for so long was killed: it is marked failed."
    )
    run_days: int = Field(
        1,
        ge=1,
        description="Days for which maintenance keeps successful runs of the sensors in Dagster's history. Failed "
        "runs, the last run of each asset, and runs that a person started stay.",
    )
    vacuum_hours: int = Field(
        168, ge=24, description="Age at which maintenance removes files that no table version uses."
    )
    log_hours: int = Field(
        2,
        ge=1,
        description="Hours of table versions that maintenance keeps for time travel. At a commit a second, more of "
        "them make every commit slower.",
    )
    compact_target_bytes: int = Field(
        134_217_728, ge=1_000_000, description="Size that maintenance compacts small files to."
    )
    retention_days: Annotated[dict[str, int], NoDecode, _DAYS] = Field(
        default_factory=dict,
        description="Days for which maintenance keeps rows of a table, as "
        "`raw_transactions=400,quarantined_transactions=90`; other tables are kept for ever.",
    )
    handbook_data: Path = Field(
        Path("../shared/data/handbook"), description="The handbook's data, for proofs and benchmarks only."
    )

    @field_validator("retention_days")
    @classmethod
    def _long_enough(cls, value: dict[str, int], others: ValidationInfo) -> dict[str, int]:
        if not value:
            return value
        unknown = sorted(set(value) - set(RETAINED_TABLES))
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is no table with a retention; choose from "
                             f"{', '.join(RETAINED_TABLES)}")  # fmt: skip
        policy = WindowPolicy(others.data.get("feedback_delay_days", 0), others.data.get("duplicate_horizon_days", 0))
        windows = policy.history_days + 1
        needs = {
            "transaction_features": max(
                windows, policy.duplicate_horizon_days + 1, others.data.get("train_days", 0) + 1
            ),
            "fraud_labels": windows,
        }
        for table, days in value.items():
            if days < needs.get(table, 1):
                raise ValueError(
                    f"{table} is needed for {needs.get(table, 1)} days (windows, duplicates, training); keep it as long"
                )
        return value
