"""Base class of all settings: the environment and the `.env` file are their sources."""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict


class GroupSettings(BaseSettings):
    """A group of related settings. The setting `x` is read from the variable `FRAUD_X`, or from its alias."""

    model_config = SettingsConfigDict(
        env_prefix="FRAUD_", env_file=".env", extra="ignore", frozen=True, populate_by_name=True
    )
