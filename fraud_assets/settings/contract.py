"""What a message must hold, and what of it is stored as a pseudonym."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import NoDecode

from fraud_assets.settings.pairs import KeyValuePairs
from fraud_assets.settings.source import GroupSettings
from fraud_assets.settings.values import CONTRACT_FIELDS, LABEL_FIELDS

SHORTEST_KEY = 32
"""Fewest characters of FRAUD_PSEUDONYM_KEY: as many as a pseudonym has bytes."""

_MAPPING = KeyValuePairs("contract_field=payload_field", value=r"[^=]*")


class ContractSettings(GroupSettings):
    """What a message must hold, and what of it is stored as a pseudonym."""

    field_mapping: Annotated[dict[str, str], NoDecode, _MAPPING] = Field(
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
