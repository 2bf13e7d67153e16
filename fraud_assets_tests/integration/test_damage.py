"""Damaged tables: each error names the file and the fix, the fix works, and the doctor finds the damage."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import obstore
import pyarrow.parquet as pq
import pytest

from fraud_assets.core.schema import (
    QUARANTINED_TRANSACTIONS,
    TABLES,
    Table,
    alert_thresholds,
    quarantined_transactions,
    raw_transactions,
    retried_messages,
    transaction_features,
)
from fraud_assets.doctor.finding import Finding
from fraud_assets.doctor.lake import check_lake
from fraud_assets.errors import DamagedFileError, LakeError
from fraud_assets.ingest.files.landing import land_files
from fraud_assets.lake.data_files import list_slices, read_slices
from fraud_assets.lake.duckdb_session import connect
from fraud_assets.lake.log import add_actions, read_row_count
from fraud_assets.lake.log_damage import refuse_incomplete_entries
from fraud_assets.lake.positions import SourcePartition, committed_offset
from fraud_assets.lake.scan import register_view
from fraud_assets.lake.tables import Lake, read
from fraud_assets.operations.erasure import erase_customer
from fraud_assets.operations.maintenance import maintain_table
from fraud_assets.settings import Settings
from fraud_assets.stages.features import process_landed, recompute
from fraud_assets.stages.training_window import read_features
from fraud_assets.testing.object_store import ObjectStore
from fraud_assets_tests.support.landed import FIRST, bodies, land
from fraud_assets_tests.support.store_client import client

COMMITS = 3
Damage = Callable[[Path], None]


def log_of(lake: Lake, table: Table = raw_transactions) -> Path:
    return Path(lake.root) / table.name / "_delta_log"


def entry(log: Path, version: int) -> Path:
    return log / f"{version:020}.json"


def first_checkpoint(log: Path) -> Path:
    return min(log.glob("*.checkpoint.parquet"))


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def flip(file: Path, first: int) -> None:
    """Turns the bits of 30 bytes over."""
    content = file.read_bytes()
    turned = bytes(byte ^ 0xFF for byte in content[first : first + 30])
    file.write_bytes(content[:first] + turned + content[first + 30 :])


def footer_of(file: Path) -> int:
    """Where a Parquet file's footer begins."""
    content = file.read_bytes()
    return len(content) - 8 - int.from_bytes(content[-8:-4], "little")


def with_checkpoint(lake: Lake) -> None:
    """A checkpoint at version 3, and one commit after it."""
    lake.open(raw_transactions).create_checkpoint()
    land(lake, bodies(5, first_id=15), first_offset=15)


def without_older_entries(log: Path) -> None:
    for version in range(COMMITS + 1):
        entry(log, version).unlink()


@pytest.fixture
def landed(lake: Lake) -> Lake:
    """Three commits of five messages each."""
    for number in range(COMMITS):
        land(lake, bodies(5, first_id=5 * number), first_offset=5 * number)
    return lake


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda log: entry(log, 3).write_bytes(b""), "0003.json is empty"),
        (lambda log: entry(log, 3).write_bytes(bytes(300)), "0003.json is cut off or damaged"),
        (lambda log: cut(entry(log, 3), 200), "0003.json is cut off or damaged"),
    ],
    ids=["empty", "zeros", "cut"],
)
def test_a_damaged_newest_entry_is_refused_and_moved_away_by_hand(landed: Lake, damage: Damage, words: str) -> None:
    log = log_of(landed)
    damage(log)
    for look in (landed.open, landed.exists):
        with pytest.raises(DamagedFileError) as caught:
            look(raw_transactions)
        assert f"{log}/" in str(caught.value)
        assert words in str(caught.value)
        assert "at version 2 again" in str(caught.value)
    # The way back: as before the commit, and what it held lands again.
    entry(log, 3).unlink()
    assert read_row_count(landed.open(raw_transactions)) == 10
    land(landed, bodies(5, first_id=10), first_offset=10)
    assert read_row_count(landed.open(raw_transactions)) == 15


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (raw_transactions, "land again from Kafka"),
        (transaction_features, "computes the rows of the lost commits again"),
        (quarantined_transactions, "rebuild all three tables together"),
        (alert_thresholds, "Train again"),
        (retried_messages, "Only a backup"),
    ],
)
def test_what_comes_back_by_itself_depends_on_the_table(lake: Lake, table: Table, words: str) -> None:
    lake.open(table)
    entry(log_of(lake, table), 1).touch()
    with pytest.raises(DamagedFileError, match=words):
        lake.open(table)


