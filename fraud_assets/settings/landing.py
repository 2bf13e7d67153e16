"""Settings of landing: topics and dropped files."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic_settings import NoDecode

from fraud_assets.settings.pairs import KeyValuePairs
from fraud_assets.settings.source import GroupSettings

_OFFSETS = KeyValuePairs("topic/partition=offset", key=r"[^=/]+/[0-9]+", value=r"[0-9]+")


class LandingSettings(GroupSettings):
    """Settings of landing: topics and dropped files."""

    land_batch_rows: int = Field(100_000, ge=1, description="Maximum rows per landing commit.")
    land_batch_bytes: int = Field(
        32_000_000, ge=1_000, description="Maximum bytes of message bodies per landing commit."
    )
    land_interval_seconds: float = Field(
        1.0, gt=0, description="Maximum seconds between receiving a message and committing it in `fraud-assets land`."
    )
    land_http: str = Field(
        "127.0.0.1:9108",
        pattern=r"^([^:\s]+:[0-9]{1,5})?$",
        description="Address on which `fraud-assets land` serves `/metrics` and `/health`. If the port is in use, "
        "it uses the next free port. If empty, it serves neither.",
    )
    dagster_event_seconds: float = Field(
        30.0, gt=0, description="Seconds between two reports of `fraud-assets land` to Dagster's event log."
    )
    consumer_group: str = Field(
        "",
        description="Consumer group of `fraud-assets land`. If empty, all landers into the same lake share one group.",
    )
    accept_lost: Annotated[dict[str, int], NoDecode, _OFFSETS] = Field(
        default_factory=dict,
        description="Partitions that continue to land although the broker deleted messages before they landed. The "
        "deleted messages before the given offset are given up. Example: `transactions/0=1200,transactions/1=900`.",
    )
    file_quiet_seconds: float = Field(
        1.0, ge=0, description="Seconds for which a dropped file must stay unchanged before it lands."
    )
