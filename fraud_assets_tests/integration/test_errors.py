"""An error gives one sentence with the setting and the fix, a non-zero exit code, and no partial output."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import FileIO
from pathlib import Path

import pytest

from fraud_assets.core.schema import raw_transactions
from fraud_assets.errors import LakeError
from fraud_assets.lake.duckdb_session import connect
from fraud_assets.lake.log import read_row_count
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import load_settings
from fraud_assets_tests.support.commands import assert_one_sentence, run
from fraud_assets_tests.support.landed import land


def test_a_missing_broker_is_reported(tmp_path: Path) -> None:
    assert_one_sentence(run(tmp_path, "land", "--once"), "fraud-assets broker", "KAFKA_BOOTSTRAP_SERVERS")


def test_a_stale_broker_file_is_reported(tmp_path: Path) -> None:
    stale = {
        "bootstrap_servers": "127.0.0.1:1",
        "topic_id": "a",
        "pid": 2**22 - 1,
        "started_at": "2026-01-01T00:00:00Z",
    }
    (tmp_path / "broker.json").write_text(json.dumps(stale))
    assert_one_sentence(run(tmp_path, "land", "--once"), "broker.json", "fraud-assets broker")


def test_an_unreachable_broker_is_reported(tmp_path: Path) -> None:
    result = run(tmp_path, "land", "--once", KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1")
    assert_one_sentence(result, "KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")


class _RefusingMetadataService(BaseHTTPRequestHandler):
    """A metadata service without credentials. Error messages must not contain its response."""

    def do_PUT(self) -> None:
        self.send_response(403)
        self.send_header("x-internal", "raw-response")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Logs nothing."""


def test_an_object_store_without_credentials_is_reported_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RUST_LOG", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), _RefusingMetadataService) as metadata:
        threading.Thread(target=metadata.serve_forever, daemon=True).start()
        result = run(
            tmp_path,
            "evaluate",
            FRAUD_LAKE_URI="s3://no-such-bucket/lake",
            FRAUD_LAKE_TIMEOUT_SECONDS="2",
            AWS_EC2_METADATA_SERVICE_ENDPOINT=f"http://127.0.0.1:{metadata.server_port}/",
        )
        metadata.shutdown()
    assert_one_sentence(result, "s3://no-such-bucket/lake", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    assert "raw-response" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_an_invalid_setting_is_reported(tmp_path: Path) -> None:
    result = run(tmp_path, "land", "--once", FRAUD_BATCH_ROWS="many")
    assert_one_sentence(result, "FRAUD_BATCH_ROWS", "many")
    assert result.returncode == 2


def test_a_home_that_cannot_contain_delta_tables_is_reported(tmp_path: Path) -> None:
    assert_one_sentence(run(tmp_path / "lake[1]", "land", "--once"), "FRAUD_HOME", "lake[1]")


def test_a_lake_path_below_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    result = run(tmp_path, "evaluate", "--train-start", "2018-07-11", FRAUD_LAKE_URI=str(tmp_path / "file" / "lake"))
    assert_one_sentence(result, "FRAUD_LAKE_URI")


def test_an_evaluation_without_data_is_reported(tmp_path: Path) -> None:
    assert_one_sentence(run(tmp_path, "evaluate", "--train-start", "2018-07-11"), "2018-07-11")


def test_a_table_with_a_damaged_log_is_reported(tmp_path: Path) -> None:
    log = tmp_path / "lake" / "transaction_features" / "_delta_log"
    log.mkdir(parents=True)
    (log / f"{0:020}.json").write_text("{broken")
    result = run(tmp_path, "evaluate", "--train-start", "2018-07-11")
    assert_one_sentence(result, "transaction_features", f"{0:020}.json is cut off or damaged", "docs/restore.md")
    assert "<unknown>" not in result.stderr


@pytest.mark.parametrize("arguments", [("land",), ("land", "--once"), ("broker",), ("demo",)])
def test_a_read_only_disk_is_reported(small_disk: Path, arguments: tuple[str, ...]) -> None:
    incoming = small_disk / "incoming"
    incoming.mkdir()
    (incoming / "day.jsonl").write_text('{"transaction_id": 1}\n')
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    result = run(small_disk, *arguments, FRAUD_FILE_QUIET_SECONDS="0")
    assert_one_sentence(result, str(small_disk), "FRAUD_HOME")


def test_a_lack_of_memory_and_spill_space_is_reported(small_disk: Path) -> None:
    settings = load_settings(home=small_disk, duckdb_memory_limit="8MB")
    with pytest.raises(LakeError, match=r"FRAUD_DUCKDB_MEMORY_LIMIT \(8MB\)"), connect(settings) as connection:
        connection.sql("select hash(i) as h, i from range(5000000) t(i) order by h").to_arrow_table()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here (needs root)")
    yield disk
    # Unmount lazily, because DuckDB keeps its spill folder open until the process exits.
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_write_to_a_full_disk_fails_without_effect(small_disk: Path) -> None:
    """The failed write leaves the table unchanged. The same write succeeds once there is space."""
    lake = Lake(str(small_disk))
    land(lake, [b"{}"] * 10)
    ballast = small_disk / "ballast"
    _fill(ballast)
    with pytest.raises(LakeError, match=r"disk is full.*FRAUD_HOME"):
        land(lake, [os.urandom(64) for _ in range(2000)], first_offset=10)
    assert read_row_count(lake.open(raw_transactions)) == 10
    ballast.unlink()
    land(lake, [os.urandom(64) for _ in range(2000)], first_offset=10)
    assert read_row_count(lake.open(raw_transactions)) == 2010


def _fill(ballast: Path) -> None:
    """Writes until the disk is full."""
    block = os.urandom(4096)
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        _write_forever(file, block)


def _write_forever(file: FileIO, block: bytes) -> None:
    while True:
        file.write(block)


def test_the_json_log_includes_the_error(tmp_path: Path) -> None:
    """Each line, also that of a final error, is a JSON object that a log collector can read."""
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    (incoming / "day.jsonl").write_text('{"transaction_id": 1}\n')
    landed = run(tmp_path, "land", "--once", FRAUD_LOG_FORMAT="json", FRAUD_FILE_QUIET_SECONDS="0")
    assert landed.returncode == 0
    lines = [json.loads(line) for line in landed.stderr.splitlines()]
    assert [line["level"] for line in lines] == ["INFO"] * len(lines)
    assert any(line["message"].startswith("day.jsonl: 1 rows") for line in lines)
    assert all(set(line) == {"time", "level", "logger", "message"} for line in lines)
    refused = run(tmp_path, "land", "--once", FRAUD_LOG_FORMAT="json", FRAUD_BATCH_ROWS="many")
    (error,) = [json.loads(line) for line in refused.stderr.splitlines()]
    assert (refused.returncode, error["level"]) == (2, "ERROR")
    assert error["message"].startswith("Setting FRAUD_BATCH_ROWS is 'many'")
