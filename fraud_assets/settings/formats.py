"""Settings of message formats and the schema registry."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from fraud_assets.errors import SettingError
from fraud_assets.settings.source import GroupSettings

Format = Literal["json", "avro", "json_schema"]


class FormatSettings(GroupSettings):
    """Settings of message formats and the schema registry."""

    transactions_format: Format = Field(
        "json", description="Format of transaction message bodies: `json`, `avro` or `json_schema`."
    )
    labels_format: Format = Field(
        "json", description="Format of label message bodies: `json`, `avro` or `json_schema`."
    )
    schema_registry_url: str = Field(
        "",
        alias="SCHEMA_REGISTRY_URL",
        validate_default=True,
        description="URL of the Confluent Schema Registry, required for `avro` and `json_schema`. `mock://…` is a "
        "registry within the process.",
    )
    schema_registry_basic_auth_user_info: SecretStr = Field(
        SecretStr(""),
        alias="SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO",
        description="Credentials for the schema registry, as `user:password`.",
    )
    schema_registry_ca_location: str = Field(
        "",
        alias="SCHEMA_REGISTRY_CA_LOCATION",
        description="PEM file of the certificate authorities that verify the schema registry. If empty, the public "
        "authorities are trusted.",
    )

    @field_validator("schema_registry_url")
    @classmethod
    def _check_registry(cls, value: str, others: ValidationInfo) -> str:
        if not value:
            for field in ("transactions_format", "labels_format"):
                if (kind := others.data.get(field, "json")) != "json":
                    raise ValueError(f"FRAUD_{field.upper()} is {kind!r}, which needs a registry; set its URL")
            return value
        if not re.match(r"(https?|mock)://", value):
            raise ValueError("write it as https://host:port or mock://name")
        if "@" in value:
            # The message of a ValueError would show the value with the password.
            raise SettingError(
                "Setting SCHEMA_REGISTRY_URL contains credentials. Put them into SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO."
            )
        return value
