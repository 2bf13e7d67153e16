"""Settings of the log."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fraud_assets.settings.source import GroupSettings


class LogSettings(GroupSettings):
    """Settings of the log. This group can be loaded alone, so that errors in other settings use the right format."""

    log_format: Literal["text", "json"] = Field(
        "text",
        description="Log format of the commands on standard error: `text`, or `json` with one object per line.",
    )
