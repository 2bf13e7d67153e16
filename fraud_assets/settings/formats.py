"""Formats of message bodies, and the schema registry."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from fraud_assets.errors import SettingError
from fraud_assets.settings.source import GroupSettings

Format = Literal["json", "avro", "json_schema"]


class FormatSettings(GroupSettings):
    """Formats of message bodies, and the schema registry."""

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

    @field_validator("schema_registry_url")
    @classmethod
    def _registry_where_needed(cls, value: str, others: ValidationInfo) -> str:
        if not value:
            for field in ("transactions_format", "labels_format"):
                if (kind := others.data.get(field, "json")) != "json":
                    raise ValueError(f"FRAUD_{field.upper()} is {kind!r}, so name the registry")
            return value
        if not re.match(r"(https?|mock)://", value):
            raise ValueError("write it as https://host:port or mock://name")
        if "@" in value:
            # A plain ValueError would show the value, and with it the password.
            raise SettingError(
                "Setting SCHEMA_REGISTRY_URL holds credentials: put them into SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO."
            )
        return value
