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


def log_folder(lake: Lake, table: Table = raw_transactions) -> Path:
    return Path(lake.root) / table.name / "_delta_log"


def log_entry(log: Path, version: int) -> Path:
    return log / f"{version:020}.json"


def first_checkpoint(log: Path) -> Path:
    return min(log.glob("*.checkpoint.parquet"))


def truncate(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def invert_bytes(file: Path, first: int) -> None:
    """Invert the bits of 30 bytes, from the offset `first`."""
    content = file.read_bytes()
    inverted = bytes(byte ^ 0xFF for byte in content[first : first + 30])
    file.write_bytes(content[:first] + inverted + content[first + 30 :])


def footer_offset(file: Path) -> int:
    """Return the offset at which the footer of a Parquet file starts."""
    content = file.read_bytes()
    return len(content) - 8 - int.from_bytes(content[-8:-4], "little")


def create_checkpoint_and_commit(lake: Lake) -> None:
    """Create a checkpoint at version 3, then commit once more."""
    lake.open(raw_transactions).create_checkpoint()
    land(lake, bodies(5, first_id=15), first_offset=15)


def delete_older_entries(log: Path) -> None:
    for version in range(COMMITS + 1):
        log_entry(log, version).unlink()


@pytest.fixture
def landed(lake: Lake) -> Lake:
    """Three commits of five messages each."""
    for number in range(COMMITS):
        land(lake, bodies(5, first_id=5 * number), first_offset=5 * number)
    return lake


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda log: log_entry(log, 3).write_bytes(b""), "0003.json is empty"),
        (lambda log: log_entry(log, 3).write_bytes(bytes(300)), "0003.json is cut off or damaged"),
        (lambda log: truncate(log_entry(log, 3), 200), "0003.json is cut off or damaged"),
    ],
    ids=["empty", "zeros", "cut"],
)
def test_a_damaged_newest_entry_is_refused_until_it_is_removed(landed: Lake, damage: Damage, words: str) -> None:
    log = log_folder(landed)
    damage(log)
    for access in (landed.open, landed.exists):
        with pytest.raises(DamagedFileError) as caught:
            access(raw_transactions)
        assert f"{log}/" in str(caught.value)
        assert words in str(caught.value)
        assert "at version 2 again" in str(caught.value)
    # The fix: remove the entry, then land its messages again.
    log_entry(log, 3).unlink()
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
def test_the_error_states_how_the_table_recovers(lake: Lake, table: Table, words: str) -> None:
    lake.open(table)
    log_entry(log_folder(lake, table), 1).touch()
    with pytest.raises(DamagedFileError, match=words):
        lake.open(table)


