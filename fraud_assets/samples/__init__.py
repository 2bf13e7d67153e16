"""Bundled sample data with other field names than the contract, each with its field mapping; see README.md here."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

FIELD_MAPPINGS = {
    "sparkov": "transaction_id=trans_num,tx_datetime=trans_date_trans_time,customer_id=cc_num,terminal_id=merchant,"
    "tx_amount=amt",
}
"""FRAUD_FIELD_MAPPING by name of the sample."""


def sample_file(name: str) -> Path:
    """Returns the path of the Parquet file of a sample."""
    return Path(str(files(__name__).joinpath(f"{name}.parquet")))
