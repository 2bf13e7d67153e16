"""Every setting once: its name, default, meaning and limits, read from the environment or `.env`.

`Settings()` reads the environment; tests and the command line pass overrides as arguments. The table in
the README is held to this module by a test.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from fraud_assets.errors import SettingError

CONTRACT_FIELDS = ("transaction_id", "tx_datetime", "customer_id", "terminal_id", "tx_amount")
LABEL_FIELDS = ("transaction_id", "is_fraud", "labelled_at")


class Settings(BaseSettings):
    """The platform's settings; immutable. Raises `SettingError` through `load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix="FRAUD_", env_file=".env", extra="ignore", frozen=True, populate_by_name=True
    )

    home: Path = Field(Path(".fraud"), description="Folder of all state: lake, registry, Dagster, drop folder.")
    lake_uri: str = Field("", description="Where the Delta tables are; empty means `lake` under FRAUD_HOME.")
    engine: Literal["duckdb"] = Field("duckdb", description="Feature engine; there is only this one yet.")
    duckdb_memory_limit: str = Field("1GB", description="Memory that DuckDB may use before it spills to disk.")

    kafka_bootstrap_servers: str = Field(
        "",
        alias="KAFKA_BOOTSTRAP_SERVERS",
        description="Brokers as `host:port,…`; empty means the embedded broker of `fraud-assets broker`.",
    )
    transactions_topic: str = Field("transactions", description="Topic of the transactions.")
    labels_topic: str = Field("fraud-labels", description="Topic of the late fraud labels.")
    kafka_timeout_seconds: float = Field(10.0, gt=0, description="How long to wait for an answer of the broker.")

    land_batch_rows: int = Field(100_000, ge=1, description="Rows per landing commit, at most.")
    land_batch_bytes: int = Field(32_000_000, ge=1_000, description="Body bytes per landing commit, at most.")
    land_interval_seconds: float = Field(1.0, ge=0, description="Pause between two looks of `fraud-assets land`.")
    file_quiet_seconds: float = Field(
        1.0, ge=0, description="A dropped file is taken once it has not changed for this long."
    )

    field_mapping: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict,
        description="Payload field of a contract field, as `transaction_id=trans_num,tx_amount=amt`.",
    )
    max_body_bytes: int = Field(100_000, ge=1, description="A larger message body is quarantined.")
    future_skew_seconds: float = Field(600.0, ge=0, description="How far `tx_datetime` may lie after the landing time.")
    duplicate_horizon_days: int = Field(
        90, ge=1, description="Days of ingest within which a transaction id counts as repeated."
    )
    feedback_delay_days: int = Field(7, ge=0, description="Days until a transaction without a label counts as genuine.")
    time_zone: str = Field("UTC", description="Time zone of the weekend and night features.")
    batch_rows: int = Field(500_000, ge=1, description="Rows per batch of features and scoring; bounds memory.")

    mlflow_tracking_uri: str = Field(
        "",
        alias="MLFLOW_TRACKING_URI",
        description="MLflow tracking and registry; empty means SQLite under FRAUD_HOME.",
    )
    model_name: str = Field("isolation_forest", description="Name of the registered model.")
    train_days: int = Field(28, ge=1, description="Length of the training window: the last days in the lake.")
    train_min_rows: int = Field(1_000, ge=2, description="Fewest rows that a model is trained on.")
    train_trees: int = Field(100, ge=1, description="Trees of the Isolation Forest.")
    train_seed: int = Field(42, ge=0, description="Random seed of the training.")
    alert_budget_per_day: float = Field(
        100.0, gt=0, description="Transactions per day that the analysts can review; sets the threshold."
    )
    alert_max_rate: float = Field(
        0.05, gt=0, le=1, description="Largest share of the transactions that may alert, whatever the budget."
    )

    sensor_interval_seconds: int = Field(5, ge=1, description="Pause between two looks of the sensors.")
    sensor_attempts: int = Field(3, ge=1, description="Failed runs in a row before the sensor stops and says so.")
    run_silent_seconds: int = Field(
        600, ge=60, description="A run of the sensors without any event for so long was killed: it is marked failed."
    )
    vacuum_hours: int = Field(168, ge=24, description="Age at which upkeep removes files that no table version uses.")
    compact_target_bytes: int = Field(
        134_217_728, ge=1_000_000, description="Size that upkeep compacts small files to."
    )

    handbook_data: Path = Field(
        Path("../shared/data/handbook"), description="The handbook's data, for proofs and benchmarks only."
    )

    @field_validator("field_mapping", mode="before")
    @classmethod
    def _split_mapping(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [part.strip() for part in value.split(",") if part.strip()]
        if any(pair.count("=") != 1 for pair in pairs):
            raise ValueError("write it as contract_field=payload_field, separated by commas")
        return {field.strip(): payload.strip() for field, payload in (pair.split("=") for pair in pairs)}

    @field_validator("field_mapping")
    @classmethod
    def _known_fields(cls, value: dict[str, str]) -> dict[str, str]:
        known = {*CONTRACT_FIELDS, *LABEL_FIELDS}
        unknown = sorted(set(value) - known)
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is no contract field; choose from {', '.join(sorted(known))}")
        return value

    @field_validator("home", "lake_uri")
    @classmethod
    def _plain_path(cls, value: Path | str) -> Path | str:
        # delta-rs panics on them.
        if any(bracket in str(value) for bracket in "[]"):
            raise ValueError("a path with [ or ] cannot hold Delta tables; choose another")
        return value

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError("write an IANA name such as UTC or Europe/Brussels") from error
        return value

    @cached_property
    def home_path(self) -> Path:
        """`FRAUD_HOME`, absolute."""
        return self.home.expanduser().absolute()

    @property
    def lake(self) -> str:
        """URI or absolute folder of the Delta tables."""
        return self.lake_uri or str(self.home_path / "lake")

    @property
    def mlflow_uri(self) -> str:
        """MLflow tracking and registry URI."""
        return self.mlflow_tracking_uri or f"sqlite:///{self.home_path / 'mlflow' / 'mlflow.db'}"

    @property
    def mlflow_artifacts(self) -> Path:
        """Artifact folder of a SQLite registry."""
        return self.home_path / "mlflow" / "artifacts"

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

    def payload_field(self, field: str) -> str:
        """Name that a contract field has in the payload."""
        return self.field_mapping.get(field, field)


def environment_name(field: str) -> str:
    """Environment variable of a setting, e.g. `FRAUD_HOME` of `home`."""
    return Settings.model_fields[field].alias or f"FRAUD_{field.upper()}"


def load_settings(**overrides: Any) -> Settings:
    """Settings of the environment, with `overrides` by field name.

    Raises:
        SettingError: naming the variable, its value and what is allowed.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        name = environment_name(field) if field in Settings.model_fields else field
        reason = first["msg"].removeprefix("Value error, ")
        raise SettingError(f"Setting {name} is {first['input']!r}: {reason}.") from None
