"""Settings of maintenance and retention."""

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
    """Settings of maintenance and retention. Retention is validated against settings of earlier groups."""

    vacuum_hours: int = Field(
        168, ge=24, description="Age in hours at which maintenance removes files that no table version uses."
    )
    log_hours: int = Field(
        2,
        ge=1,
        description="Hours of table versions that maintenance keeps for time travel. At one commit per second, more "
        "versions slow down every commit.",
    )
    compact_target_bytes: int = Field(
        134_217_728, ge=1_000_000, description="Target size in bytes of the files that compaction writes."
    )
    retention_days: Annotated[dict[str, int], NoDecode, _DAYS] = Field(
        default_factory=dict,
        description="Days for which maintenance keeps the rows of a table, for example "
        "`raw_transactions=400,quarantined_transactions=90`. Rows of other tables are kept forever.",
    )
    handbook_data: Path = Field(
        Path("../shared/data/handbook"),
        description="Folder of the handbook's data, used only by proofs and benchmarks.",
    )

    @field_validator("retention_days")
    @classmethod
    def _check_retention(cls, value: dict[str, int], others: ValidationInfo) -> dict[str, int]:
        if not value:
            return value
        unknown = sorted(set(value) - set(RETAINED_TABLES))
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is not a table with a retention; choose from "
                             f"{', '.join(RETAINED_TABLES)}")  # fmt: skip
        policy = WindowPolicy(others.data.get("feedback_delay_days", 0), others.data.get("duplicate_horizon_days", 0))
        windows = policy.history_days + 1
        minimum_days = {
            "transaction_features": max(
                windows, policy.duplicate_horizon_days + 1, others.data.get("train_days", 0) + 1
            ),
            "fraud_labels": windows,
        }
        for table, days in value.items():
            if days < minimum_days.get(table, 1):
                raise ValueError(
                    f"windows, duplicate detection and training need {table} for {minimum_days.get(table, 1)} days; "
                    "keep it at least that long"
                )
        return value
