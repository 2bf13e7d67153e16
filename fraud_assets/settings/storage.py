"""Where state is kept: the home folder, Dagster's folder and the lake."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path

from pydantic import Field, SecretStr, field_validator

from fraud_assets.errors import SettingError
from fraud_assets.settings.pairs import KeyValuePairs
from fraud_assets.settings.source import GroupSettings
from fraud_assets.system.paths import check_characters, folder_path, is_uri

_LAKE_OPTIONS = KeyValuePairs("key=value")


class StorageSettings(GroupSettings):
    """Where state is kept: the home folder, Dagster's folder and the lake."""

    home: Path = Field(
        Path(".fraud"),
        validate_default=True,
        description="Folder of all state: lake, registry, Dagster, drop folder.",
    )
    dagster_home: str = Field(
        "",
        alias="DAGSTER_HOME",
        description="Dagster's own folder of runs and history, which `make setup` writes into `.env`; empty means "
        "`dagster` under FRAUD_HOME.",
    )
    lake_uri: str = Field(
        "",
        description="Where the Delta tables are: a folder, or a URI as `s3://bucket/prefix`, `gs://…`, `abfss://…`; "
        "empty means `lake` under FRAUD_HOME.",
    )
    aws_endpoint_url: str = Field(
        "",
        alias="AWS_ENDPOINT_URL",
        description="S3 endpoint of a lake on `s3://…`, where it is not AWS's own; `http://…` is not encrypted.",
    )
    aws_region: str = Field(
        "", alias="AWS_REGION", description="Region of the bucket. What of AWS_… is empty is left to delta-rs."
    )
    aws_access_key_id: str = Field(
        "",
        alias="AWS_ACCESS_KEY_ID",
        description="Access key; empty means what delta-rs finds: profile, web identity, role of the machine.",
    )
    aws_secret_access_key: SecretStr = Field(
        SecretStr(""), alias="AWS_SECRET_ACCESS_KEY", description="The key's secret."
    )
    aws_session_token: SecretStr = Field(
        SecretStr(""), alias="AWS_SESSION_TOKEN", description="Its session token, where the key is temporary."
    )
    lake_options: SecretStr = Field(
        SecretStr(""),
        description="Further options of delta-rs for the object store, as `key=value,…`, such as "
        "`azure_storage_account_name=…`; they win over the others.",
    )
    lake_timeout_seconds: float = Field(
        15.0,
        gt=0,
        description="How long to try again where the object store does not answer; one try takes 30 s at most.",
    )
    lake_cache_bytes: int = Field(
        10_000_000_000,
        ge=0,
        description="Disk under FRAUD_HOME for copies of the object store's files; the least recently used go first, "
        "all that were unused for a day go anyway, and what is being read stays.",
    )

    @field_validator("lake_options")
    @classmethod
    def _pairs(cls, value: SecretStr) -> SecretStr:
        _LAKE_OPTIONS.parse(value.get_secret_value())
        return value

    @field_validator("aws_endpoint_url")
    @classmethod
    def _http(cls, value: str) -> str:
        if "@" in value:
            # A plain ValueError would show the value, and with it the password.
            raise SettingError("Setting AWS_ENDPOINT_URL holds credentials: put them into AWS_ACCESS_KEY_ID and "
                               "AWS_SECRET_ACCESS_KEY.")  # fmt: skip
        if value and not re.fullmatch(r"https?://\S+", value):
            raise ValueError("write it as https://host:port")
        return value

    @field_validator("home", "dagster_home", "lake_uri")
    @classmethod
    def _plain_path(cls, value: Path | str) -> Path | str:
        place = str(value)
        if is_uri(place):
            check_characters(place)
        elif place:
            folder_path(place)
        return value

    @cached_property
    def home_path(self) -> Path:
        """`FRAUD_HOME`, absolute."""
        return folder_path(str(self.home))

    @property
    def lake(self) -> str:
        """URI of an object store or absolute folder of the Delta tables."""
        if is_uri(self.lake_uri):
            return self.lake_uri
        return str(folder_path(self.lake_uri) if self.lake_uri else self.home_path / "lake")

    @property
    def dagster_path(self) -> Path:
        """`DAGSTER_HOME`, absolute."""
        return folder_path(self.dagster_home) if self.dagster_home else self.home_path / "dagster"

    @property
    def lake_options_by_name(self) -> dict[str, str]:
        """FRAUD_LAKE_OPTIONS as a mapping. Its values may be secrets."""
        return _LAKE_OPTIONS.parse(self.lake_options.get_secret_value())

    @property
    def incoming(self) -> Path:
        """Drop folder."""
        return self.home_path / "incoming"

    @property
    def processed(self) -> Path:
        """Where landed files go."""
        return self.home_path / "processed"

    @property
    def failed(self) -> Path:
        """Where files go that cannot be landed, each with its reason beside it."""
        return self.home_path / "failed"

    @property
    def broker_file(self) -> Path:
        """Where the embedded broker says how to reach it."""
        return self.home_path / "broker.json"
