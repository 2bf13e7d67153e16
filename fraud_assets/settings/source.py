"""Where settings come from: the environment and `.env`."""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict


class GroupSettings(BaseSettings):
    """A group of settings on one subject. A setting `x` is read from `FRAUD_X`, or from its alias."""

    model_config = SettingsConfigDict(
        env_prefix="FRAUD_", env_file=".env", extra="ignore", frozen=True, populate_by_name=True
    )
