"""How topics and dropped files land."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic_settings import NoDecode

from fraud_assets.settings.pairs import KeyValuePairs
from fraud_assets.settings.source import GroupSettings

_PLACES = KeyValuePairs("topic/partition=offset", key=r"[^=/]+/[0-9]+", value=r"[0-9]+")


class LandingSettings(GroupSettings):
    """How topics and dropped files land."""

    land_batch_rows: int = Field(100_000, ge=1, description="Rows per landing commit, at most.")
    land_batch_bytes: int = Field(32_000_000, ge=1_000, description="Body bytes per landing commit, at most.")
    land_interval_seconds: float = Field(
        1.0, gt=0, description="`fraud-assets land` commits a message at the latest so long after it came."
    )
    land_http: str = Field(
        "127.0.0.1:9108",
        pattern=r"^([^:\s]+:[0-9]{1,5})?$",
        description="Where `fraud-assets land` serves `/metrics` and `/health`, or the next free port; empty for none.",
    )
    dagster_event_seconds: float = Field(
        30.0, gt=0, description="How often `fraud-assets land` tells Dagster what it materialized."
    )
    consumer_group: str = Field(
        "", description="Consumer group of `fraud-assets land`; empty means one for all landers into the same lake."
    )
    accept_lost: Annotated[dict[str, int], NoDecode, _PLACES] = Field(
        default_factory=dict,
        description="Messages that are given up because the broker no longer has them: all before an offset, as "
        "`transactions/0=1200,transactions/1=900`.",
    )
    file_quiet_seconds: float = Field(
        1.0, ge=0, description="A dropped file is taken once it has not changed for this long."
    )
