"""Bundled data of another schema than the contract's, each with its field mapping; see README.md beside it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

FIELD_MAPPINGS = {
    "sparkov": "transaction_id=trans_num,tx_datetime=trans_date_trans_time,customer_id=cc_num,terminal_id=merchant,"
    "tx_amount=amt",
}
"""FRAUD_FIELD_MAPPING of each sample, by its name."""


def sample_file(name: str) -> Path:
    """The Parquet file of a sample."""
    return Path(str(files(__name__).joinpath(f"{name}.parquet")))
