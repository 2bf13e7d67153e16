"""Writes files to the drop folder and reads their landed rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fraud_assets.core.schema import Table, raw_transactions
from fraud_assets.ingest.files.file_report import FileReport
from fraud_assets.ingest.files.landing import land_files
from fraud_assets.lake.tables import Lake, open_dataset
from fraud_assets.settings import Settings


def drop(settings: Settings, name: str, content: str | bytes) -> Path:
    settings.incoming.mkdir(parents=True, exist_ok=True)
    path = settings.incoming / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def land(lake: Lake, settings: Settings) -> list[FileReport]:
    return land_files(lake, settings)


def rows_of(lake: Lake, table: Table) -> list[dict[str, Any]]:
    rows = open_dataset(lake.open(table)).to_table().to_pylist()
    return sorted(rows, key=lambda row: (row["topic"], row["offset"]))


def bodies(lake: Lake) -> list[bytes]:
    return [row["value"] for row in rows_of(lake, raw_transactions)]


def transaction(number: int, **more: Any) -> dict[str, Any]:
    return {
        "transaction_id": number,
        "tx_datetime": "2024-01-01T02:00:00+02:00",
        "customer_id": 1,
        "terminal_id": 2,
        "tx_amount": 3.5,
        **more,
    }
