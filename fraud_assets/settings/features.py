"""Settings of features, duplicates and batch sizes."""

from __future__ import annotations

from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator

from fraud_assets.settings.source import GroupSettings
from fraud_assets.settings.values import BatchLimits, WindowPolicy


class FeatureSettings(GroupSettings):
    """Settings of features, duplicates and batch sizes."""

    duplicate_horizon_days: int = Field(
        90,
        ge=1,
        description="Days after a transaction lands during which another one with the same id is a duplicate.",
    )
    feedback_delay_days: int = Field(
        7, ge=0, description="Days after which a transaction without a label counts as genuine."
    )
    time_zone: str = Field("UTC", description="Time zone of the weekend and night features.")
    batch_rows: int = Field(
        500_000, ge=1, description="Maximum rows per batch of features and scoring. It limits memory."
    )
    batch_bytes: int = Field(
        200_000_000,
        ge=1_000,
        description="Maximum bytes of message bodies per batch of features. It limits memory.",
    )

    @field_validator("time_zone")
    @classmethod
    def _check_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        # The name of a folder in the time zone database, such as "America", raises OSError.
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError("write an IANA name such as UTC or Europe/Brussels") from error
        return value

    @property
    def batch_limits(self) -> BatchLimits:
        """Maximum size of a batch in this process."""
        return BatchLimits(self.batch_rows, self.batch_bytes)

    @property
    def window_policy(self) -> WindowPolicy:
        """The number of days that feature windows and duplicate detection look back."""
        return WindowPolicy(self.feedback_delay_days, self.duplicate_horizon_days)