def test_an_entry_that_is_cut_anywhere_is_refused(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    """After a whole line too, where what is left is an entry that changed less; in a folder that a URI escapes."""
    lake = Lake.of(make_settings(home=tmp_path / "a home, é # 100%"))
    for number in range(2):
        land(lake, bodies(5, first_id=5 * number), first_offset=5 * number)
    newest = entry(log_of(lake), 2)
    whole = newest.read_bytes()
    ends = [place for place, byte in enumerate(whole) if byte == ord("\n")]
    assert len(ends) == 2
    for size in (0, 1, 200, *ends, *(end + 1 for end in ends), len(whole) - 1):
        newest.write_bytes(whole[:size])
        with pytest.raises(DamagedFileError, match=r"0002\.json is (empty|cut off).* at version 1 again") as caught:
            lake.open(raw_transactions)
        assert str(newest) in str(caught.value)
    newest.write_bytes(whole)
    assert read_row_count(lake.open(raw_transactions)) == 10


@pytest.mark.parametrize(
    ("damage", "words", "remedy"),
    [
        (lambda log: entry(log, 2).write_bytes(b""), "0002.json is empty", "move it and the later entries"),
        (lambda log: cut(entry(log, 2), 100), "0002.json is cut off", "move it and the later entries"),
        (lambda log: entry(log, 2).unlink(), "0002.json is missing", "move the later entries"),
    ],
    ids=["empty", "cut", "gap"],
)
def test_a_damaged_entry_below_others(landed: Lake, damage: Damage, words: str, remedy: str) -> None:
    log = log_of(landed)
    damage(log)
    with pytest.raises(DamagedFileError, match=r"1 later entry builds on it.* at version 1 again") as caught:
        landed.open(raw_transactions)
    assert words in str(caught.value)
    assert remedy in str(caught.value)
    for version in (2, 3):
        entry(log, version).unlink(missing_ok=True)
    assert read_row_count(landed.open(raw_transactions)) == 5


@pytest.mark.parametrize("damage", [lambda log: entry(log, 0).write_bytes(b""), lambda log: entry(log, 0).unlink()])
def test_a_damaged_first_entry_leaves_the_backup(landed: Lake, damage: Damage) -> None:
    damage(log_of(landed))
    with pytest.raises(DamagedFileError, match=r"0000\.json is \w+.*3 later entries.*backup.*docs/restore\.md"):
        landed.open(raw_transactions)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda log: cut(first_checkpoint(log), 500), "checkpoint.parquet cannot be read"),
        (lambda log: first_checkpoint(log).write_bytes(b""), "checkpoint.parquet is empty"),
        (lambda log: first_checkpoint(log).unlink(), "_last_checkpoint names checkpoint 3, which is missing"),
    ],
    ids=["cut", "empty", "missing"],
)
def test_a_damaged_checkpoint(landed: Lake, damage: Damage, words: str) -> None:
    with_checkpoint(landed)
    log = log_of(landed)
    damage(log)
    with pytest.raises(DamagedFileError, match="the log entries hold the same") as caught:
        landed.open(raw_transactions)
    assert words in str(caught.value)
    for file in (*log.glob("*.checkpoint.parquet"), log / "_last_checkpoint"):
        file.unlink()
    assert read_row_count(landed.open(raw_transactions)) == 20


def test_a_damaged_checkpoint_whose_entries_are_gone(landed: Lake) -> None:
    with_checkpoint(landed)
    log = log_of(landed)
    without_older_entries(log)
    assert read_row_count(landed.open(raw_transactions)) == 20
    cut(first_checkpoint(log), 500)
    with pytest.raises(DamagedFileError, match=r"log entries before it are missing\. Restore it from a backup"):
        landed.open(raw_transactions)


@pytest.mark.parametrize("content", [b"", b'{"ver'])
def test_a_damaged_last_checkpoint_is_no_matter(landed: Lake, content: bytes) -> None:
    with_checkpoint(landed)
    (log_of(landed) / "_last_checkpoint").write_bytes(content)
    assert read_row_count(landed.open(raw_transactions)) == 20


def test_a_table_that_lost_its_log_is_not_created_again(landed: Lake) -> None:
    shutil.rmtree(log_of(landed))
    assert not landed.exists(raw_transactions)
    with pytest.raises(DamagedFileError, match=r"holds 3 data files, but no log.*docs/restore\.md"):
        landed.open(raw_transactions)
    shutil.rmtree(log_of(landed).parent)
    assert read_row_count(landed.open(raw_transactions)) == 0


def test_to_look_for_empty_entries_takes_no_time(landed: Lake) -> None:
    for number in range(COMMITS, 60):
        land(landed, bodies(1, first_id=5 * number), first_offset=5 * number)
    handle = landed.open(raw_transactions)
    began = time.perf_counter()
    for _ in range(100):
        refuse_incomplete_entries(handle.table_uri, handle.version())
    assert (time.perf_counter() - began) / 100 < 0.005


