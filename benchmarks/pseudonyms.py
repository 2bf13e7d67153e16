"""Compares landing with and without pseudonyms for card numbers: python benchmarks/pseudonyms.py [--quick]"""

import json
import sys
import tempfile
from pathlib import Path

import _lakes as lakes
import pyarrow as pa

from fraud_assets.core.pseudonyms import pseudonymise
from fraud_assets.core.schema import HEADERS, TIME, raw_transactions
from fraud_assets.lake.append import append_landed
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import load_settings

CARDS = 5_000


def messages(rows: int, first: int) -> pa.Table:
    """Returns transactions with the contract's five fields, keyed by a card number."""
    cards = [4_111_111_111_110_000 + number % CARDS for number in range(rows)]
    bodies = [
        json.dumps(
            {
                "transaction_id": first + number,
                "tx_datetime": "2026-01-01T00:00:00Z",
                "customer_id": card,
                "terminal_id": number % 9_000,
                "tx_amount": number % 997 / 8,
            }
        ).encode()
        for number, card in enumerate(cards)
    ]
    return pa.table(
        {
            "topic": pa.repeat("transactions", rows),
            "topic_id": pa.repeat("life", rows),
            "partition": pa.array([0] * rows, pa.int32()),
            "offset": pa.array(range(first, first + rows), pa.int64()),
            "timestamp": pa.nulls(rows, TIME),
            "key": pa.array([str(card).encode() for card in cards], pa.binary()),
            "value": pa.array(bodies, pa.binary()),
            "headers": pa.nulls(rows, HEADERS),
        }
    )


def main() -> None:
    quick = "--quick" in sys.argv
    rows = load_settings().land_batch_rows
    lakes.log_progress(f"batches of {rows:,} messages")
    batches = [messages(rows, number * rows) for number in range(1 if quick else 3)]
    settings = load_settings(pseudonymise="customer_id", pseudonym_key="0123456789abcdef" * 4)

    def landing(treat: bool) -> float:
        with tempfile.TemporaryDirectory() as folder:
            lake = Lake(str(Path(folder) / "lake"))
            lake.open(raw_transactions)
            return lakes.seconds(
                lambda: [
                    append_landed(
                        lake, raw_transactions, pseudonymise(batch, settings.pseudonym_policy) if treat else batch
                    )
                    for batch in batches
                ]
            )

    wall = lakes.alternately(
        3,
        alone=lambda: lakes.seconds(lambda: [pseudonymise(batch, settings.pseudonym_policy) for batch in batches]),
        treated=lambda: landing(True),
        plain=lambda: landing(False),
    )
    count = rows * len(batches)
    print(f"Landing of {count:,} messages from memory to Delta, card numbers in body and key as pseudonyms")
    print(f"  takes {wall['treated'] / wall['plain']:.1f} times as long as landing them unchanged")
    print(f"  ({count / wall['treated']:,.0f} compared with {count / wall['plain']:,.0f} messages/s);")
    print(f"  pseudonymization alone processes {count / wall['alone']:,.0f} messages/s on one core.")


if __name__ == "__main__":
    main()
