"""Groups of settings as plain values, for functions that do not need all settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

CONTRACT_FIELDS = ("transaction_id", "tx_datetime", "customer_id", "terminal_id", "tx_amount")
"""Required fields of a transaction."""
LABEL_FIELDS = ("transaction_id", "is_fraud", "labelled_at")
"""Required fields of a fraud label."""
WINDOW_DAYS = (1, 7, 30)
"""Lengths of the customer and terminal windows, in days."""


@dataclass(frozen=True)
class BatchLimits:
    """The maximum number of rows, and of bytes of message bodies, that a stage processes in one batch."""

    rows: int
    bytes: int


@dataclass(frozen=True)
class Contract:
    """The rules for all messages. `core.message_contract` builds the contract of each kind of message from them.

    Attributes:
        field_mapping: Payload field by contract field, for fields with another name.
        max_body_bytes: Maximum bytes of a message body. A larger body is quarantined.
        future_skew_seconds: Maximum seconds by which `tx_datetime` may be later than the landing time.
        time_zone: IANA name of the time zone of the weekend and night features.
    """

    field_mapping: Mapping[str, str] = field(default_factory=dict)
    max_body_bytes: int = 100_000
    future_skew_seconds: float = 600.0
    time_zone: str = "UTC"

    def payload_field(self, name: str) -> str:
        """Returns the name of a contract field in the payload."""
        return self.field_mapping.get(name, name)


@dataclass(frozen=True)
class PseudonymPolicy:
    """The fields that are stored as pseudonyms only.

    Attributes:
        fields: Names of payload or contract fields. If empty, no field is pseudonymized.
        key: Key of the HMAC.
        contract: Maps contract fields to payload fields, and limits the size of a body.
    """

    fields: tuple[str, ...]
    key: bytes = field(repr=False)
    contract: Contract = field(default_factory=Contract)


@dataclass(frozen=True)
class WindowPolicy:
    """The number of days that feature windows and duplicate detection look back.

    Attributes:
        feedback_delay_days: Days after which a transaction without a label counts as genuine.
        duplicate_horizon_days: Days after a transaction lands during which another one with its id is a duplicate.
    """

    feedback_delay_days: int
    duplicate_horizon_days: int

    @property
    def history_days(self) -> int:
        """Days that the windows of a transaction look back: the longest window plus the feedback delay."""
        return max(WINDOW_DAYS) + self.feedback_delay_days