def test_maintenance_leaves_the_log_to_who_has_just_opened_the_table(settings: Settings, landed: Lake) -> None:
    """All entries are older than FRAUD_LOG_HOURS, as in a lake that was quiet."""

    def age() -> None:
        for file in log_of(landed).iterdir():
            os.utime(file, (0, 0))

    stream = SourcePartition("transactions", "life", 0)
    age()
    handle = landed.open(raw_transactions)
    maintain_table(landed, raw_transactions, settings)
    assert committed_offset(handle, stream) == 14
    age()
    maintain_table(landed, raw_transactions, settings)
    assert not entry(log_of(landed), 3).exists()
    with pytest.raises(LakeError, match="Maintenance may have shortened the log meanwhile: run the command again"):
        committed_offset(handle, stream)
    assert committed_offset(landed.open(raw_transactions), stream) == 14


# ---------------------------------------------------------------------------------------------------------
# Data files.


def newest_file(lake: Lake, table: Table) -> Path:
    actions = add_actions(lake.open(table))
    newest = max(zip(actions["modification_time"].to_pylist(), actions["path"].to_pylist(), strict=True))
    return Path(lake.root) / table.name / newest[1]


def in_duckdb(lake: Lake, settings: Settings) -> None:
    with connect(settings) as connection:
        register_view(connection, "f", lake.open(raw_transactions))
        connection.sql("select sum(octet_length(value)) from f").fetchall()


def by_slices(lake: Lake, settings: Settings) -> None:
    handle, place = lake.open(raw_transactions), lake.location(raw_transactions)
    slices = list_slices(handle, add_actions(handle)["path"].to_pylist(), raw_transactions)
    list(read_slices(place, slices, raw_transactions.schema, raw_transactions.partition_by))


READERS: dict[str, tuple[Table, Callable[[Lake, Settings], object]]] = {
    "DuckDB": (raw_transactions, in_duckdb),
    "Arrow": (raw_transactions, lambda lake, settings: read(lake.open(raw_transactions))),
    "slices": (raw_transactions, by_slices),
    "features": (raw_transactions, process_landed),
    "recompute": (
        transaction_features,
        lambda lake, settings: recompute(lake, settings, FIRST, FIRST.replace(day=9)),
    ),
    "training": (
        transaction_features,
        lambda lake, settings: read_features(lake, FIRST, FIRST.replace(day=9), ["tx_amount"]),
    ),
    "erase": (raw_transactions, lambda lake, settings: erase_customer(lake, settings, "3")),
    "maintenance": (raw_transactions, lambda lake, settings: maintain_table(lake, raw_transactions, settings)),
}


@pytest.mark.parametrize(
    ("damage", "state"),
    [
        (Path.unlink, "is missing"),
        (lambda file: file.write_bytes(b""), "is empty|0 bytes"),
        (lambda file: cut(file, 900), "cannot be read|has 900 bytes"),
        (lambda file: flip(file, footer_of(file)), "cannot be read"),
    ],
    ids=["missing", "empty", "cut", "bits of the footer"],
)
@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_data_file(settings: Settings, landed: Lake, reader: str, damage: Damage, state: str) -> None:
    table, use = READERS[reader]
    if table is transaction_features:
        process_landed(landed, settings)
    file = newest_file(landed, table)
    assert files_of(settings).state == "OK"
    damage(file)
    with pytest.raises(DamagedFileError, match=state) as caught:
        use(landed, settings)
    assert f"{file} of table {table.name}" in str(caught.value)
    assert "docs/restore.md" in str(caught.value)
    found = files_of(settings)
    assert found.state == "FAIL"
    assert str(file) in found.text
    assert "docs/restore.md" in found.fix


@pytest.mark.parametrize("reader", ["DuckDB", "Arrow", "slices", "features", "erase", "maintenance"])
def test_bits_of_a_page(settings: Settings, landed: Lake, reader: str) -> None:
    """The footer is whole; only who reads the page finds the damage."""
    file = newest_file(landed, raw_transactions)
    bodies_of_messages = raw_transactions.schema.names.index("value")
    flip(file, pq.read_metadata(file).row_group(0).column(bodies_of_messages).data_page_offset)
    with pytest.raises(DamagedFileError, match="cannot be read") as caught:
        READERS[reader][1](landed, settings)
    assert f"{file} of table raw_transactions" in str(caught.value)


def files_of(settings: Settings) -> Finding:
    return next(found for found in check_lake(settings) if found.name == "data files")


def test_the_doctor_reads_footers(settings: Settings, landed: Lake) -> None:
    """A file of the right size with another content is found by its footer."""
    file = newest_file(landed, raw_transactions)
    file.write_bytes(bytes(file.stat().st_size))
    found = files_of(settings)
    assert found.state == "FAIL"
    assert f"{file} of table raw_transactions cannot be read" in found.text


