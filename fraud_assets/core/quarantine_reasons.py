"""Reasons to quarantine a message, each with a sentence for operators."""

from __future__ import annotations

from fraud_assets.core.bodies import BODY_REASONS

DUPLICATE = "duplicate"
"""Reason of a message whose transaction id landed before."""
LABEL_PREFIX = "label_"
"""Start of the reasons of labels. All other reasons are of transactions."""

_EITHER_REASONS = {
    **BODY_REASONS,
    "missing_field": "A required field is absent.",
    "invalid_id": "An identifier is blank or holds characters that cannot be stored.",
    "invalid_time": "A time is not ISO 8601 with date and time of day, does not exist, or is centuries away.",
}
REASONS: dict[str, str] = {
    **_EITHER_REASONS,
    "not_finite": "The amount is not a finite number.",
    "negative_amount": "The amount is below zero.",
    "future_time": "The transaction time is later than the landing time by more than FRAUD_FUTURE_SKEW_SECONDS.",
    DUPLICATE: "A transaction with this id landed before; the first one counts.",
    **{LABEL_PREFIX + reason: f"Fraud label: {text[0].lower()}{text[1:]}" for reason, text in _EITHER_REASONS.items()},
}
