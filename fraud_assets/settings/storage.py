"""Settings of storage: the home folder, Dagster's folder and the lake."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path

from pydantic import Field, SecretStr, field_validator

from fraud_assets.errors import SettingError
from fraud_assets.settings.pairs import KeyValuePairs
from fraud_assets.settings.source import GroupSettings
from fraud_assets.system.paths import check_characters, is_uri, resolve_folder

_LAKE_OPTIONS = KeyValuePairs("key=value")


class StorageSettings(GroupSettings):
    """Settings of storage: the home folder, Dagster's folder and the lake."""

    home: Path = Field(
        Path(".fraud"),
        validate_default=True,
        description="Folder of all state: lake, model registry, Dagster and drop folder.",
    )
    dagster_home: str = Field(
        "",
        alias="DAGSTER_HOME",
        description="Folder of Dagster's runs and event history. `fraud-assets setup` writes it into `.env`. If "
        "empty, it is the folder `dagster` under FRAUD_HOME.",
    )
    dagster_postgres_url: SecretStr = Field(
        SecretStr(""),
        alias="DAGSTER_POSTGRES_URL",
        description="PostgreSQL database of Dagster's history, as `postgresql+psycopg2://user:password@host/database`. "
        "`fraud-assets setup` writes it into a new dagster.yaml as a variable. Needs the extra `postgres`.",
    )
    lake_uri: str = Field(
        "",
        description="Location of the Delta tables: a folder, or a URI such as `s3://bucket/prefix`, `gs://…` or "
        "`abfss://…`. If empty, it is the folder `lake` under FRAUD_HOME.",
    )
    aws_endpoint_url: str = Field(
        "",
        alias="AWS_ENDPOINT_URL",
        description="Endpoint of an S3 store other than AWS. A connection to `http://…` is not encrypted.",
    )
    aws_region: str = Field(
        "",
        alias="AWS_REGION",
        description="Region of the bucket. Any empty AWS_… setting falls back to delta-rs's own lookup.",
    )
    aws_access_key_id: str = Field(
        "",
        alias="AWS_ACCESS_KEY_ID",
        description="Access key id. If empty, delta-rs looks for a profile, a web identity or the role of the machine.",
    )
    aws_secret_access_key: SecretStr = Field(
        SecretStr(""), alias="AWS_SECRET_ACCESS_KEY", description="Secret of the access key."
    )
    aws_session_token: SecretStr = Field(
        SecretStr(""), alias="AWS_SESSION_TOKEN", description="Session token of a temporary access key."
    )
    lake_options: SecretStr = Field(
        SecretStr(""),
        description="Additional delta-rs options for the object store, as `key=value,…`, for example "
        "`azure_storage_account_name=…`. They take precedence over the other settings.",
    )
    lake_timeout_seconds: float = Field(
        15.0,
        gt=0,
        description="Seconds for which requests are retried if the object store does not respond. One attempt takes at "
        "most 30 s.",
    )
    lake_cache_bytes: int = Field(
        10_000_000_000,
        ge=0,
        description="Maximum bytes under FRAUD_HOME for local copies of the object store's files. The least recently "
        "used copies are removed first, and all copies unused for a day are removed. Copies that are being read stay.",
    )

    @field_validator("lake_options")
    @classmethod
    def _check_pairs(cls, value: SecretStr) -> SecretStr:
        _LAKE_OPTIONS.parse(value.get_secret_value())
        return value

    @field_validator("aws_endpoint_url")
    @classmethod
    def _check_endpoint(cls, value: str) -> str:
        if "@" in value:
            # The message of a ValueError would show the value with the password.
            raise SettingError("Setting AWS_ENDPOINT_URL contains credentials. Put them into AWS_ACCESS_KEY_ID and "
                               "AWS_SECRET_ACCESS_KEY.")  # fmt: skip
        if value and not re.fullmatch(r"https?://\S+", value):
            raise ValueError("write it as https://host:port")
        return value

    @field_validator("dagster_postgres_url")
    @classmethod
    def _check_driver(cls, value: SecretStr) -> SecretStr:
        # With postgresql:// SQLAlchemy 2.1 takes psycopg 3, whose statements dagster-postgres does not support.
        if value.get_secret_value() and not value.get_secret_value().startswith("postgresql+psycopg2://"):
            raise ValueError("write it as postgresql+psycopg2://user:password@host/database")
        return value

    @field_validator("home", "dagster_home", "lake_uri")
    @classmethod
    def _check_location(cls, value: Path | str) -> Path | str:
        location = str(value)
        if is_uri(location):
            check_characters(location)
        elif location:
            resolve_folder(location)
        return value

    @cached_property
    def home_path(self) -> Path:
        """Absolute path of `FRAUD_HOME`."""
        return resolve_folder(str(self.home))

    @property
    def lake(self) -> str:
        """Location of the Delta tables: the URI of an object store, or an absolute folder."""
        if is_uri(self.lake_uri):
            return self.lake_uri
        return str(resolve_folder(self.lake_uri) if self.lake_uri else self.home_path / "lake")

    @property
    def dagster_path(self) -> Path:
        """Absolute path of `DAGSTER_HOME`."""
        return resolve_folder(self.dagster_home) if self.dagster_home else self.home_path / "dagster"

    @property
    def lake_options_by_name(self) -> dict[str, str]:
        """FRAUD_LAKE_OPTIONS as a mapping. The values may be secrets."""
        return _LAKE_OPTIONS.parse(self.lake_options.get_secret_value())

    @property
    def incoming(self) -> Path:
        """Drop folder."""
        return self.home_path / "incoming"

    @property
    def processed(self) -> Path:
        """Folder of landed files."""
        return self.home_path / "processed"

    @property
    def failed(self) -> Path:
        """Folder of files that could not land, each with a file that gives the reason."""
        return self.home_path / "failed"

    @property
    def broker_file(self) -> Path:
        """File in which the embedded broker publishes its address."""
        return self.home_path / "broker.json"