@pytest.mark.xdist_group("s3")
def test_on_an_object_store(s3_settings: Settings, s3: ObjectStore) -> None:
    lake = Lake.of(s3_settings)
    bucket = client(s3, "/".join(lake.root.removeprefix("s3://").split("/")[1:]))
    for number in range(COMMITS):
        land(lake, bodies(5, first_id=5 * number), first_offset=5 * number)
    assert files_of(s3_settings).state == "OK"
    handle = lake.open(raw_transactions)
    path = f"raw_transactions/{add_actions(handle)['path'][0].as_py()}"
    whole = bytes(obstore.get(bucket, path).bytes())
    for state in ("has 900 bytes", "is missing"):
        if state == "is missing":
            obstore.delete(bucket, path)
        else:
            obstore.put(bucket, path, whole[:900])
        found = files_of(s3_settings)
        assert found.state == "FAIL"
        assert f"{lake.root}/{path} of table raw_transactions {state}" in found.text
        with pytest.raises(DamagedFileError, match=state):
            process_landed(lake, s3_settings)
    obstore.put(bucket, path, whole)
    assert process_landed(lake, s3_settings).features == 15
    newest = f"raw_transactions/_delta_log/{3:020}.json"
    whole = bytes(obstore.get(bucket, newest).bytes())
    obstore.put(bucket, newest, whole[:100])
    with pytest.raises(DamagedFileError, match=r"0003\.json is cut off.* at version 2 again"):
        lake.open(raw_transactions)
    obstore.put(bucket, newest, b"")
    assert "0003.json is empty" in files_of(s3_settings).text


# ---------------------------------------------------------------------------------------------------------
# docs/restore.md


DOCUMENT = Path(__file__).parents[2] / "docs" / "restore.md"


def test_the_moves_of_the_document_work_as_typed_and_again(tmp_path: Path) -> None:
    """In a home with a space, and twice on one day. The commands of the platform are stood in for."""
    home, programs = tmp_path / "a home", tmp_path / "programs"
    programs.mkdir()
    for name in ("fraud-assets", "dagster"):
        (programs / name).symlink_to("/bin/true")
    first, *blocks = re.findall(r"^```sh\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    for number, block in enumerate([*blocks, *blocks]):
        for folder in ("processed", "incoming", *(f"lake/{table.name}/_delta_log" for table in TABLES)):
            (home / folder).mkdir(parents=True, exist_ok=True)
        (home / "processed" / "day.jsonl").touch()
        entry(home / "lake" / "raw_transactions" / "_delta_log", 2).touch()
        clock = f"date() {{ echo {number}; }}\n"
        ran = subprocess.run(
            ["bash", "-euc", clock + first + block],
            cwd=tmp_path,
            env={"PATH": f"{programs}:/usr/bin:/bin", "FRAUD_HOME": str(home)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.returncode, ran.stderr) == (0, "")


def test_a_kept_file_lands_again_after_its_commit_was_lost(settings: Settings, lake: Lake) -> None:
    settings.incoming.mkdir(parents=True)
    for name, first in (("a", 0), ("b", 5)):
        (settings.incoming / f"{name}.jsonl").write_bytes(b"\n".join(bodies(5, first_id=first)))
        land_files(lake, settings)
    process_landed(lake, settings)
    entry(log_of(lake), lake.open(raw_transactions).version()).write_bytes(b"")
    kept = next(settings.processed.rglob("b.jsonl*"))
    shutil.move(kept, settings.incoming / "b.jsonl")
    with pytest.raises(DamagedFileError):
        land_files(lake, settings)
    max(log_of(lake).glob("*.json")).unlink()
    land_files(lake, settings)
    process_landed(lake, settings)
    assert read_row_count(lake.open(raw_transactions)) == 10
    assert read_row_count(lake.open(transaction_features)) == 10


def test_features_are_built_again_beside_the_quarantine_that_is_left(settings: Settings, landed: Lake) -> None:
    """In batches, though quarantine is ahead of all of them."""
    land(landed, [b"{broken", *bodies(1)], first_offset=15)
    process_landed(landed, settings)
    before = read(landed.open(transaction_features)).sort_by("offset")
    quarantined = read(landed.open(quarantined_transactions), QUARANTINED_TRANSACTIONS.names).sort_by("offset")
    shutil.rmtree(log_of(landed, transaction_features).parent)
    report = process_landed(landed, settings.model_copy(update={"batch_rows": 4}))
    assert report.batches > 3
    assert read(landed.open(transaction_features)).sort_by("offset").equals(before)
    after = read(landed.open(quarantined_transactions), QUARANTINED_TRANSACTIONS.names).sort_by("offset")
    assert after.equals(quarantined)