def test_an_entry_that_is_truncated_at_any_byte_is_refused(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """Without its last lines, an entry is still valid JSON with fewer actions. The path needs escaping in a URI."""
    lake = Lake.of(make_settings(home=tmp_path / "a home, é # 100%"))
    for number in range(2):
        land(lake, bodies(5, first_id=5 * number), first_offset=5 * number)
    newest = log_entry(log_folder(lake), 2)
    content = newest.read_bytes()
    line_ends = [offset for offset, byte in enumerate(content) if byte == ord("\n")]
    assert len(line_ends) == 2
    for size in (0, 1, 200, *line_ends, *(line_end + 1 for line_end in line_ends), len(content) - 1):
        newest.write_bytes(content[:size])
        with pytest.raises(DamagedFileError, match=r"0002\.json is (empty|cut off).* at version 1 again") as caught:
            lake.open(raw_transactions)
        assert str(newest) in str(caught.value)
    newest.write_bytes(content)
    assert read_row_count(lake.open(raw_transactions)) == 10


@pytest.mark.parametrize(
    ("damage", "words", "remedy"),
    [
        (lambda log: log_entry(log, 2).write_bytes(b""), "0002.json is empty", "move it and the later entries"),
        (lambda log: truncate(log_entry(log, 2), 100), "0002.json is cut off", "move it and the later entries"),
        (lambda log: log_entry(log, 2).unlink(), "0002.json is missing", "move the later entries"),
    ],
    ids=["empty", "cut", "gap"],
)
def test_a_damaged_older_entry_is_refused_until_it_and_later_entries_are_removed(
    landed: Lake, damage: Damage, words: str, remedy: str
) -> None:
    log = log_folder(landed)
    damage(log)
    with pytest.raises(DamagedFileError, match=r"1 later entry builds on it.* at version 1 again") as caught:
        landed.open(raw_transactions)
    assert words in str(caught.value)
    assert remedy in str(caught.value)
    for version in (2, 3):
        log_entry(log, version).unlink(missing_ok=True)
    assert read_row_count(landed.open(raw_transactions)) == 5


@pytest.mark.parametrize(
    "damage", [lambda log: log_entry(log, 0).write_bytes(b""), lambda log: log_entry(log, 0).unlink()]
)
def test_a_damaged_first_entry_requires_a_backup(landed: Lake, damage: Damage) -> None:
    damage(log_folder(landed))
    with pytest.raises(DamagedFileError, match=r"0000\.json is \w+.*3 later entries.*backup.*docs/restore\.md"):
        landed.open(raw_transactions)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda log: truncate(first_checkpoint(log), 500), "checkpoint.parquet cannot be read"),
        (lambda log: first_checkpoint(log).write_bytes(b""), "checkpoint.parquet is empty"),
        (lambda log: first_checkpoint(log).unlink(), "_last_checkpoint names checkpoint 3, which is missing"),
    ],
    ids=["cut", "empty", "missing"],
)
def test_a_damaged_checkpoint_is_refused_until_it_is_removed(landed: Lake, damage: Damage, words: str) -> None:
    create_checkpoint_and_commit(landed)
    log = log_folder(landed)
    damage(log)
    with pytest.raises(DamagedFileError, match="the log entries hold the same") as caught:
        landed.open(raw_transactions)
    assert words in str(caught.value)
    for file in (*log.glob("*.checkpoint.parquet"), log / "_last_checkpoint"):
        file.unlink()
    assert read_row_count(landed.open(raw_transactions)) == 20


def test_a_damaged_checkpoint_without_earlier_entries_requires_a_backup(landed: Lake) -> None:
    create_checkpoint_and_commit(landed)
    log = log_folder(landed)
    delete_older_entries(log)
    assert read_row_count(landed.open(raw_transactions)) == 20
    truncate(first_checkpoint(log), 500)
    with pytest.raises(DamagedFileError, match=r"log entries before it are missing\. Restore it from a backup"):
        landed.open(raw_transactions)


@pytest.mark.parametrize("content", [b"", b'{"ver'])
def test_a_damaged_last_checkpoint_file_is_ignored(landed: Lake, content: bytes) -> None:
    create_checkpoint_and_commit(landed)
    (log_folder(landed) / "_last_checkpoint").write_bytes(content)
    assert read_row_count(landed.open(raw_transactions)) == 20


def test_a_table_without_its_log_is_not_recreated(landed: Lake) -> None:
    shutil.rmtree(log_folder(landed))
    assert not landed.exists(raw_transactions)
    with pytest.raises(DamagedFileError, match=r"holds 3 data files, but no log.*docs/restore\.md"):
        landed.open(raw_transactions)
    shutil.rmtree(log_folder(landed).parent)
    assert read_row_count(landed.open(raw_transactions)) == 0


def test_the_check_for_incomplete_entries_takes_less_than_5_ms(landed: Lake) -> None:
    for number in range(COMMITS, 60):
        land(landed, bodies(1, first_id=5 * number), first_offset=5 * number)
    handle = landed.open(raw_transactions)
    start = time.perf_counter()
    for _ in range(100):
        refuse_incomplete_entries(handle.table_uri, handle.version())
    assert (time.perf_counter() - start) / 100 < 0.005


