"""Features, duplicates and the size of a batch."""

from __future__ import annotations

from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator

from fraud_assets.settings.source import GroupSettings
from fraud_assets.settings.values import BatchLimits, WindowPolicy


class FeatureSettings(GroupSettings):
    """Features, duplicates and the size of a batch."""

    duplicate_horizon_days: int = Field(
        90, ge=1, description="Days of ingest within which a transaction id counts as repeated."
    )
    feedback_delay_days: int = Field(7, ge=0, description="Days until a transaction without a label counts as genuine.")
    time_zone: str = Field("UTC", description="Time zone of the weekend and night features.")
    batch_rows: int = Field(500_000, ge=1, description="Rows per batch of features and scoring; bounds memory.")
    batch_bytes: int = Field(
        200_000_000, ge=1_000, description="Bytes of message bodies per batch of features, at most; bounds memory."
    )

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        # A folder of the database, as "America", is an OSError.
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError("write an IANA name such as UTC or Europe/Brussels") from error
        return value

    @property
    def batch_limits(self) -> BatchLimits:
        """Limits of a batch in this process."""
        return BatchLimits(self.batch_rows, self.batch_bytes)

    @property
    def window_policy(self) -> WindowPolicy:
        """How far windows and duplicates reach back."""
        return WindowPolicy(self.feedback_delay_days, self.duplicate_horizon_days)
