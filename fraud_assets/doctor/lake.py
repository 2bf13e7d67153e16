"""Lake, books, quarantine and model registry."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.schema import (
    TABLES,
    fraud_predictions,
    quarantined_transactions,
    raw_transactions,
    transaction_features,
)
from fraud_assets.doctor.finding import Finding, fail, ok, refused, skip, warn
from fraud_assets.errors import FraudAssetsError, NoChampionError
from fraud_assets.lake.tables import Lake, add_actions, row_count
from fraud_assets.settings import Settings

_SMALL_BYTES = 8_000_000
_MANY_SMALL_FILES = 2_000
_MANY_QUARANTINED = 0.05
_CONNECT_SECONDS = 3.0
_UPKEEP = (
    "Run `dagster asset materialize -m fraud_assets.definitions --select lake_upkeep`; its schedule does by itself."
)


def check_lake(settings: Settings) -> list[Finding]:
    """Whether the tables can be reached and written, their versions, and whether upkeep keeps up."""
    try:
        lake = Lake.of(settings)
        handles = {table.name: lake.open(table) for table in TABLES if lake.exists(table)}
    except FraudAssetsError as error:
        return [refused("lake", error)]
    folder = Path(lake.root.removeprefix("file://"))
    if "://" not in str(folder):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(there, os.W_OK):
            fix = "Correct its owner and mount, or point FRAUD_LAKE_URI (or FRAUD_HOME) elsewhere."
            return [fail("lake", f"{there} cannot be written", fix)]
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
        found.append(warn("upkeep", f"{worst} has {small[worst]:,} small files", _UPKEEP))
    else:
        found.append(ok("upkeep", f"at most {small.get(worst, 0):,} small files a table"))
    return found


def check_books(settings: Settings) -> list[Finding]:
    """Whether every landed message is in exactly one of features and quarantine, and what waits."""
    from fraud_assets.lake.batches import pending
    from fraud_assets.lake.books import books, compared_from
    from fraud_assets.lake.positions import stored

    try:
        lake = Lake.of(settings)
        missing = [
            table.name
            for table in (raw_transactions, transaction_features, quarantined_transactions, fraud_predictions)
            if not lake.exists(table)
        ]
        if missing:
            return [skip("books", f"there is no table {', '.join(missing)} yet")]
        features, predictions = lake.open(transaction_features), lake.open(fraud_predictions)
        landed = lake.open(raw_transactions)
        waiting = pending(landed, lambda stream: stored(features, stream), settings).rows
        unscored = pending(features, lambda stream: stored(predictions, stream), settings).rows
        totals, since = books(lake, settings), compared_from(lake)
    except FraudAssetsError as error:
        return [skip("books", f"the lake cannot be read: {error}")]
    done = totals["features"] + totals["quarantined"] + totals["duplicates"]
    text = (
        f"{totals['landed']:,} landed{f' since {since}' if since else ''} = {totals['features']:,} features + "
        f"{totals['quarantined']:,} quarantined + {totals['duplicates']:,} duplicates + {waiting:,} waiting"
    )
    found = [ok("books", text)]
    if totals["landed"] != done + waiting:
        # A stage may have committed between the counts, or an erasure may have been cut off.
        fix = "Look again in a minute; run a cut-off `fraud-assets erase` again; else report it with both counts."
        found = [fail("books", f"{totals['landed']:,} landed, but {done:,} taken and {waiting:,} waiting", fix)]
    if unscored:
        fix = "Dagster's daemon scores them by itself; without it materialize fraud_predictions."
        found.append(warn("predictions", f"{unscored:,} features wait for their score", fix))
    return found


def check_quarantine(settings: Settings) -> list[Finding]:
    """Open messages in quarantine, their share of what landed, and retries that were cut off."""
    from fraud_assets.pipeline.quarantine import DUPLICATE, Selection, reason_counts, waiting_retries

    try:
        lake = Lake.of(settings)
        if not lake.exists(quarantined_transactions) or not lake.exists(raw_transactions):
            return [ok("quarantine", "empty")]
        counts = {count.reason: count.messages for count in reason_counts(lake, settings, Selection())}
        landed, waiting = row_count(lake.open(raw_transactions)), waiting_retries(lake, settings)
    except FraudAssetsError as error:
        return [skip("quarantine", f"the lake cannot be read: {error}")]
    duplicates = counts.pop(DUPLICATE, 0)
    tombstones = counts.pop("tombstone", 0) + counts.pop("label_tombstone", 0)
    total = sum(counts.values())
    share = total / landed if landed else 0.0
    most = f", most of them {max(counts, key=lambda reason: counts[reason])}" if counts else ""
    others = f"{duplicates:,} repeated ids, {tombstones:,} tombstones"
    text = f"{total:,} open messages ({share:.2%} of what landed){most}; {others}"
    found = [ok("quarantine", text)]
    if share > _MANY_QUARANTINED:
        found = [warn("quarantine", text, "See `fraud-assets quarantine list`, and after a fix `quarantine retry`.")]
    if waiting:
        fix = "Run `fraud-assets quarantine retry` again; upkeep does by itself."
        found.append(warn("quarantine", f"{waiting:,} messages of a retry that was cut off wait", fix))
    return found


def check_registry(settings: Settings) -> list[Finding]:
    """The model registry, its champion, and whether that fits the features of this version."""
    from fraud_assets.pipeline.lost_registry import LostRegistryError, champion_for
    from fraud_assets.registry_home import other_homes, sqlite_path

    address = urlsplit(settings.mlflow_uri)
    if address.scheme in ("http", "https"):
        port = address.port or (443 if address.scheme == "https" else 80)
        try:
            # MLflow's client would try for minutes.
            socket.create_connection((address.hostname or "", port), timeout=_CONNECT_SECONDS).close()
        except OSError as error:
            text = f"nothing answers at {address.hostname}:{port} ({error.strerror or error})"
            return [fail("registry", text, "Start the MLflow server, or correct MLFLOW_TRACKING_URI.")]
    path = sqlite_path(settings.mlflow_uri)
    try:
        current = champion_for(Lake.of(settings), settings)
        others = other_homes(settings)
    except LostRegistryError as error:
        return [refused("registry", error)]
    except NoChampionError as error:
        if path is not None and not path.exists():
            return [warn("registry", f"{path} does not exist yet", "It is made by the first training.")]
        text, _, _ = str(error).partition(":")
        fix = f"It is trained once the lake holds {settings.train_min_rows:,} transactions (FRAUD_TRAIN_MIN_ROWS)."
        return [warn("registry", text, fix)]
    except FraudAssetsError as error:
        return [refused("registry", error)]
    found = [
        ok(
            "registry",
            f"{settings.model_name} version {current.version} is champion, feature version {current.feature_version}, "
            f"MLflow run {current.run_id}",
        )
    ]
    if others:
        text = f"MLflow's database still names the files of another home: {', '.join(others)}"
        fix = "Run `make setup`: it names this home's. Scoring reads this home's files already."
        found.append(warn("registry", text, fix))
    return found
