"""Checks the lake, its reconciliation, quarantine and the model registry."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.schema import (
    TABLES,
    quarantined_transactions,
    raw_transactions,
)
from fraud_assets.doctor.finding import Finding, fail, fail_from_error, ok, skip, warn
from fraud_assets.errors import DamagedFileError, FraudAssetsError, NoChampionError
from fraud_assets.lake.location import TableLocation
from fraud_assets.lake.log import add_actions, read_row_count
from fraud_assets.lake.table_errors import table_error
from fraud_assets.lake.tables import Lake
from fraud_assets.printable import format_count
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from deltalake import DeltaTable

_SMALL_BYTES = 8_000_000
_MANY_SMALL_FILES = 2_000
_MANY_QUARANTINED = 0.05
_CONNECT_SECONDS = 3.0
_FOOTERS = 20
"""Number of the newest data files of each table whose footers are read. A power cut damages only new files."""
_FOOTER_SECONDS = 3.0
_MAINTENANCE = (
    "Run `dagster asset materialize -m fraud_assets.definitions --select lake_maintenance`, or wait for its schedule."
)


def check_lake(settings: Settings) -> list[Finding]:
    """Checks that the tables can be reached and written, and that maintenance keeps up; lists their versions."""
    try:
        lake = Lake.of(settings)
        handles = {table.name: lake.open(table) for table in TABLES if lake.exists(table)}
    except FraudAssetsError as error:
        return [fail_from_error("lake", error)]
    folder = Path(lake.root.removeprefix("file://"))
    if "://" not in str(folder):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(existing, os.W_OK):
            fix = "Correct its owner and mount, or set FRAUD_LAKE_URI (or FRAUD_HOME) to another folder."
            return [fail("lake", f"{existing} cannot be written", fix)]
    if not handles:
        return [ok("lake", f"{lake.root}, no tables yet")]
    versions = ", ".join(f"{name} v{handle.version()}" for name, handle in handles.items())
    found = [ok("lake", f"{lake.root}: {versions}")]
    small = {}
    for name, handle in handles.items():
        actions = add_actions(handle)
        if actions.num_rows:
            sizes = actions["size_bytes"]
            small[name] = pc.sum(pc.less(sizes, pa.scalar(_SMALL_BYTES, sizes.type))).as_py() or 0
    worst = max(small, key=lambda name: small[name], default="")
    if worst and small[worst] > _MANY_SMALL_FILES:
        found.append(warn("maintenance", f"{worst} has {small[worst]:,} small files", _MAINTENANCE))
    else:
        found.append(ok("maintenance", f"at most {small.get(worst, 0):,} small files per table"))
    return [*found, _check_data_files(lake, handles)]


def _check_data_files(lake: Lake, handles: Mapping[str, DeltaTable]) -> Finding:
    """Checks that the data files of the current versions exist and can be read."""
    from fraud_assets.lake.data_file_damage import examine_data_files

    files = footers = 0
    deadline = time.monotonic() + _FOOTER_SECONDS
    for name, handle in handles.items():
        location = TableLocation(f"{lake.root.rstrip('/')}/{name}", dict(lake.storage_options))
        try:
            examined = examine_data_files(location, handle, _FOOTERS, deadline - time.monotonic())
        except OSError as error:
            return fail_from_error("data files", table_error(location.uri, error))
        if examined.damage is not None:
            return fail_from_error("data files", DamagedFileError(examined.damage))
        files, footers = files + examined.files, footers + examined.footers
    text = f"{files:,} have the size that the log records; the Parquet footers of the newest {footers:,} can be read"
    return ok("data files", text)


def check_reconciliation(settings: Settings) -> list[Finding]:
    """Checks that every landed message is in exactly one of features and quarantine, or waits for its features."""
    from fraud_assets.operations.reconciliation import count_totals, find_first_counted_day, pin_versions

    try:
        handles = pin_versions(Lake.of(settings))
        if raw_transactions.name not in handles:
            return [skip("reconciliation", f"there is no table {raw_transactions.name} yet")]
        counts, since = count_totals(handles, settings), find_first_counted_day(handles)
    except FraudAssetsError as error:
        return [skip("reconciliation", f"the lake cannot be read: {error}")]
    processed = counts["features"] + counts["quarantined"] + counts["duplicates"]
    fix = "If `fraud-assets erase` was interrupted, run it again. If not, rows are missing: see docs/restore.md."
    text = (
        f"{counts['landed']:,} landed{f' since {since}' if since else ''} = {counts['features']:,} features + "
        f"{counts['quarantined']:,} quarantined + {counts['duplicates']:,} duplicates + {counts['waiting']:,} waiting"
    )
    found = [ok("reconciliation", text)]
    if counts["landed"] != processed + counts["waiting"]:
        text = f"{counts['landed']:,} landed, but {processed:,} processed and {counts['waiting']:,} waiting"
        found = [fail("reconciliation", text, fix)]
    scored, unscored = counts["scored"], counts["unscored"]
    if counts["features"] != scored + unscored:
        text = f"{counts['features']:,} features, but {scored:,} scored and {unscored:,} waiting for a score"
        found.append(fail("predictions", text, fix))
    elif unscored:
        fix = "Dagster's daemon scores them. If it does not run, materialize fraud_predictions."
        found.append(warn("predictions", f"{unscored:,} features wait for a score", fix))
    return found


def check_quarantine(settings: Settings) -> list[Finding]:
    """Compares the open messages in quarantine with the landed ones, and looks for interrupted retries."""
    from fraud_assets.core.bodies import TOMBSTONE
    from fraud_assets.core.quarantine_reasons import DUPLICATE, LABEL_PREFIX
    from fraud_assets.operations.quarantine import Selection, count_reasons
    from fraud_assets.operations.retries import count_waiting_retries

    try:
        lake = Lake.of(settings)
        if not lake.exists(quarantined_transactions) or not lake.exists(raw_transactions):
            return [ok("quarantine", "empty")]
        counts = {count.reason: count.messages for count in count_reasons(lake, settings, Selection())}
        landed, waiting = read_row_count(lake.open(raw_transactions)), count_waiting_retries(lake, settings)
    except FraudAssetsError as error:
        return [skip("quarantine", f"the lake cannot be read: {error}")]
    duplicates = counts.pop(DUPLICATE, 0)
    tombstones = counts.pop(TOMBSTONE, 0) + counts.pop(LABEL_PREFIX + TOMBSTONE, 0)
    total = sum(counts.values())
    share = total / landed if landed else 0.0
    most = f", most often {max(counts, key=lambda reason: counts[reason])}" if counts else ""
    others = f"also {format_count(duplicates, 'repeated id')} and {format_count(tombstones, 'tombstone')}"
    text = f"{format_count(total, 'open message')} ({share:.2%} of landed messages){most}; {others}"
    found = [ok("quarantine", text)]
    if share > _MANY_QUARANTINED:
        fix = "Run `fraud-assets quarantine list`, fix the cause, then run `fraud-assets quarantine retry`."
        found = [warn("quarantine", text, fix)]
    if waiting:
        fix = "Run `fraud-assets quarantine retry` again, or wait for maintenance, which lands them too."
        found.append(warn("quarantine", f"{waiting:,} messages of an interrupted retry wait", fix))
    return found


def check_registry(settings: Settings) -> list[Finding]:
    """Checks that the model registry can be reached and has a champion that fits the features of this version."""
    from fraud_assets.errors import LostRegistryError
    from fraud_assets.registry.champion import load_champion
    from fraud_assets.registry.home import find_other_homes, find_sqlite_path

    address = urlsplit(settings.mlflow_uri)
    if address.scheme in ("http", "https"):
        port = address.port or (443 if address.scheme == "https" else 80)
        try:
            # MLflow's client would retry for minutes.
            socket.create_connection((address.hostname or "", port), timeout=_CONNECT_SECONDS).close()
        except OSError as error:
            text = f"no server answers at {address.hostname}:{port} ({error.strerror or error})"
            return [fail("registry", text, "Start the MLflow server, or correct MLFLOW_TRACKING_URI.")]
    path = find_sqlite_path(settings.mlflow_uri)
    try:
        current = load_champion(Lake.of(settings), settings)
        others = find_other_homes(settings)
    except LostRegistryError as error:
        return [fail_from_error("registry", error)]
    except NoChampionError as error:
        if path is not None and not path.exists():
            return [warn("registry", f"{path} does not exist yet", "The first training creates it.")]
        text, _, _ = str(error).partition(":")
        fix = f"Land at least {settings.train_min_rows:,} transactions (FRAUD_TRAIN_MIN_ROWS) for the first training."
        return [warn("registry", text, fix)]
    except FraudAssetsError as error:
        return [fail_from_error("registry", error)]
    found = [
        ok(
            "registry",
            f"{settings.model_name} version {current.version} is champion, feature version {current.feature_version}, "
            f"MLflow run {current.run_id}",
        )
    ]
    if others:
        text = f"MLflow's database still points to the files of another home: {', '.join(others)}"
        fix = "Run `fraud-assets setup`, which changes them to this home. Scoring already reads this home's files."
        found.append(warn("registry", text, fix))
    return found