def test_one_maintenance_run_keeps_the_log_for_an_open_handle(settings: Settings, landed: Lake) -> None:
    """All entries are older than FRAUD_LOG_HOURS, as in a lake without recent commits. The second run removes them."""

    def age_all_entries() -> None:
        for file in log_folder(landed).iterdir():
            os.utime(file, (0, 0))

    source_partition = SourcePartition("transactions", "topic-id", 0)
    age_all_entries()
    handle = landed.open(raw_transactions)
    maintain_table(landed, raw_transactions, settings)
    assert committed_offset(handle, source_partition) == 14
    age_all_entries()
    maintain_table(landed, raw_transactions, settings)
    assert not log_entry(log_folder(landed), 3).exists()
    with pytest.raises(LakeError, match="Maintenance may have shortened the log meanwhile: run the command again"):
        committed_offset(handle, source_partition)
    assert committed_offset(landed.open(raw_transactions), source_partition) == 14


# ---------------------------------------------------------------------------------------------------------
# Data files.


def newest_file(lake: Lake, table: Table) -> Path:
    actions = add_actions(lake.open(table))
    newest = max(zip(actions["modification_time"].to_pylist(), actions["path"].to_pylist(), strict=True))
    return Path(lake.root) / table.name / newest[1]


def read_in_duckdb(lake: Lake, settings: Settings) -> None:
    with connect(settings) as connection:
        register_view(connection, "f", lake.open(raw_transactions))
        connection.sql("select sum(octet_length(value)) from f").fetchall()


def read_by_slices(lake: Lake, settings: Settings) -> None:
    handle, location = lake.open(raw_transactions), lake.location(raw_transactions)
    slices = list_slices(handle, add_actions(handle)["path"].to_pylist(), raw_transactions)
    list(read_slices(location, slices, raw_transactions.schema, raw_transactions.partition_by))


READERS: dict[str, tuple[Table, Callable[[Lake, Settings], object]]] = {
    "DuckDB": (raw_transactions, read_in_duckdb),
    "Arrow": (raw_transactions, lambda lake, settings: read(lake.open(raw_transactions))),
    "slices": (raw_transactions, read_by_slices),
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
        (lambda file: truncate(file, 900), "cannot be read|has 900 bytes"),
        (lambda file: invert_bytes(file, footer_offset(file)), "cannot be read"),
    ],
    ids=["missing", "empty", "cut", "inverted footer"],
)
@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_data_file_is_named_by_each_reader_and_the_doctor(
    settings: Settings, landed: Lake, reader: str, damage: Damage, state: str
) -> None:
    table, operation = READERS[reader]
    if table is transaction_features:
        process_landed(landed, settings)
    file = newest_file(landed, table)
    assert data_files_finding(settings).state == "OK"
    damage(file)
    with pytest.raises(DamagedFileError, match=state) as caught:
        operation(landed, settings)
    assert f"{file} of table {table.name}" in str(caught.value)
    assert "docs/restore.md" in str(caught.value)
    finding = data_files_finding(settings)
    assert finding.state == "FAIL"
    assert str(file) in finding.text
    assert "docs/restore.md" in finding.fix


@pytest.mark.parametrize("reader", ["DuckDB", "Arrow", "slices", "features", "erase", "maintenance"])
def test_a_damaged_page_is_named_by_its_reader(settings: Settings, landed: Lake, reader: str) -> None:
    """The footer is intact, so only a reader of the page detects the damage."""
    file = newest_file(landed, raw_transactions)
    value_column = raw_transactions.schema.names.index("value")
    invert_bytes(file, pq.read_metadata(file).row_group(0).column(value_column).data_page_offset)
    with pytest.raises(DamagedFileError, match="cannot be read") as caught:
        READERS[reader][1](landed, settings)
    assert f"{file} of table raw_transactions" in str(caught.value)


def data_files_finding(settings: Settings) -> Finding:
    return next(finding for finding in check_lake(settings) if finding.name == "data files")


def test_the_doctor_reads_footers(settings: Settings, landed: Lake) -> None:
    """The file has the right size, so only its footer shows the damage."""
    file = newest_file(landed, raw_transactions)
    file.write_bytes(bytes(file.stat().st_size))
    finding = data_files_finding(settings)
    assert finding.state == "FAIL"
    assert f"{file} of table raw_transactions cannot be read" in finding.text


