"""Appends messages and labels to the landing tables, each exactly once."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.parsing import parse_labels
from fraud_assets.core.pseudonyms import pseudonymise
from fraud_assets.core.schema import fraud_labels, quarantined_transactions, raw_transactions
from fraud_assets.kafka.schemas import create_label_decoder, create_transaction_decoder
from fraud_assets.lake.append import append_landed
from fraud_assets.lake.positions import Positions, find_largest_positions
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings


def append_transactions(
    lake: Lake, settings: Settings, batch: pa.Table, accepted: Mapping[str, str], reached: Positions | None = None
) -> int:
    """Appends a batch of messages to `raw_transactions`.

    Args:
        lake: The lake.
        settings: The settings of pseudonyms and formats.
        batch: The messages.
        accepted: Offsets that FRAUD_ACCEPT_LOST gives up, by partition; see `TopicReader`. The commit records them.
        reached: The positions to commit with the batch; default: those of its rows.

    Returns:
        The number of rows that the table did not hold yet.
    """
    rows = pseudonymise(batch, settings.pseudonym_policy, create_transaction_decoder(settings))
    return append_landed(lake, raw_transactions, rows, reached, build_loss_note(accepted))


def append_labels(
    lake: Lake,
    settings: Settings,
    raw: pa.Table,
    parsed: tuple[pa.Table, pa.Table] | None = None,
    positions: Positions | None = None,
) -> tuple[int, int]:
    """Appends a batch of labels: rejected ones to quarantine first, then valid ones to `fraud_labels`.

    If the process is killed between the two commits, a retry parses the same messages to the same result and finds
    that quarantine already holds them.

    Args:
        lake: The lake.
        settings: The message contract and formats.
        raw: The messages.
        parsed: The valid and the rejected labels of `raw`; default: those of `parse_labels`.
        positions: The positions to commit with the batch; default: those of its rows.

    Returns:
        The number of valid and of rejected labels that the tables did not hold yet.
    """
    good, rejected = parsed or parse_labels(raw, settings.contract, create_label_decoder(settings))
    reached = find_largest_positions(raw) if positions is None else positions
    refused = append_landed(lake, quarantined_transactions, rejected, reached) if rejected.num_rows else 0
    return append_landed(lake, fraud_labels, good, reached), refused


def build_loss_note(accepted: Mapping[str, str]) -> dict[str, str]:
    """Builds the commit metadata about messages that were given up."""
    lost = ", ".join(f"{partition}: {offsets}" for partition, offsets in sorted(accepted.items()))
    return {"accepted_lost": lost} if lost else {}


def count_payload_bytes(batch: pa.Table) -> int:
    """Counts the bytes of keys and bodies."""
    lengths = [pc.sum(pc.binary_length(batch[name])).as_py() or 0 for name in ("key", "value")]
    return sum(lengths)
