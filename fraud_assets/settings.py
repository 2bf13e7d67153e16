"""Every setting once: its name, default, meaning and limits, read from the environment or `.env`.

`Settings()` reads the environment; tests and the command line pass overrides as arguments. The table in
the README is held to this module by a test.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from fraud_assets.errors import SettingError
from fraud_assets.system.env_file import check_env_file
from fraud_assets.system.paths import check_characters, folder_path, is_uri

CONTRACT_FIELDS = ("transaction_id", "tx_datetime", "customer_id", "terminal_id", "tx_amount")
LABEL_FIELDS = ("transaction_id", "is_fraud", "labelled_at")
SHORTEST_KEY = 32
"""Characters of a key for pseudonyms, at least: as long as what it makes."""

Format = Literal["json", "avro", "json_schema"]
RETAINED_TABLES = (
    "raw_transactions",
    "fraud_labels",
    "quarantined_transactions",
    "transaction_features",
    "fraud_predictions",
)


@dataclass(frozen=True)
class BatchLimits:
    """The most rows, and bytes of message bodies, that a stage takes at a time."""

    rows: int
    bytes: int


_SOURCES = SettingsConfigDict(env_prefix="FRAUD_", env_file=".env", extra="ignore", frozen=True, populate_by_name=True)


class LogSettings(BaseSettings):
    """How the commands log. Apart from the other settings, so that an invalid one is logged as it should be."""

    model_config = _SOURCES

    log_format: Literal["text", "json"] = Field(
        "text", description="Format of the commands' log on standard error: `text`, or `json` with an object a line."
    )


class Settings(LogSettings):
    """The platform's settings; immutable. Raises `SettingError` through `load_settings`."""

    model_config = _SOURCES

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
    engine: Literal["duckdb", "spark"] = Field(
        "duckdb", description="What computes features and scores: `duckdb` in the process, or `spark`."
    )
    duckdb_memory_limit: str = Field("1GB", description="Memory that DuckDB may use before it spills to disk.")
    spark_master: str = Field(
        "local[*]",
        description="Master of Spark: `local[*]`, `spark://host:7077`, `yarn`, `k8s://…`.",
    )
    spark_memory: str = Field(
        "2g",
        pattern=r"^[1-9][0-9]*[mg]$",
        description="Memory of Spark's driver, and of each executor beside it, as `2g`.",
    )
    spark_jars: str = Field(
        "",
        description="Folder of the jars of Spark's Kafka connector; empty means those that Maven resolves.",
    )
    spark_land_rows: int = Field(
        1_000_000, ge=1, description="Messages per landing commit by Spark, at most, over all partitions."
    )
    spark_batch_rows: int = Field(
        10_000_000,
        ge=1,
        description="Rows per batch of features and scoring on Spark, in place of FRAUD_BATCH_ROWS: what does not fit "
        "into memory goes to disk, and history is read once a batch.",
    )
    spark_batch_bytes: int = Field(
        8_000_000_000,
        ge=1_000,
        description="Bytes of message bodies per batch of features on Spark, in place of FRAUD_BATCH_BYTES.",
    )
    spark_conf: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict,
        description="Further settings of Spark, as `spark.executor.instances=4;spark.executor.cores=2`; they win. "
        "Secrets belong in Spark's own `spark-defaults.conf`.",
    )

    kafka_bootstrap_servers: str = Field(
        "",
        alias="KAFKA_BOOTSTRAP_SERVERS",
        description="Brokers as `host:port,…`; empty means the embedded broker of `fraud-assets broker`.",
    )
    kafka_client_properties: str = Field(
        "",
        alias="KAFKA_CLIENT_PROPERTIES",
        description="File of client settings, as Confluent Cloud hands it out; variables win over it.",
    )
    kafka_security_protocol: Literal["", "PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "",
        alias="KAFKA_SECURITY_PROTOCOL",
        description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL. "
        "Empty means SASL_SSL where a user name is set, SSL where a CA or a certificate is, else PLAINTEXT.",
    )
    kafka_sasl_mechanism: Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "",
        alias="KAFKA_SASL_MECHANISM",
        description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; empty means PLAIN.",
    )
    kafka_sasl_username: str = Field(
        "", alias="KAFKA_SASL_USERNAME", description="User name, or the key of an API key."
    )
    kafka_sasl_password: SecretStr = Field(
        SecretStr(""), alias="KAFKA_SASL_PASSWORD", description="Its password, or the secret of an API key."
    )
    kafka_ssl_ca_location: str = Field(
        "",
        alias="KAFKA_SSL_CA_LOCATION",
        description="PEM file of the authority that signed the brokers' certificates; empty means the system's.",
    )
    kafka_ssl_certificate_location: str = Field(
        "", alias="KAFKA_SSL_CERTIFICATE_LOCATION", description="PEM file of the client's certificate (mutual TLS)."
    )
    kafka_ssl_key_location: str = Field(
        "", alias="KAFKA_SSL_KEY_LOCATION", description="PEM file of the client's private key."
    )
    kafka_ssl_key_password: SecretStr = Field(
        SecretStr(""), alias="KAFKA_SSL_KEY_PASSWORD", description="Password of that key, if it has one."
    )
    confluent_api: str = Field(
        "",
        alias="CONFLUENT_API",
        description="Base URL of a Kafka REST API (v3), for `simulate` and `replay` where only HTTPS goes out.",
    )
    confluent_api_key: SecretStr = Field(
        SecretStr(""), alias="API_KEY", description="Key of that API as `key:secret`, or the base64 of that."
    )
    confluent_cluster_id: str = Field("", alias="CLUSTER_ID", description="Cluster of that API, as `lkc-…`.")
    transactions_topic: str = Field("transactions", description="Topic of the transactions.")
    labels_topic: str = Field("fraud-labels", description="Topic of the late fraud labels.")
    kafka_timeout_seconds: float = Field(10.0, gt=0, description="How long to wait for an answer of the broker.")

    transactions_format: Format = Field(
        "json", description="Format of the transactions' bodies: `json`, `avro` or `json_schema`."
    )
    labels_format: Format = Field("json", description="Format of the labels' bodies: `json`, `avro` or `json_schema`.")
    schema_registry_url: str = Field(
        "",
        alias="SCHEMA_REGISTRY_URL",
        validate_default=True,
        description="Confluent Schema Registry for `avro` and `json_schema`; `mock://…` is one in the process.",
    )
    schema_registry_basic_auth_user_info: SecretStr = Field(
        SecretStr(""), alias="SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO", description="Its credentials, as `user:password`."
    )
    schema_registry_ca_location: str = Field(
        "",
        alias="SCHEMA_REGISTRY_CA_LOCATION",
        description="File of the certificates that the registry's own is checked against; empty means the public ones.",
    )

    land_batch_rows: int = Field(100_000, ge=1, description="Rows per landing commit, at most.")
    land_batch_bytes: int = Field(32_000_000, ge=1_000, description="Body bytes per landing commit, at most.")
    land_interval_seconds: float = Field(
        1.0, gt=0, description="`fraud-assets land` commits a message at the latest so long after it came."
    )
    land_http: str = Field(
        "127.0.0.1:9108",
        pattern=r"^([^:\s]+:[0-9]{1,5})?$",
        description="Where `fraud-assets land` serves `/metrics` and `/health`, or the next free port; empty for none.",
    )
    dagster_event_seconds: float = Field(
        30.0, gt=0, description="How often `fraud-assets land` tells Dagster what it materialized."
    )
    consumer_group: str = Field(
        "", description="Consumer group of `fraud-assets land`; empty means one for all landers into the same lake."
    )
    accept_lost: Annotated[dict[str, int], NoDecode] = Field(
        default_factory=dict,
        description="Messages that are given up because the broker no longer has them: all before an offset, as "
        "`transactions/0=1200,transactions/1=900`.",
    )
    file_quiet_seconds: float = Field(
        1.0, ge=0, description="A dropped file is taken once it has not changed for this long."
    )

    field_mapping: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict,
        description="Payload field of a contract field, as `transaction_id=trans_num,tx_amount=amt`; `after.id` is "
        "`id` within the object `after`, or a field of that very name.",
    )
    pseudonymise: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Payload fields that are stored as keyed HMAC-SHA-256 only, as `cc_num,card.number`; message keys, "
        "header values, bodies that cannot be parsed and dropped files are then not kept in clear either.",
    )
    pseudonym_key: SecretStr = Field(
        SecretStr(""),
        validate_default=True,
        description="Key of FRAUD_PSEUDONYMISE, 32 characters or more, as `openssl rand -hex 32` makes them. Keep it: "
        "with another key the same card has another pseudonym.",
    )
    max_body_bytes: int = Field(100_000, ge=1, description="A larger message body is quarantined.")
    future_skew_seconds: float = Field(600.0, ge=0, description="How far `tx_datetime` may lie after the landing time.")
    duplicate_horizon_days: int = Field(
        90, ge=1, description="Days of ingest within which a transaction id counts as repeated."
    )
    feedback_delay_days: int = Field(7, ge=0, description="Days until a transaction without a label counts as genuine.")
    time_zone: str = Field("UTC", description="Time zone of the weekend and night features.")
    batch_rows: int = Field(500_000, ge=1, description="Rows per batch of features and scoring; bounds memory.")
    batch_bytes: int = Field(
        200_000_000, ge=1_000, description="Bytes of message bodies per batch of features, at most; bounds memory."
    )

    mlflow_tracking_uri: str = Field(
        "",
        alias="MLFLOW_TRACKING_URI",
        description="MLflow tracking and registry; empty means SQLite under FRAUD_HOME.",
    )
    model_name: str = Field("isolation_forest", description="Name of the registered model.")
    train_days: int = Field(28, ge=1, description="Length of the training window: the last days in the lake.")
    train_min_rows: int = Field(1_000, ge=2, description="Fewest rows that a model is trained on.")
    train_max_rows: int = Field(
        1_000_000,
        ge=256,
        description="Rows of a larger training window that are drawn to train on, uniformly and by FRAUD_TRAIN_SEED; "
        "a tree sees 256 of them, so that more take memory and change nothing.",
    )
    train_trees: int = Field(100, ge=1, description="Trees of the Isolation Forest.")
    train_seed: int = Field(42, ge=0, description="Random seed of the training and of its sample.")
    alert_budget_per_day: float = Field(
        100.0, gt=0, description="Transactions per day that the analysts can review; sets the threshold."
    )
    alert_max_rate: float = Field(
        0.05, gt=0, le=1, description="Largest share of the transactions that may alert, whatever the budget."
    )
    alert_budget_warn_factor: float = Field(
        3.0,
        ge=1,
        description="A day with more alerts than this many times FRAUD_ALERT_BUDGET_PER_DAY is a warning, in the "
        "scoring run, its metadata and `fraud-assets doctor`.",
    )

    sensor_interval_seconds: int = Field(5, ge=1, description="Pause between two looks of the sensors.")
    sensor_attempts: int = Field(3, ge=1, description="Failed runs in a row before the sensor stops and says so.")
    run_silent_seconds: int = Field(
        600, ge=60, description="A run of the sensors without any event for so long was killed: it is marked failed."
    )
    run_days: int = Field(
        1,
        ge=1,
        description="Days that maintenance keeps successful runs of the sensors in Dagster's history; failed runs, the last "
        "run of each asset, and runs that a person started stay.",
    )
    vacuum_hours: int = Field(
        168, ge=24, description="Age at which maintenance removes files that no table version uses."
    )
    log_hours: int = Field(
        2,
        ge=1,
        description="Hours of table versions that maintenance keeps for time travel; at a commit a second more of them make "
        "every commit slower.",
    )
    compact_target_bytes: int = Field(
        134_217_728, ge=1_000_000, description="Size that maintenance compacts small files to."
    )
    # Below what it is checked against.
    retention_days: Annotated[dict[str, int], NoDecode] = Field(
        default_factory=dict,
        description="Days that maintenance keeps rows of a table, as `raw_transactions=400,quarantined_transactions=90`; "
        "a table that is not named is kept for ever.",
    )

    handbook_data: Path = Field(
        Path("../shared/data/handbook"), description="The handbook's data, for proofs and benchmarks only."
    )

    @field_validator("schema_registry_url")
    @classmethod
    def _registry_where_needed(cls, value: str, others: ValidationInfo) -> str:
        if not value:
            for field in ("transactions_format", "labels_format"):
                if (kind := others.data.get(field, "json")) != "json":
                    raise ValueError(f"{environment_name(field)} is {kind!r}, so name the registry")
            return value
        if not re.match(r"(https?|mock)://", value):
            raise ValueError("write it as https://host:port or mock://name")
        if "@" in value:
            # A plain ValueError would show the value, and with it the password.
            raise SettingError(
                "Setting SCHEMA_REGISTRY_URL holds credentials: put them into SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO."
            )
        return value

    @field_validator("pseudonymise", mode="before")
    @classmethod
    def _split_fields(cls, value: Any) -> Any:
        return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value

    @field_validator("pseudonymise")
    @classmethod
    def _identifiers_only(cls, value: tuple[str, ...], others: ValidationInfo) -> tuple[str, ...]:
        mapping = others.data.get("field_mapping", {})
        for field in ("tx_datetime", "tx_amount", "is_fraud", "labelled_at"):
            if {field, mapping.get(field, field)} & set(value):
                raise ValueError(f"{field} is needed as it is; name identifiers only")
        for field, path in mapping.items():
            for whole in value:
                if path.lower().startswith(f"{whole.lower()}."):
                    raise ValueError(f"{whole} holds {field} ({path}), which is needed; name fields within {whole}")
        return value

    @field_validator("pseudonym_key")
    @classmethod
    def _long_key(cls, value: SecretStr, others: ValidationInfo) -> SecretStr:
        length = len(value.get_secret_value())
        if others.data.get("pseudonymise") and length < SHORTEST_KEY:
            raise ValueError(
                f"it has {length} characters and FRAUD_PSEUDONYMISE needs {SHORTEST_KEY} or more; make one with "
                "`openssl rand -hex 32`"
            )
        return value

    @field_validator("accept_lost", mode="before")
    @classmethod
    def _split_accepted(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [part.strip() for part in value.split(",") if part.strip()]
        if not all(re.fullmatch(r"[^=/]+/[0-9]+=[0-9]+", pair) for pair in pairs):
            raise ValueError("write it as topic/partition=offset, separated by commas")
        return {place: int(offset) for place, offset in (pair.split("=") for pair in pairs)}

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
        for field, path in value.items():
            if not all(path.split(".")):
                raise ValueError(f"{field} has a path with an empty part, {path!r}; write it as after.id")
        return value

    @field_validator("retention_days", mode="before")
    @classmethod
    def _split_retention(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [part.strip() for part in value.split(",") if part.strip()]
        if not all(re.fullmatch(r"\w+\s*=\s*[0-9]{1,6}", pair) for pair in pairs):
            raise ValueError("write it as table=days, separated by commas")
        return {table.strip(): int(days) for table, days in (pair.split("=") for pair in pairs)}

    @field_validator("retention_days")
    @classmethod
    def _long_enough(cls, value: dict[str, int], others: ValidationInfo) -> dict[str, int]:
        if not value:
            return value
        from fraud_assets.core.features import history_days

        unknown = sorted(set(value) - set(RETAINED_TABLES))
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is no table with a retention; choose from "
                             f"{', '.join(RETAINED_TABLES)}")  # fmt: skip
        windows = history_days(others.data.get("feedback_delay_days", 0)) + 1
        needs = {
            "transaction_features": max(
                windows, others.data.get("duplicate_horizon_days", 0) + 1, others.data.get("train_days", 0) + 1
            ),
            "fraud_labels": windows,
        }
        for table, days in value.items():
            if days < needs.get(table, 1):
                raise ValueError(
                    f"{table} is needed for {needs.get(table, 1)} days (windows, duplicates, training); keep it as long"
                )
        return value

    @field_validator("lake_options")
    @classmethod
    def _pairs(cls, value: SecretStr) -> SecretStr:
        if not all("=" in part for part in value.get_secret_value().split(",") if part.strip()):
            raise ValueError("write it as key=value, separated by commas")
        return value

    @field_validator("spark_conf", mode="before")
    @classmethod
    def _spark_settings(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [pair.strip().partition("=") for pair in value.split(";") if pair.strip()]
        if not all(name.startswith("spark.") and equals for name, equals, _ in pairs):
            raise ValueError("write it as spark.name=value, separated by semicolons")
        return {name.strip(): setting.strip() for name, _, setting in pairs}

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

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        # A folder of the database, as "America", is an OSError.
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError("write an IANA name such as UTC or Europe/Brussels") from error
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
        """FRAUD_LAKE_OPTIONS as a mapping; its values may be secrets."""
        pairs = (part.partition("=") for part in self.lake_options.get_secret_value().split(",") if part.strip())
        return {name.strip(): value.strip() for name, _, value in pairs}

    @property
    def mlflow_uri(self) -> str:
        """MLflow tracking and registry URI."""
        # SQLAlchemy decodes the path of a URI, and a question mark would end it.
        path = str(self.mlflow_database).replace("%", "%25").replace("?", "%3F")
        return self.mlflow_tracking_uri or f"sqlite:///{path}"

    @property
    def mlflow_database(self) -> Path:
        """Database of the default registry."""
        return self.home_path / "mlflow" / "mlflow.db"

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

    @property
    def batch_limits(self) -> BatchLimits:
        """Limits of a batch in this process."""
        return BatchLimits(self.batch_rows, self.batch_bytes)

    @property
    def spark_batch_limits(self) -> BatchLimits:
        """Limits of a batch on Spark."""
        return BatchLimits(self.spark_batch_rows, self.spark_batch_bytes)

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
    env_file = overrides.get("_env_file", Settings.model_config.get("env_file"))
    if env_file is not None:
        check_env_file(Path(env_file))
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        name = environment_name(field) if field in Settings.model_fields else field
        reason = first["msg"].removeprefix("Value error, ")
        secret = field in Settings.model_fields and Settings.model_fields[field].annotation is SecretStr
        value = str(first["input"]) if isinstance(first["input"], Path) else first["input"]
        shown = "cannot be used" if secret else f"is {value!r}"
        raise SettingError(f"Setting {name} {shown}: {reason}.") from None
