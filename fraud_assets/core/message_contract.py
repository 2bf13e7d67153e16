"""The contract of transactions and labels: their fields, the kinds of the values and the limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fraud_assets.settings import CONTRACT_FIELDS, LABEL_FIELDS, Contract

_LONGEST_SKEW_SECONDS = 1e12
"""Longer than the range of all valid times. It keeps sums of microseconds within int64."""

ValueKind = Literal["id", "time", "amount", "flag"]


@dataclass(frozen=True)
class ContractField:
    """A field of the contract: its name, the path of its value in the payload, and the kind of the value."""

    name: str
    payload: str
    kind: ValueKind

    @property
    def shown(self) -> str:
        """The name of the field in messages to users."""
        return self.name if self.name == self.payload else f"{self.payload} ({self.name})"


@dataclass(frozen=True)
class MessageContract:
    """The contract of one kind of message.

    Attributes:
        fields: The required fields.
        max_body_bytes: Maximum bytes of a body.
        skew: Maximum microseconds by which a time may be later than the landing; None if times are not checked.
    """

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


def build_transaction_contract(contract: Contract) -> MessageContract:
    """Returns the contract of transactions."""
    fields = tuple(
        ContractField(name, contract.payload_field(name), _TRANSACTION_KINDS[name]) for name in CONTRACT_FIELDS
    )
    skew = round(min(contract.future_skew_seconds, _LONGEST_SKEW_SECONDS) * 1_000_000)
    return MessageContract(fields, contract.max_body_bytes, skew)


def build_label_contract(contract: Contract) -> MessageContract:
    """Returns the contract of fraud labels. Their times are not compared with the landing."""
    fields = tuple(ContractField(name, contract.payload_field(name), _LABEL_KINDS[name]) for name in LABEL_FIELDS)
    return MessageContract(fields, contract.max_body_bytes, None)
