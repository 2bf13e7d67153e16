"""Small values that pure functions take in place of all settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

CONTRACT_FIELDS = ("transaction_id", "tx_datetime", "customer_id", "terminal_id", "tx_amount")
"""Fields that a transaction must hold."""
LABEL_FIELDS = ("transaction_id", "is_fraud", "labelled_at")
"""Fields that a fraud label must hold."""
WINDOW_DAYS = (1, 7, 30)
"""Lengths of the windows of customers and terminals, in days."""


@dataclass(frozen=True)
class BatchLimits:
    """The most rows, and bytes of message bodies, that a stage takes at a time."""

    rows: int
    bytes: int


@dataclass(frozen=True)
class Contract:
    """What a message must hold.

    Attributes:
        field_mapping: payload field of a contract field, where it has another name.
        max_body_bytes: a larger body is quarantined.
        future_skew_seconds: how far `tx_datetime` may lie after the landing.
        time_zone: IANA name; weekend and night of a transaction are those of this zone.
    """

    field_mapping: Mapping[str, str] = field(default_factory=dict)
    max_body_bytes: int = 100_000
    future_skew_seconds: float = 600.0
    time_zone: str = "UTC"

    def payload_field(self, name: str) -> str:
        """Returns the name that a contract field has in the payload."""
        return self.field_mapping.get(name, name)


@dataclass(frozen=True)
class PseudonymPolicy:
    """Which fields are stored as pseudonyms only.

    Attributes:
        fields: names of payload or contract fields; empty: none.
        key: key of the HMAC.
        contract: maps contract fields to payload fields, and limits the size of a body.
    """

    fields: tuple[str, ...]
    key: bytes = field(repr=False)
    contract: Contract = field(default_factory=Contract)


@dataclass(frozen=True)
class WindowPolicy:
    """How far windows and duplicates reach back.

    Attributes:
        feedback_delay_days: days until a transaction without a label counts as genuine.
        duplicate_horizon_days: days of ingest within which a transaction id counts as repeated.
    """

    feedback_delay_days: int
    duplicate_horizon_days: int

    @property
    def history_days(self) -> int:
        """Days before a transaction that its windows reach back: the longest window and the feedback delay."""
        return max(WINDOW_DAYS) + self.feedback_delay_days
