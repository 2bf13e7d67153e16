"""Declares every setting once, with name, default, meaning and limits, and reads it from the environment or `.env`.

`Settings` composes the groups. Tests and the command line pass overrides as arguments. A test checks that the table in
docs/settings.md matches these classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from fraud_assets.errors import SettingError
from fraud_assets.settings.contract import SHORTEST_KEY, ContractSettings
from fraud_assets.settings.engine import EngineSettings
from fraud_assets.settings.features import FeatureSettings
from fraud_assets.settings.formats import FormatSettings
from fraud_assets.settings.kafka import KafkaSettings
from fraud_assets.settings.landing import LandingSettings
from fraud_assets.settings.log import LogSettings
from fraud_assets.settings.model import ModelSettings
from fraud_assets.settings.operation import RETAINED_TABLES, OperationSettings
from fraud_assets.settings.orchestration import OrchestrationSettings
from fraud_assets.settings.storage import StorageSettings
from fraud_assets.settings.values import (
    CONTRACT_FIELDS,
    LABEL_FIELDS,
    WINDOW_DAYS,
    BatchLimits,
    Contract,
    PseudonymPolicy,
    WindowPolicy,
)
from fraud_assets.system.env_file import check_env_file

__all__ = [
    "CONTRACT_FIELDS",
    "LABEL_FIELDS",
    "RETAINED_TABLES",
    "SHORTEST_KEY",
    "WINDOW_DAYS",
    "BatchLimits",
    "Contract",
    "LogSettings",
    "PseudonymPolicy",
    "Settings",
    "WindowPolicy",
    "environment_name",
    "load_settings",
    "load_settings_or_defaults",
]


_REASONS = {
    "float_parsing": "write a number",
    "int_parsing": "write a whole number",
    "bool_parsing": "write true or false",
}
"""Reasons in place of pydantic's own, by its type of the error."""


# pydantic orders the fields from the last base class to the first. Each group is validated after the groups below it.
class Settings(
    LogSettings,
    OrchestrationSettings,
    OperationSettings,
    ModelSettings,
    FeatureSettings,
    ContractSettings,
    LandingSettings,
    FormatSettings,
    KafkaSettings,
    EngineSettings,
    StorageSettings,
):
    """All settings of the platform; immutable. `load_settings` reports invalid values as `SettingError`."""

    @property
    def mlflow_uri(self) -> str:
        """URI of MLflow's tracking server and model registry."""
        # SQLAlchemy decodes the path of a URI, and a question mark would end the path.
        path = str(self.mlflow_database).replace("%", "%25").replace("?", "%3F")
        return self.mlflow_tracking_uri or f"sqlite:///{path}"

    @property
    def mlflow_database(self) -> Path:
        """SQLite database of the default model registry."""
        return self.home_path / "mlflow" / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        """Artifact folder of a SQLite model registry."""
        return self.home_path / "mlflow" / "artifacts"

    @property
    def contract(self) -> Contract:
        """The contract that messages must meet."""
        return Contract(self.field_mapping, self.max_body_bytes, self.future_skew_seconds, self.time_zone)

    @property
    def pseudonym_policy(self) -> PseudonymPolicy:
        """The fields that are stored as pseudonyms only, and the key of the pseudonyms."""
        return PseudonymPolicy(self.pseudonymise, self.pseudonym_key.get_secret_value().encode(), self.contract)


def environment_name(field: str) -> str:
    """Returns the environment variable of a setting, for example `FRAUD_HOME` for `home`."""
    return Settings.model_fields[field].alias or f"FRAUD_{field.upper()}"


def load_settings(**overrides: Any) -> Settings:
    """Loads the settings from the environment and `.env`.

    Args:
        **overrides: Values by field name. They take precedence.

    Raises:
        SettingError: A value is invalid. The message names the variable, its value and the allowed values.
    """
    env_file = overrides.get("_env_file", Settings.model_config.get("env_file"))
    if env_file is not None:
        check_env_file(Path(env_file))
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors()[0]
        location = str(first["loc"][0])
        # pydantic names a setting by its alias if it has one.
        fields = {info.alias or name: name for name, info in Settings.model_fields.items()}
        field = fields.get(location, location)
        name = environment_name(field) if field in Settings.model_fields else field
        reason = _REASONS.get(first["type"]) or first["msg"].removeprefix("Value error, ")
        secret = field in Settings.model_fields and Settings.model_fields[field].annotation is SecretStr
        value = str(first["input"]) if isinstance(first["input"], Path) else first["input"]
        shown = "cannot be used" if secret else f"is {value!r}"
        raise SettingError(f"Setting {name} {shown}: {reason}.") from None


def load_settings_or_defaults() -> Settings:
    """Loads the settings; if one is invalid, returns the defaults of all.

    Dagster's definitions must load in any case, so that the web UI starts. Runs and sensors report the invalid setting.
    """
    try:
        return load_settings()
    except SettingError:
        return Settings.model_construct()
