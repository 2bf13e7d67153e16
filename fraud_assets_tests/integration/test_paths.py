"""Folders for the platform's state: every character either works everywhere or is refused with a message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from dotenv import dotenv_values
from sqlalchemy import make_url

from fraud_assets.core.schema import raw_transactions, transaction_features
from fraud_assets.errors import SettingError
from fraud_assets.ingest.landing import land_once
from fraud_assets.lake.duckdb_session import connect
from fraud_assets.lake.log import read_row_count
from fraud_assets.lake.scan import register_view
from fraud_assets.lake.tables import Lake
from fraud_assets.operations.setup_home import set_up_home
from fraud_assets.settings import Settings, load_settings
from fraud_assets.stages.features import process_landed
from fraud_assets_tests.support.landed import bodies, land
from fraud_assets_tests.support.odd_paths import WORKS

REFUSED = "?[\\]^|" + "\n\t\r\x01\x7f\x85\u2028\u2029\udcff"


def test_every_printable_ascii_character_is_allowed_or_refused() -> None:
    printable = {chr(code) for code in range(32, 127)}
    assert {c for c in printable if not c.isalnum() and c != "/"} == {c for c in WORKS + REFUSED if c in printable}


@pytest.mark.parametrize("name", [*WORKS, "100% sure", "%4", "~", " a", "a ", "tx_date=2026-01-01", 'it\'s "so"'])
def test_a_home_with_unusual_characters_works(
    make_settings: Callable[..., Settings], tmp_path: Path, name: str
) -> None:
    settings = make_settings(home=tmp_path / f"a{name}z")
    lake = Lake.of(settings)
    land(lake, bodies(3))
    assert [path.name for path in tmp_path.iterdir()] == [f"a{name}z"]
    with connect(settings) as connection:
        register_view(connection, "raw", lake.open(raw_transactions))
        assert connection.sql("select count(*) from raw").fetchall() == [(3,)]
    assert make_url(settings.mlflow_uri).database == f"{tmp_path}/a{name}z/mlflow/mlflow.db"
    set_up_home(settings, tmp_path / ".env")
    assert dotenv_values(tmp_path / ".env") == {"DAGSTER_HOME": f"{tmp_path}/a{name}z/dagster"}


def test_landing_and_features_work_with_every_allowed_character(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """`test_scoring_pipeline` covers training and scoring in such a folder."""
    settings = make_settings(home=tmp_path / f"a{WORKS}")
    lake = Lake.of(settings)
    settings.incoming.mkdir(parents=True)
    (settings.incoming / "day.jsonl").write_bytes(b"\n".join(bodies(100)))
    land_once(lake, settings, transactions=True, topics=False)
    assert process_landed(lake, settings).features == 100
    assert read_row_count(lake.open(transaction_features)) == 100
    assert [path.name for path in tmp_path.iterdir()] == [f"a{WORKS}"]


@pytest.mark.parametrize("setting", ["home", "lake_uri", "dagster_home"])
@pytest.mark.parametrize("part", [*REFUSED, "%41", "%2f", "${HOME}"])
def test_a_path_with_an_unsafe_part_is_refused(
    make_settings: Callable[..., Settings], tmp_path: Path, setting: str, part: str
) -> None:
    with pytest.raises(SettingError) as refused:
        make_settings(**{setting: f"{tmp_path}/a{part}b"})
    variable = {"home": "FRAUD_HOME", "lake_uri": "FRAUD_LAKE_URI", "dagster_home": "DAGSTER_HOME"}[setting]
    message = str(refused.value)
    assert message.startswith(f"Setting {variable} is ")
    shown_part = part if part.startswith("%") else part[:2]
    assert repr(shown_part) in message
    assert message.isprintable()
    assert "choose a path without" in message


@pytest.mark.parametrize("part", ["?", "#", "[", "^", "\n", "%41"])
def test_an_object_store_prefix_with_an_unsafe_part_is_refused(
    make_settings: Callable[..., Settings], part: str
) -> None:
    with pytest.raises(SettingError, match=r"^Setting FRAUD_LAKE_URI is 's3://bucket/a"):
        make_settings(lake_uri=f"s3://bucket/a{part}b")


def test_a_relative_home_is_checked_with_the_current_folder(
    make_settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a?b").mkdir()
    monkeypatch.chdir(tmp_path / "a?b")
    with pytest.raises(
        SettingError, match=r"^Setting FRAUD_HOME is '\.fraud': in '.*/a\?b/\.fraud' the character '\?'"
    ):
        load_settings(_env_file=None)


def test_a_home_of_an_unknown_user_is_refused(make_settings: Callable[..., Settings]) -> None:
    with pytest.raises(SettingError, match="FRAUD_HOME is '~nobody-here/x': ~nobody-here is not a user"):
        make_settings(home="~nobody-here/x")


@pytest.mark.parametrize(
    ("uri", "folder"), [("~/lake", "lake"), ("file://{}/my%20lake", "my lake"), ("data:1/lake", "data:1/lake")]
)
def test_the_path_of_a_lake_in_a_folder_is_absolute(
    make_settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, folder: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    settings = make_settings(lake_uri=uri.format(tmp_path))
    assert settings.lake == f"{tmp_path}/{folder}"
    land(Lake.of(settings), bodies(2))
    assert (tmp_path / folder / "raw_transactions" / "_delta_log").is_dir()