@pytest.mark.xdist_group("s3")
def test_damage_on_an_object_store_is_named(s3_settings: Settings, s3: ObjectStore) -> None:
    lake = Lake.of(s3_settings)
    bucket = client(s3, "/".join(lake.root.removeprefix("s3://").split("/")[1:]))
    for number in range(COMMITS):
        land(lake, bodies(5, first_id=5 * number), first_offset=5 * number)
    assert data_files_finding(s3_settings).state == "OK"
    handle = lake.open(raw_transactions)
    path = f"raw_transactions/{add_actions(handle)['path'][0].as_py()}"
    original = bytes(obstore.get(bucket, path).bytes())
    for state in ("has 900 bytes", "is missing"):
        if state == "is missing":
            obstore.delete(bucket, path)
        else:
            obstore.put(bucket, path, original[:900])
        finding = data_files_finding(s3_settings)
        assert finding.state == "FAIL"
        assert f"{lake.root}/{path} of table raw_transactions {state}" in finding.text
        with pytest.raises(DamagedFileError, match=state):
            process_landed(lake, s3_settings)
    obstore.put(bucket, path, original)
    assert process_landed(lake, s3_settings).features == 15
    newest = f"raw_transactions/_delta_log/{3:020}.json"
    original = bytes(obstore.get(bucket, newest).bytes())
    obstore.put(bucket, newest, original[:100])
    with pytest.raises(DamagedFileError, match=r"0003\.json is cut off.* at version 2 again"):
        lake.open(raw_transactions)
    obstore.put(bucket, newest, b"")
    assert "0003.json is empty" in data_files_finding(s3_settings).text


# ---------------------------------------------------------------------------------------------------------
# docs/restore.md


DOCUMENT = Path(__file__).parents[2] / "docs" / "restore.md"


def test_the_commands_of_the_document_work_as_typed_and_again(tmp_path: Path) -> None:
    """The path of the home contains a space. `/bin/true` replaces the commands of the platform."""
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
        log_entry(home / "lake" / "raw_transactions" / "_delta_log", 2).touch()
        clock = f"date() {{ echo {number}; }}\n"
        result = subprocess.run(
            ["bash", "-euc", clock + first + block],
            cwd=tmp_path,
            env={"PATH": f"{programs}:/usr/bin:/bin", "FRAUD_HOME": str(home)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (result.returncode, result.stderr) == (0, "")


def test_a_kept_file_lands_again_after_its_commit_is_lost(settings: Settings, lake: Lake) -> None:
    settings.incoming.mkdir(parents=True)
    for name, first in (("a", 0), ("b", 5)):
        (settings.incoming / f"{name}.jsonl").write_bytes(b"\n".join(bodies(5, first_id=first)))
        land_files(lake, settings)
    process_landed(lake, settings)
    log_entry(log_folder(lake), lake.open(raw_transactions).version()).write_bytes(b"")
    kept = next(settings.processed.rglob("b.jsonl*"))
    shutil.move(kept, settings.incoming / "b.jsonl")
    with pytest.raises(DamagedFileError):
        land_files(lake, settings)
    max(log_folder(lake).glob("*.json")).unlink()
    land_files(lake, settings)
    process_landed(lake, settings)
    assert read_row_count(lake.open(raw_transactions)) == 10
    assert read_row_count(lake.open(transaction_features)) == 10


def test_lost_features_are_rebuilt_and_the_quarantine_does_not_change(settings: Settings, landed: Lake) -> None:
    """The rebuild takes several batches, and the committed offset of the quarantine is ahead of all of them."""
    land(landed, [b"{broken", *bodies(1)], first_offset=15)
    process_landed(landed, settings)
    before = read(landed.open(transaction_features)).sort_by("offset")
    quarantined = read(landed.open(quarantined_transactions), QUARANTINED_TRANSACTIONS.names).sort_by("offset")
    shutil.rmtree(log_folder(landed, transaction_features).parent)
    report = process_landed(landed, settings.model_copy(update={"batch_rows": 4}))
    assert report.batches > 3
    assert read(landed.open(transaction_features)).sort_by("offset").equals(before)
    after = read(landed.open(quarantined_transactions), QUARANTINED_TRANSACTIONS.names).sort_by("offset")
    assert after.equals(quarantined)
