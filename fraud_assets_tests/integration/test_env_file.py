"""`.env` files in other encodings and with quoted values."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from dotenv import dotenv_values

from fraud_assets.errors import SettingError
from fraud_assets.settings import load_settings
from fraud_assets.system.env_file import quote_value

TEXT = "# für uns\nFRAUD_TRAIN_TREES=7\n"


@pytest.mark.parametrize(
    ("encoding", "iconv_name"),
    [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16LE"), ("utf-16-be", "UTF-16BE"), ("latin-1", "LATIN1")],
)
def test_another_encoding_is_refused_with_a_command_that_converts_the_file(
    tmp_path: Path, encoding: str, iconv_name: str
) -> None:
    file = tmp_path / ".env"
    file.write_bytes(TEXT.encode(encoding))
    with pytest.raises(SettingError) as refused:
        load_settings(_env_file=file)
    assert str(file) in str(refused.value)
    command = str(refused.value).split("`")[1]
    assert f"-f {iconv_name} " in command
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    assert load_settings(_env_file=file).train_trees == 7


@pytest.mark.parametrize("content", [TEXT.encode(), TEXT.encode("utf-8-sig"), b""])
def test_utf_8_is_read_with_or_without_a_byte_order_mark(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".env").write_bytes(content)
    assert load_settings(_env_file=tmp_path / ".env").train_trees == (7 if content else 100)


@pytest.mark.parametrize(
    "arguments",
    [("fraud_assets.cli", "land", "--once"), ("fraud_assets.cli", "doctor"), ("fraud_assets.cli", "setup")],
)
def test_no_command_shows_a_stack_trace(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / ".env").write_bytes(TEXT.encode("utf-16"))
    result = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=tmp_path,
        env={**os.environ, "FRAUD_HOME": "home", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode in (1, 2)
    assert "Traceback" not in result.stderr
    assert f"{tmp_path}/.env is not in UTF-8" in (result.stdout + result.stderr)


@pytest.mark.parametrize("value", ["plain", "with space", "it's", 'so "called"', 'it\'s "so"', "a$b", "hash #1", "ü"])
def test_every_parser_reads_the_same_quoted_value(tmp_path: Path, value: str) -> None:
    honcho = pytest.importorskip("honcho.environ")
    (tmp_path / ".env").write_text(f"A={quote_value(value)}\n", encoding="utf-8")
    assert dotenv_values(tmp_path / ".env") == {"A": value}
    assert honcho.parse((tmp_path / ".env").read_text(encoding="utf-8")) == {"A": value}
