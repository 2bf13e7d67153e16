"""Settings of the Dagster assets, their checks and their sensors."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from fraud_assets.settings.source import GroupSettings

_OWNER = re.compile(r"team:[A-Za-z0-9_.-]+|[^@\s]+@[^@\s]+\.[^@\s]+")


class OrchestrationSettings(GroupSettings):
    """Settings of the Dagster assets, their checks and their sensors."""

    asset_owners: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Owners of all assets in the web UI, separated by commas: email addresses or teams, for example "
        "`team:fraud,ana@bank.example`.",
    )
    freshness_hours: int = Field(
        24,
        ge=1,
        description="Hours after which the web UI shows the landing tables, features and predictions as not fresh.",
    )
    quarantine_warn_rate: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Share of the messages since yesterday above which the check `quarantine_rate` warns.",
    )
    sensor_interval_seconds: int = Field(5, ge=1, description="Seconds between two evaluations of a sensor.")
    run_interval_seconds: int = Field(
        30,
        ge=0,
        description="Minimum seconds between the starts of two runs of `new_files_sensor`. The first messages after a "
        "quiet time start a run at once.",
    )
    sensor_attempts: int = Field(
        3, ge=1, description="Number of consecutive failed runs after which a sensor stops and reports an error."
    )
    run_silent_seconds: int = Field(
        600,
        ge=60,
        description="Seconds without an event after which a sensor's run counts as killed and is marked as failed.",
    )
    run_days: int = Field(
        1,
        ge=1,
        description="Days for which maintenance keeps successful runs of the sensors in Dagster's history. It always "
        "keeps failed runs, the last run of each asset, and runs started by a user.",
    )

    @field_validator("asset_owners", mode="before")
    @classmethod
    def _split_owners(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("asset_owners")
    @classmethod
    def _check_owners(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for owner in value:
            if not _OWNER.fullmatch(owner):
                raise ValueError(f"{owner!r} is not an email address and not a team; write a team as team:name")
        return value
