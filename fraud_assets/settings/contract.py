"""Settings of the message contract and of pseudonyms."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import NoDecode

from fraud_assets.settings.pairs import KeyValuePairs
from fraud_assets.settings.source import GroupSettings
from fraud_assets.settings.values import CONTRACT_FIELDS, LABEL_FIELDS

SHORTEST_KEY = 32
"""Minimum number of characters of FRAUD_PSEUDONYM_KEY. It equals the number of bytes in a pseudonym."""

_MAPPING = KeyValuePairs("contract_field=payload_field", value=r"[^=]*")


class ContractSettings(GroupSettings):
    """Settings of the message contract and of pseudonyms."""

    field_mapping: Annotated[dict[str, str], NoDecode, _MAPPING] = Field(
        default_factory=dict,
        description="Payload fields of contract fields, if the names differ, for example "
        "`transaction_id=trans_num,tx_amount=amt`. `after.id` names the field `after.id` or, if it does not exist, the "
        "field `id` of the object `after`.",
    )
    pseudonymise: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Payload fields that are stored only as keyed HMAC-SHA-256, for example `cc_num,card.number`. "
        "Message keys, header values, bodies that cannot be parsed and dropped files are then not stored in "
        "plain text either.",
    )
    pseudonym_key: SecretStr = Field(
        SecretStr(""),
        validate_default=True,
        description="Key for FRAUD_PSEUDONYMISE, at least 32 characters, for example from `openssl rand -hex 32`. Do "
        "not change it: with another key, the same card gets another pseudonym.",
    )
    max_body_bytes: int = Field(
        100_000, ge=1, description="Maximum bytes of a message body. A larger body is quarantined."
    )
    future_skew_seconds: float = Field(
        600.0,
        ge=0,
        description="Maximum seconds by which `tx_datetime` may be later than the landing time. A later transaction is "
        "quarantined.",
    )

    @field_validator("pseudonymise", mode="before")
    @classmethod
    def _split_fields(cls, value: Any) -> Any:
        return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value

    @field_validator("pseudonymise")
    @classmethod
    def _check_only_identifiers(cls, value: tuple[str, ...], others: ValidationInfo) -> tuple[str, ...]:
        mapping = others.data.get("field_mapping", {})
        for field in ("tx_datetime", "tx_amount", "is_fraud", "labelled_at"):
            if {field, mapping.get(field, field)} & set(value):
                raise ValueError(f"{field} must stay readable; name only identifiers")
        for field, path in mapping.items():
            for name in value:
                if path.lower().startswith(f"{name.lower()}."):
                    raise ValueError(
                        f"{name} contains {field} ({path}), which must stay readable; name fields within {name}"
                    )
        return value

    @field_validator("pseudonym_key")
    @classmethod
    def _check_key_length(cls, value: SecretStr, others: ValidationInfo) -> SecretStr:
        length = len(value.get_secret_value())
        if others.data.get("pseudonymise") and length < SHORTEST_KEY:
            raise ValueError(
                f"it has {length} characters, but FRAUD_PSEUDONYMISE needs at least {SHORTEST_KEY}; create one with "
                "`openssl rand -hex 32`"
            )
        return value

    @field_validator("field_mapping")
    @classmethod
    def _check_fields(cls, value: dict[str, str]) -> dict[str, str]:
        known = {*CONTRACT_FIELDS, *LABEL_FIELDS}
        unknown = sorted(set(value) - known)
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is not a contract field; choose from {', '.join(sorted(known))}")
        for field, path in value.items():
            if not all(path.split(".")):
                raise ValueError(f"the path of {field}, {path!r}, has an empty part; write it as after.id")
        return value
