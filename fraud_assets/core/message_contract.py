"""What a message must hold: its fields, their kinds and limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fraud_assets.settings import CONTRACT_FIELDS, LABEL_FIELDS, Contract

_LONGEST_SKEW_SECONDS = 1e12
"""Longer than all of time; keeps sums of microseconds within int64."""

ValueKind = Literal["id", "time", "amount", "flag"]


@dataclass(frozen=True)
class ContractField:
    """A field of the contract: its name, the path of its value in the payload, and the kind of the value."""

    name: str
    payload: str
    kind: ValueKind

    @property
    def shown(self) -> str:
        """How messages name the field."""
        return self.name if self.name == self.payload else f"{self.payload} ({self.name})"


@dataclass(frozen=True)
class MessageContract:
    """What a message must hold. `skew` in microseconds; None means that times are not judged."""

    fields: tuple[ContractField, ...]
    max_body_bytes: int
    skew: int | None


_TRANSACTION_KINDS: dict[str, ValueKind] = {
    "transaction_id": "id",
    "tx_datetime": "time",
    "customer_id": "id",
    "terminal_id": "id",
    "tx_amount": "amount",
}
_LABEL_KINDS: dict[str, ValueKind] = {"transaction_id": "id", "is_fraud": "flag", "labelled_at": "time"}


def transaction_contract(contract: Contract) -> MessageContract:
    """Returns what a transaction must hold."""
    fields = tuple(
        ContractField(name, contract.payload_field(name), _TRANSACTION_KINDS[name]) for name in CONTRACT_FIELDS
    )
    skew = round(min(contract.future_skew_seconds, _LONGEST_SKEW_SECONDS) * 1_000_000)
    return MessageContract(fields, contract.max_body_bytes, skew)


def label_contract(contract: Contract) -> MessageContract:
    """Returns what a fraud label must hold. Its times are not compared with the landing."""
    fields = tuple(ContractField(name, contract.payload_field(name), _LABEL_KINDS[name]) for name in LABEL_FIELDS)
    return MessageContract(fields, contract.max_body_bytes, None)
