"""The drop folder: an entry that cannot be landed fails alone and does not block the others."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fraud_assets.cli import main
from fraud_assets.core.schema import raw_transactions
from fraud_assets.errors import LakeError, SettingError
from fraud_assets.ingest.files import landing as files
from fraud_assets.ingest.files.drop_folder import find_waiting_entries
from fraud_assets.ingest.files.file_report import FileReport
from fraud_assets.ingest.files.landing import find_waiting_files, land_files
from fraud_assets.ingest.files.stuck_entries import StuckEntries
from fraud_assets.lake.log import read_row_count
from fraud_assets.lake.tables import Lake
from fraud_assets.operations.kept_files import find_customer_files
from fraud_assets.printable import escape_unprintable
from fraud_assets.settings import CONTRACT_FIELDS, Settings
from fraud_assets_tests.support.dropped import drop, land, rows_of
from fraud_assets_tests.support.logged import land_logged

GOOD = '{"n": 1}\n'
KEY = "k" * 32


@pytest.fixture
def incoming(settings: Settings) -> Path:
    """The drop folder with a valid file, which sorts last by name."""
    drop(settings, "z.jsonl", GOOD)
    return settings.incoming


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def reasons_of(reports: list[FileReport]) -> dict[str, str]:
    return {report.name: report.reason for report in reports}


def make_fail(
    monkeypatch: pytest.MonkeyPatch, owner: Any, function: str, error: Exception, when: Callable[..., bool]
) -> None:
    """Makes a function fail for the calls that `when` selects."""
    original = getattr(owner, function)

    def broken(*arguments: Any, **keywords: Any) -> Any:
        if when(*arguments, **keywords):
            raise error
        return original(*arguments, **keywords)

    monkeypatch.setattr(owner, function, broken)


def first_call_for(name: str) -> Callable[..., bool]:
    """Selects the first call for the file of that name."""
    remaining = [True]

    def is_first_call(path: Path, *_: Any, **__: Any) -> bool:
        return path.name == name and bool(remaining) and remaining.pop()

    return is_first_call


# --- Entries that are not files -------------------------------------------------------------------------------------


def test_an_entry_that_is_not_a_file_fails_alone(
    settings: Settings, lake: Lake, incoming: Path, tmp_path: Path
) -> None:
    (incoming / "a.csv").symlink_to("a.csv")
    (incoming / "b.csv").symlink_to(tmp_path / "nowhere.csv")
    os.mkfifo(incoming / "c.jsonl")
    (incoming / "d.jsonl").symlink_to("/dev/zero")
    # The path of the folder is too long for the address of a socket.
    folder_descriptor = os.open(incoming, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{folder_descriptor}/e.jsonl")
    os.close(folder_descriptor)
    reports = land(lake, settings)
    assert [(report.name, report.rows) for report in reports if not report.reason] == [("z.jsonl", 1)]
    reasons = reasons_of(reports)
    assert "symbolic link to a.csv" in reasons["a.csv"]
    assert "Too many levels of symbolic links" in reasons["a.csv"]
    assert "No such file" in reasons["b.csv"]
    assert "a named pipe" in reasons["c.jsonl"]
    assert "a device" in reasons["d.jsonl"]
    assert "a socket" in reasons["e.jsonl"]
    assert names_in(incoming) == []
    for name in ("a.csv", "b.csv", "c.jsonl", "d.jsonl", "e.jsonl"):
        assert (settings.failed / f"{name}.reason.txt").read_text() == reasons[name] + "\n"
    # The links are moved, not their targets.
    assert (settings.failed / "a.csv").readlink() == Path("a.csv")
    assert (settings.failed / "d.jsonl").readlink() == Path("/dev/zero")
    assert stat.S_ISFIFO((settings.failed / "c.jsonl").lstat().st_mode)
    # A second entry of the same name does not overwrite the first, and erasure skips entries that are not files.
    (incoming / "a.csv").symlink_to("a.csv")
    land(lake, settings)
    assert (settings.failed / "a.1.csv").is_symlink()
    assert find_customer_files(settings, settings.failed, ["1"]) == []


def test_a_link_into_an_unreadable_folder_fails_alone(
    settings: Settings, lake: Lake, incoming: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (incoming / "a.jsonl").symlink_to(tmp_path / "secret.jsonl")
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    make_fail(
        monkeypatch,
        Path,
        "stat",
        denied,
        lambda path, follow_symlinks=True: follow_symlinks and path.name == "a.jsonl",
    )
    make_fail(monkeypatch, Path, "open", denied, lambda path, *_, **__: path.name == "a.jsonl")
    reports = land(lake, settings)
    assert [report.rows for report in reports] == [0, 1]
    assert "secret.jsonl, which cannot be read (Permission denied)" in reports[0].reason
    assert (settings.failed / "a.jsonl").is_symlink()
    # The user who erases a customer must know that this file was not searched.
    assert [
        file.closed for file in find_customer_files(settings, settings.failed, ["1"]) if file.path.is_symlink()
    ] == [True]


@pytest.mark.parametrize(
    "name",
    ["a.csv.part", "a.csv.TMP", "a.csv.filepart", "a.csv.crdownload", "a.csv.partial", "a.csv.download", ".a.csv.swp",
     "a.csv.swp", "a.csv._COPYING_", "_SUCCESS", "_started_1", "_temporary"],
)  # fmt: skip
def test_a_file_that_is_still_being_written_is_ignored(
    settings: Settings, lake: Lake, incoming: Path, name: str
) -> None:
    (incoming / name).write_text(GOOD)
    assert [report.name for report in land(lake, settings)] == ["z.jsonl"]
    assert names_in(incoming) == [name]


def test_a_dropped_folder_is_reported_once_with_the_fix(settings: Settings, lake: Lake, incoming: Path) -> None:
    folder = incoming / "scores.parquet"
    folder.mkdir()
    (folder / "part-0.jsonl").write_text(GOOD)
    (folder / "_SUCCESS").touch()
    log_lines: list[str] = []
    stuck = StuckEntries()
    reported, landed = land_logged(lake, settings, log_lines, stuck)
    assert reported.moved_to is None
    assert landed.rows == 1
    assert log_lines[0] == (
        "scores.parquet is a folder, and only files are landed. Move the files out of the folder into "
        f"{incoming}, then remove the folder."
    )
    assert land_logged(lake, settings, log_lines, stuck) == []
    assert len(log_lines) == 2
    assert stuck.reasons == {"scores.parquet": log_lines[0]}
    # The user follows the fix in the message.
    (folder / "part-0.jsonl").rename(incoming / "part-0.jsonl")
    (folder / "_SUCCESS").unlink()
    folder.rmdir()
    assert [report.name for report in land_logged(lake, settings, log_lines, stuck)] == ["part-0.jsonl"]
    assert stuck.reasons == {}


# --- Files that cannot be moved -------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_moved_stays_and_the_others_land(
    settings: Settings, lake: Lake, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(settings, "a.xlsx", "x")
    settings.failed.write_text("no folder")
    now = [0.0]
    stuck = StuckEntries(lambda: now[0])
    attempted: list[str] = []
    make_fail(monkeypatch, files, "_topic_id", AssertionError(), lambda path, *_: bool(attempted.append(path.name)))
    refused, landed = land_files(lake, settings, stuck=stuck)
    assert landed.rows == 1
    assert refused.moved_to is None
    assert f"cannot be moved to {settings.failed} (File exists)" in refused.reason
    assert list(stuck.reasons) == ["a.xlsx"]
    # The file is retried after a pause that grows to a minute, and is not reported again. Other files land at once.
    drop(settings, "b.jsonl", GOOD)
    assert [report.name for report in land_files(lake, settings, stuck=stuck)] == ["b.jsonl"]
    for pause in (5, 10, 20, 40, 60, 60):
        now[0] += pause - 1
        land_files(lake, settings, stuck=stuck)
        attempted.clear()
        now[0] += 1
        assert land_files(lake, settings, stuck=stuck) == []
        assert attempted == ["a.xlsx"]
    settings.failed.unlink()
    now[0] += 60
    assert [report.moved_to for report in land_files(lake, settings, stuck=stuck)] == [settings.failed / "a.xlsx"]
    assert stuck.reasons == {}


def test_a_landed_file_that_cannot_be_moved_does_not_land_again(settings: Settings, lake: Lake, incoming: Path) -> None:
    settings.processed.write_text("no folder")
    log_lines: list[str] = []
    now = [0.0]
    stuck = StuckEntries(lambda: now[0])
    (report,) = land_logged(lake, settings, log_lines, stuck)
    assert (report.rows, report.moved_to) == (1, None)
    assert "will not land again" in report.reason
    now[0] += 5
    assert land_logged(lake, settings, log_lines, stuck) == []
    assert len(log_lines) == 1
    settings.processed.unlink()
    (report,) = land(lake, settings)
    assert (report.rows, report.moved_to) == (0, settings.processed / "z.jsonl")
    assert len(rows_of(lake, raw_transactions)) == 1


def test_a_changed_file_is_retried_at_once(settings: Settings, lake: Lake, incoming: Path) -> None:
    path = drop(settings, "a.xlsx", "x")
    settings.failed.write_text("no folder")
    stuck = StuckEntries(lambda: 0.0)
    land_files(lake, settings, stuck=stuck)
    assert not stuck.is_due(path)
    path.write_text("other")
    assert stuck.is_due(path)


def test_entries_move_to_another_file_system_without_duplicates(
    settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is copied, and a link stays a link. If the original cannot be removed, the copy is removed."""
    cross_device = OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    make_fail(monkeypatch, Path, "rename", cross_device, lambda path, *_: path.parent == settings.incoming)
    drop(settings, "a.xlsx", "x")
    (settings.incoming / "b.csv").symlink_to("b.csv")
    os.mkfifo(settings.incoming / "c.csv")
    reports = land(lake, settings)
    assert [bool(report.moved_to) for report in reports] == [True, True, False]
    assert names_in(settings.failed) == ["a.xlsx", "a.xlsx.reason.txt", "b.csv", "b.csv.reason.txt"]
    assert names_in(settings.incoming) == ["c.csv"]
    assert (settings.failed / "b.csv").readlink() == Path("b.csv")
    drop(settings, "d.xlsx", "x")
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    make_fail(monkeypatch, Path, "unlink", denied, lambda path, **_: path.parent == settings.incoming)
    before = names_in(settings.failed)
    for _ in range(2):
        assert "Permission denied" in reasons_of(land(lake, settings))["d.xlsx"]
        assert names_in(settings.failed) == before


