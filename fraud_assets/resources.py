"""What assets and sensors are given: the settings, once, and by them the lake."""

from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from fraud_assets.settings import Settings, load_settings

if TYPE_CHECKING:
    from fraud_assets.lake.tables import Lake


class PlatformResource(dg.ConfigurableResource):
    """The settings of the environment; `overrides` (by setting name) are for tests and embedded use.

    `storage_options` reach the lake's object store and win over the settings. They are what the storage settings of
    dagster-deltalake give, as `S3Config(region="eu-west-1").str_dict()`. Landers do not run in Dagster: give those
    the same by the settings.
    """

    overrides: dict[str, str] = Field(default_factory=dict)
    storage_options: dict[str, str] = Field(default_factory=dict)

    def settings(self) -> Settings:
        """The settings. Raises `SettingError`."""
        return load_settings(**self.overrides)

    def lake(self) -> "Lake":
        """The lake of these settings. Raises `SettingError`."""
        from fraud_assets.lake.tables import Lake

        return Lake.of(self.settings(), self.storage_options)
