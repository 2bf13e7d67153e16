"""How the commands log."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fraud_assets.settings.source import GroupSettings


class LogSettings(GroupSettings):
    """How the commands log. Can be read alone, so that a mistake in another setting is logged as it should be."""

    log_format: Literal["text", "json"] = Field(
        "text", description="Format of the commands' log on standard error: `text`, or `json` with one object a line."
    )