# --- Temporary faults and unexpected errors -------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["_topic_id", "examine", "_land_contents"])
@pytest.mark.parametrize("error_number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_lack_of_system_resources_does_not_fail_the_file(
    settings: Settings, lake: Lake, incoming: Path, monkeypatch: pytest.MonkeyPatch, where: str, error_number: int
) -> None:
    drop(settings, "a.jsonl", '{"n": 2}\n')
    make_fail(monkeypatch, files, where, OSError(error_number, os.strerror(error_number)), first_call_for("a.jsonl"))
    waiting, landed = land(lake, settings)
    assert (waiting.moved_to, landed.rows) == (None, 1)
    if error_number != errno.ENOMEM:
        assert "ulimit -n" in waiting.reason
    assert [report.rows for report in land(lake, settings)] == [1]
    assert names_in(settings.failed) == []


@pytest.mark.parametrize("where", ["_topic_id", "examine", "_land_contents"])
def test_a_file_that_disappears_is_not_reported(
    settings: Settings, lake: Lake, incoming: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    drop(settings, "a.jsonl", GOOD)
    not_found = FileNotFoundError(errno.ENOENT, "gone")

    def remove_file(path: Path, *_: Any) -> bool:
        if path.name == "a.jsonl":
            path.unlink()
        return path.name == "a.jsonl"

    make_fail(monkeypatch, files, where, not_found, remove_file)
    assert [(report.name, report.reason) for report in land(lake, settings)] == [("z.jsonl", "")]


def test_an_unexpected_read_error_fails_only_that_file(
    settings: Settings, lake: Lake, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(settings, "a.jsonl", GOOD)
    make_fail(monkeypatch, files, "examine", RuntimeError("\x1b[31mred"), first_call_for("a.jsonl"))
    refused, landed = land(lake, settings)
    assert refused.reason == r"It cannot be read because of an unexpected error (RuntimeError: \x1b[31mred)."
    assert refused.moved_to == settings.failed / "a.jsonl"
    assert landed.rows == 1


def test_a_setting_that_is_too_low_for_one_file_does_not_stop_the_others(
    settings: Settings, lake: Lake, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(settings, "a.parquet", "x")
    make_fail(
        monkeypatch,
        files,
        "examine",
        SettingError("FRAUD_DUCKDB_MEMORY_LIMIT is too low."),
        first_call_for("a.parquet"),
    )
    waiting, landed = land(lake, settings)
    assert (waiting.moved_to, landed.rows) == (None, 1)
    assert "FRAUD_DUCKDB_MEMORY_LIMIT is too low." in waiting.reason


def test_an_unavailable_lake_stops_all_files(
    settings: Settings, lake: Lake, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_fail(monkeypatch, files, "_land_contents", LakeError("The lake is away."), first_call_for("z.jsonl"))
    with pytest.raises(LakeError):
        land(lake, settings)
    assert names_in(incoming) == ["z.jsonl"]


# --- Names ----------------------------------------------------------------------------------------------------------


def test_names_are_escaped_wherever_they_are_reported(settings: Settings, lake: Lake) -> None:
    settings.incoming.mkdir(parents=True)
    path_prefix = os.fsencode(settings.incoming) + b"/\x1b[31m\xff\n"
    for suffix in (b".jsonl", b".xlsx"):
        Path(os.fsdecode(path_prefix + suffix)).write_text(GOOD)
    Path(os.fsdecode(path_prefix)).mkdir()
    log_lines: list[str] = []
    reports = land_logged(lake, settings, log_lines)
    assert sorted(report.name for report in reports) == [
        r"\x1b[31m\xff\n",
        r"\x1b[31m\xff\n.jsonl",
        r"\x1b[31m\xff\n.xlsx",
    ]
    assert all(line.isprintable() for line in [*log_lines, *reasons_of(reports).values()])
    assert rows_of(lake, raw_transactions)[0]["topic"] == r"file:\x1b[31m\xff\n.jsonl"
    assert lake.open(raw_transactions).history(1)[0]["file"] == r"\x1b[31m\xff\n.jsonl"
    (reason,) = [path for path in settings.failed.iterdir() if path.name.endswith(".reason.txt")]
    assert reason.read_text().strip().isprintable()


def test_only_unprintable_characters_are_escaped() -> None:
    assert escape_unprintable("é ½ \\ name.csv") == "é ½ \\ name.csv"
    assert escape_unprintable("a\u202eb\x9bc\rd") == r"a\u202eb\x9bc\rd"


# --- FRAUD_PSEUDONYMISE ---------------------------------------------------------------------------------------------


def test_with_pseudonyms_only_read_files_and_entries_without_content_are_removed(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(pseudonymise="cc_num", pseudonym_key=KEY)
    lake = Lake.of(settings)
    drop(settings, "z.jsonl", GOOD)
    drop(settings, "closed.jsonl", GOOD)
    (settings.incoming / "loop.csv").symlink_to("loop.csv")
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    make_fail(monkeypatch, files, "_topic_id", denied, lambda path, _: path.name == "closed.jsonl")
    closed, loop, landed = land(lake, settings)
    assert landed.rows == 1
    assert closed.moved_to is None
    assert "Make it readable, or remove it." in closed.reason
    assert loop.moved_to == settings.failed / "loop.csv.reason.txt"
    assert "Too many levels" in loop.moved_to.read_text()
    assert names_in(settings.failed) == ["loop.csv.reason.txt"]
    assert names_in(settings.incoming) == ["closed.jsonl"]


def test_with_pseudonyms_a_damaged_file_is_removed(make_settings: Callable[..., Settings], lake: Lake) -> None:
    """Arrow raises OSError for some damage and ValueError for other damage. In both cases the file was read."""
    settings = make_settings(pseudonymise="customer_id", pseudonym_key=KEY)
    settings.incoming.mkdir(parents=True)
    content = BytesIO()
    table = pa.table({name: [f"4111-{row}" for row in range(20_000)] for name in CONTRACT_FIELDS})
    pq.write_table(table, content)
    whole = content.getvalue()
    (settings.incoming / "pages.parquet").write_bytes(whole[:2_000] + bytes(2_000) + whole[4_000:])
    (settings.incoming / "footer.parquet").write_bytes(whole[:-300] + bytes(200) + whole[-100:])
    (settings.incoming / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    reports = land_files(lake, settings)
    assert [report.rows for report in reports] == [0, 0, 0]
    assert names_in(settings.incoming) == []
    assert names_in(settings.failed) == [f"{name}.parquet.reason.txt" for name in ("cut", "footer", "pages")]
    assert not any(b"4111" in path.read_bytes() for path in settings.failed.iterdir())


# --- Exit code and waiting entries -----------------------------------------------------------------------------------


def test_the_exit_code_of_once_shows_whether_all_files_landed(
    settings: Settings,
    lake: Lake,
    incoming: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FRAUD_HOME", str(settings.home_path))
    monkeypatch.setenv("FRAUD_FILE_QUIET_SECONDS", "0")
    monkeypatch.setattr("sys.argv", ["fraud-assets", "land", "--once", "--json"])
    main()
    assert json.loads(capsys.readouterr().out)["raw_transactions"]["rows"] == 1
    (incoming / "a.csv").symlink_to("a.csv")
    (incoming / "folder").mkdir()
    drop(settings, "z.jsonl", '{"n": 2}\n')
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 3
    output = capsys.readouterr()
    report = json.loads(output.out)["raw_transactions"]
    assert report["rows"] == 1
    assert list(report["failed_files"]) == ["a.csv"]
    assert list(report["stuck_files"]) == ["folder"]
    assert "a.csv cannot be landed" in output.err
    assert read_row_count(lake.open(raw_transactions)) == 2


def test_an_unreadable_drop_folder_raises_an_error(settings: Settings) -> None:
    settings.home_path.mkdir()
    settings.incoming.symlink_to("incoming")
    with pytest.raises(OSError, match="Too many levels"):
        find_waiting_entries(settings)


def test_waiting_files_and_folders_are_listed_separately(settings: Settings, incoming: Path) -> None:
    (incoming / "folder").mkdir()
    (incoming / "a.csv").symlink_to("folder")
    (incoming / "loop.csv").symlink_to("loop.csv")
    waiting = find_waiting_entries(settings)
    assert [path.name for path in waiting.folders] == ["a.csv", "folder"]
    assert [path.name for path in waiting.files] == ["loop.csv", "z.jsonl"]
    assert find_waiting_files(settings) == waiting.files
