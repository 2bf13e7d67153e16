"""A lake on S3 gives the same guarantees as a lake in a folder, through races, kills, lost responses and outages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from uuid import uuid4

import pyarrow.compute as pc
import pytest

from fraud_assets.core.schema import (
    TABLES,
    alert_thresholds,
    fraud_labels,
    fraud_predictions,
    quarantined_transactions,
    raw_transactions,
    transaction_features,
)
from fraud_assets.errors import LakeError, SettingError
from fraud_assets.ingest.service.lander import land_forever
from fraud_assets.ingest.service.metrics import LandingMetrics
from fraud_assets.kafka.broker import embedded_broker
from fraud_assets.lake.append import append_landed
from fraud_assets.lake.log import read_row_count
from fraud_assets.lake.storage import build_storage_options, store_fault
from fraud_assets.lake.tables import Lake, read
from fraud_assets.operations.maintenance import maintain_lake
from fraud_assets.operations.reconciliation import count_alerts, reconcile
from fraud_assets.settings import Settings, load_settings
from fraud_assets.stages.backlog import find_backlog
from fraud_assets.stages.evaluation import find_latest_start
from fraud_assets.stages.features import process_landed, recompute
from fraud_assets.stages.scoring import score_pending, score_range
from fraud_assets.stages.training import train
from fraud_assets.testing.object_store import ACCESS_KEY, BUCKET, REGION, SECRET_KEY, ObjectStore, object_store
from fraud_assets_tests.support.faulty_proxy import Fault, FaultyProxy, faulty_proxy
from fraud_assets_tests.support.killed import FEATURES, LAND, MESSAGES, assert_balanced, message, start
from fraud_assets_tests.support.landed import bodies, land
from fraud_assets_tests.support.starting import sender
from fraud_assets_tests.support.store_client import assert_one_winner_each, client, race_for_keys
from fraud_assets_tests.support.topics import always_on
from fraud_assets_tests.support.waiting import until

pytestmark = pytest.mark.xdist_group("s3")


def test_conditional_writes_of_the_server_are_atomic(s3: ObjectStore) -> None:
    """The other tests of this module rely on this property."""
    bucket = client(s3, uuid4().hex)
    keys = [f"{number:020}.json" for number in range(4)]
    assert_one_winner_each(bucket, keys, race_for_keys(bucket, keys, "writer"))


def test_every_stage_works_on_an_object_store(s3_settings: Settings) -> None:
    settings = s3_settings.model_copy(update={"train_min_rows": 50, "train_trees": 10, "batch_rows": 1500})
    lake = Lake.of(settings)
    land(lake, bodies(2000))
    assert process_landed(lake, settings).features == 2000
    train(lake, settings)
    assert score_pending(lake, settings).rows == 2000
    assert lake.versions().keys() == {table.name for table in TABLES if lake.exists(table)}
    low, high = datetime(2026, 1, 3, tzinfo=UTC), datetime(2026, 1, 4, tzinfo=UTC)
    assert recompute(lake, settings, low, high) == 72
    assert score_range(lake, settings, low, high).rows == 72
    before = read(lake.open(transaction_features)).sort_by("offset")
    reports = maintain_lake(lake, settings.model_copy(update={"vacuum_hours": 0}))
    assert reports["transaction_features"].files_after < reports["transaction_features"].files_before
    assert reports["transaction_features"].files_removed > 0
    assert read(lake.open(transaction_features)).sort_by("offset").equals(before)
    assert find_backlog(lake, settings).reason == "Everything that landed is scored."
    counts = reconcile(lake, settings)
    assert counts["landed"] == counts["features"] == counts["scored"] == 2000
    assert count_alerts(lake) == pc.sum(read(lake.open(fraud_predictions), ["is_alert"])["is_alert"]).as_py()
    assert read_row_count(lake.open(alert_thresholds)) == 1
    assert find_latest_start(lake, settings, 7, 7, 7)


def test_only_files_that_are_read_are_fetched_and_each_once(s3_settings: Settings) -> None:
    lake = Lake.of(s3_settings)
    land(lake, bodies(720))
    process_landed(lake, s3_settings)
    for copy in _cached_copies(s3_settings):
        copy.unlink()
    day = datetime(2026, 1, 5, tzinfo=UTC).date()
    assert read(lake.open(transaction_features), ["offset"], pc.field("tx_date") == day).num_rows == 72
    (copy,) = _cached_copies(s3_settings)
    assert copy.parent.name == f"tx_date={day}"
    # A copy that a power cut left incomplete is fetched again.
    complete = copy.read_bytes()
    copy.write_bytes(complete[:-1])
    assert read(lake.open(transaction_features), ["offset"], pc.field("tx_date") == day).num_rows == 72
    assert copy.read_bytes() == complete
    inode = copy.stat().st_ino
    read(lake.open(transaction_features), ["offset"], pc.field("tx_date") == day)
    assert copy.stat().st_ino == inode


def test_a_full_cache_deletes_copies_that_were_not_used_recently(s3_settings: Settings) -> None:
    settings = s3_settings.model_copy(update={"lake_cache_bytes": 1})
    lake = Lake.of(settings)
    land(lake, bodies(10))
    process_landed(lake, settings)
    (old,) = _cached_copies(settings)
    hours_ago = time.time() - 2 * 3600
    os.utime(old, (hours_ago, hours_ago))
    land(lake, bodies(10, first_id=10), first_offset=10)
    process_landed(lake, settings)
    assert not old.exists()
    assert len(_cached_copies(settings)) > 0


def _cached_copies(settings: Settings) -> list[Path]:
    return [file for file in (settings.home_path / "cache" / "lake").rglob("*") if file.is_file()]


@pytest.fixture
def produced(s3_settings: Settings) -> Iterator[Settings]:
    """A topic with `MESSAGES` messages, some of them bad, for a lake on S3."""
    from confluent_kafka import Producer

    with embedded_broker(s3_settings) as broker:
        producer = Producer({"bootstrap.servers": broker.bootstrap, "log_level": 0})
        for number in range(MESSAGES):
            producer.produce(s3_settings.transactions_topic, message(number), key=str(number % 17).encode())
        assert producer.flush(30) == 0
        yield s3_settings.model_copy(
            update={"batch_rows": 150, "land_batch_rows": 90, "train_min_rows": 50, "train_trees": 5}
        )


def _wait_for_exit(process: subprocess.Popen[str], *allowed: int) -> int:
    _, errors = process.communicate(timeout=90)
    assert process.returncode in allowed, errors
    return process.returncode


def test_racing_landers_and_feature_runs_survive_kills(produced: Settings) -> None:
    """Two landers and two feature runs race, and kills hit their commits. Two more of each then finish the work."""
    lake = Lake.of(produced)
    exit_code = _wait_for_exit(
        start(produced, LAND.format("die_at(landing, 'append_landed', 2, after=True)")), 0, -signal.SIGKILL
    )
    assert exit_code == -signal.SIGKILL
    killed_programs = (
        LAND.format("die_at(landing, 'append_landed', 2)"),
        LAND.format(""),
        FEATURES.format("die_at(features, 'commit_append', 2)"),
        FEATURES.format("die_at(features, 'commit_append', 1, after=True)"),
    )
    exit_codes = [
        _wait_for_exit(racer, 0, -signal.SIGKILL) for racer in [start(produced, code) for code in killed_programs]
    ]
    assert -signal.SIGKILL in exit_codes[2:]
    for racer in [start(produced, code.format("")) for code in (LAND, LAND, FEATURES, FEATURES)]:
        _wait_for_exit(racer, 0)
    process_landed(lake, produced)
    assert_balanced(lake, produced)


@pytest.fixture
def own_s3(tmp_path: Path) -> Iterator[ObjectStore]:
    """A separate S3 server, which the test can kill."""
    with object_store(tmp_path / "s3") as store:
        yield store


def test_processes_continue_after_the_store_is_killed_and_restarted(
    make_settings: Callable[..., Settings], own_s3: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row is lost or repeated, whether or not the store kept the interrupted commit."""
    environment = {**own_s3.environment("p"), "FRAUD_LAKE_TIMEOUT_SECONDS": "90", "FRAUD_LAND_BATCH_ROWS": "10"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = make_settings(**own_s3.settings("p"), lake_timeout_seconds=90)
    from confluent_kafka import Producer

    with embedded_broker(settings) as broker:
        producer = Producer({"bootstrap.servers": broker.bootstrap, "log_level": 0})
        for number in range(MESSAGES):
            producer.produce(settings.transactions_topic, message(number), key=str(number % 17).encode())
        assert producer.flush(30) == 0
        lake = Lake.of(settings)
        small_batches = "settings = settings.model_copy(update={'land_batch_rows': 10})"
        lander = start(settings, LAND.format(small_batches))
        while lake.open(raw_transactions).version() < 5:
            assert lander.poll() is None
        own_s3.kill()
        own_s3.start()
        features = start(settings, FEATURES.format(""))
        _wait_for_exit(lander, 0)
        _wait_for_exit(features, 0)
        process_landed(lake, settings)
    assert_balanced(lake, settings)


def test_a_lander_that_starts_before_the_store_waits_for_it(
    own_s3: ObjectStore, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings(**own_s3.settings("early"), lake_timeout_seconds=1, land_interval_seconds=0.1)
    own_s3.kill()
    lake, metrics = Lake.of(settings), LandingMetrics()
    with embedded_broker(settings) as broker:
        sender(broker)(settings.transactions_topic, bodies(10))
        with always_on(partial(land_forever, lake, settings, metrics=metrics)) as lines:
            until(lambda: metrics.health()["status"] == "failing")
            own_s3.start()
            until(lambda: lake.exists(raw_transactions) and read_row_count(lake.open(raw_transactions)) == 10)
    assert [line for line in lines if "is unavailable" in line and "Landing retries." in line]
    assert "Landing of topics works again." in lines


def test_a_lander_with_wrong_credentials_ends(s3: ObjectStore, make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(**{**s3.settings("refused"), "aws_access_key_id": "stranger"}, lake_timeout_seconds=1)
    with pytest.raises(LakeError, match="check AWS_ACCESS_KEY_ID"):
        land_forever(Lake.of(settings), settings, threading.Event())


@pytest.fixture
def proxied(s3: ObjectStore, make_settings: Callable[..., Settings]) -> Iterator[tuple[FaultyProxy, Settings]]:
    """A proxy that can inject faults, and the settings of a lake behind it."""
    with faulty_proxy(s3.endpoint) as proxy:
        settings = {**s3.settings(uuid4().hex[:8]), "aws_endpoint_url": proxy.endpoint}
        yield proxy, make_settings(**settings, lake_timeout_seconds=1)


def test_a_commit_whose_response_is_lost_is_not_repeated(proxied: tuple[FaultyProxy, Settings]) -> None:
    """The store keeps the commit. The writer gets no response, finds its own commit and starts over after it."""
    proxy, settings = proxied
    lake = Lake.of(settings)
    land(lake, bodies(10))
    rows = read(lake.open(raw_transactions))
    next_rows = rows.set_column(rows.column_names.index("offset"), "offset", pc.add(rows["offset"], 10))
    lost: set[str] = set()

    def lose_first_response(method: str, path: str) -> Fault:
        if method == "PUT" and "/_delta_log/" in path and path not in lost:
            lost.add(path)
            return "answer lost"
        return None

    proxy.choose_fault = lose_first_response
    assert append_landed(lake, raw_transactions, next_rows) == 0, "the second attempt finds everything there"
    process_landed(lake, settings)
    assert {path.split("/")[3] for path in lost} == {
        table.name for table in (raw_transactions, fraud_labels, quarantined_transactions, transaction_features)
    }
    assert [lake.open(table).version() for table in (raw_transactions, transaction_features)] == [2, 1]
    counts = reconcile(lake, settings)
    assert (counts["landed"], counts["features"], counts["duplicates"]) == (20, 10, 10)


def test_a_temporarily_overloaded_store_loses_no_row(proxied: tuple[FaultyProxy, Settings]) -> None:
    """A few 503 responses are retried; many become a one-line error. The next run continues, without partial writes."""
    proxy, settings = proxied
    lake = Lake.of(settings)
    requests = Counter[str]()

    def fail_every_ninth(method: str, path: str) -> Fault:
        requests[method] += 1
        return "unavailable" if requests[method] % 9 == 0 else None

    proxy.choose_fault = fail_every_ninth
    land(lake, bodies(30))
    assert process_landed(lake, settings).features == 30
    assert proxy.done
    proxy.choose_fault = lambda method, path: "unavailable" if method == "PUT" else None
    with pytest.raises(LakeError, match=r"is unavailable \(503 Service Unavailable\).*FRAUD_LAKE_URI"):
        land(lake, bodies(30, first_id=30), first_offset=30)
    proxy.choose_fault = lambda method, path: "unavailable" if method == "GET" else None
    with pytest.raises(LakeError, match="503"):
        reconcile(lake, settings)
    proxy.choose_fault = lambda method, path: None
    land(lake, bodies(30, first_id=30), first_offset=30)
    assert process_landed(lake, settings).features == 30
    assert reconcile(lake, settings)["landed"] == 60


def test_each_store_fault_gives_a_one_line_error(
    make_settings: Callable[..., Settings], s3: ObjectStore, tmp_path: Path
) -> None:
    good = {**s3.settings("errors"), "lake_timeout_seconds": 1}
    for wrong, words in (
        ({"lake_uri": "s3://nowhere/x"}, "bucket does not exist: create it, or correct FRAUD_LAKE_URI"),
        ({"aws_access_key_id": "stranger"}, "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ({"aws_secret_access_key": "not-the-secret"}, "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ({"aws_endpoint_url": "http://127.0.0.1:1"}, "at http://127.0.0.1:1 is unavailable"),
        ({"aws_endpoint_url": s3.endpoint.replace("http:", "https:")}, "is unavailable"),
    ):
        lake = Lake.of(make_settings(**{**good, **wrong}))
        for action in (
            lake.versions,
            lambda lake=lake: lake.open(raw_transactions),
            lambda lake=lake: land(lake, [b""]),
        ):
            with pytest.raises(LakeError, match=words) as caught:
                action()
            error = str(caught.value)
            assert "\n" not in error
            assert "\x1b" not in error
            assert "<" not in error
            assert SECRET_KEY not in error
            assert "not-the-secret" not in error


def test_a_store_that_accepts_requests_but_never_responds_times_out(
    make_settings: Callable[..., Settings], s3: ObjectStore
) -> None:
    lake = Lake.of(make_settings(**s3.settings("frozen"), lake_timeout_seconds=1, lake_options="timeout=1s"))
    s3.freeze()
    try:
        with pytest.raises(LakeError, match=r"timed out.*AWS_ENDPOINT_URL"):
            lake.open(raw_transactions)
    finally:
        s3.thaw()
    assert lake.open(raw_transactions).version() == 0


def test_a_dot_env_file_configures_the_store(s3_settings: Settings, tmp_path: Path) -> None:
    """delta-rs does not read `.env`. The platform passes the values of that file to delta-rs as options."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    lines = [
        f"AWS_ENDPOINT_URL={s3_settings.aws_endpoint_url}",
        f"AWS_ACCESS_KEY_ID={ACCESS_KEY}",
        f"AWS_SECRET_ACCESS_KEY={SECRET_KEY}",
    ]
    (tmp_path / ".env").write_text("\n".join(lines))
    command = [sys.executable, "-m", "fraud_assets.cli", "evaluate", "--train-start", "2026-01-01"]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert "the lake holds 0 (no features at all)" in result.stderr
    assert Lake.of(s3_settings).exists(transaction_features)


@pytest.mark.parametrize(
    ("settings", "environment", "words"),
    [
        ({"lake_options": "conditional_put=disabled"}, {}, "FRAUD_LAKE_OPTIONS sets conditional_put to 'disabled'"),
        ({"lake_options": "AWS_CONDITIONAL_PUT=dynamo:t"}, {}, "FRAUD_LAKE_OPTIONS sets conditional_put"),
        ({"lake_options": "allow_unsafe_rename=true"}, {}, "ALLOW_UNSAFE_RENAME is 'true'"),
        ({}, {"AWS_S3_ALLOW_UNSAFE_RENAME": "TRUE"}, "AWS_S3_ALLOW_UNSAFE_RENAME is 'TRUE'"),
        ({}, {"AWS_S3_LOCKING_PROVIDER": "dynamodb"}, "AWS_S3_LOCKING_PROVIDER is 'dynamodb'"),
    ],
)
def test_settings_that_make_commits_unsafe_are_refused(
    make_settings: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
    environment: dict[str, str],
    words: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Lake.of(make_settings(**settings)).root.startswith("/")
    with pytest.raises(SettingError, match=words):
        Lake.of(make_settings(lake_uri="s3://bucket/lake", **settings))


def test_settings_become_storage_options_and_secrets_stay_hidden(make_settings: Callable[..., Settings]) -> None:
    """Each setting has one option name. Options that are not set keep the defaults of delta-rs."""
    settings = make_settings(
        lake_uri="s3://bucket/lake",
        aws_secret_access_key="s3cret",
        aws_session_token="t0ken",
        aws_region="eu-west-1",
        lake_options="AWS_REGION=eu-west-3, aws_server_side_encryption=aws:kms,key=a==",
    )
    options = build_storage_options(settings, {"endpoint": "http://localhost:9000"})
    assert options == {
        "aws_conditional_put": "etag",
        "aws_secret_access_key": "s3cret",
        "aws_session_token": "t0ken",
        "aws_region": "eu-west-3",
        "aws_server_side_encryption": "aws:kms",
        "key": "a==",
        "aws_endpoint_url": "http://localhost:9000",
        "allow_http": "true",
        "retry_timeout": "15s",
        "max_retries": "1000",
    }
    shown = repr(settings) + str(Lake.of(settings)) + settings.model_dump_json()
    assert "s3cret" not in shown
    assert "t0ken" not in shown
    assert "a==" not in shown
    gcs_settings = make_settings(
        lake_uri="gs://bucket/lake", aws_region="eu-west-1", lake_options="service_account=/k.json"
    )
    assert build_storage_options(gcs_settings).keys() == {"service_account", "retry_timeout", "max_retries"}
    assert build_storage_options(make_settings()) == {}
    for wrong in ({"lake_options": "s3cret"}, {"aws_endpoint_url": "https://me:s3cret@host"}):
        with pytest.raises(SettingError) as caught:
            load_settings(**wrong)
        assert "s3cret" not in str(caught.value)


def test_an_error_of_aws_becomes_one_line_without_secrets() -> None:
    """Error bodies of S3 repeat keys and tokens. The S3 server of these tests never sends such a body."""
    response = (
        "Generic S3 error\n  \x1b[31m↳\x1b[0m Error performing GET https://s3.eu-west-1.amazonaws.com/b in 1s - Server "
        "returned non-2xx status code\n  \x1b[31m↳\x1b[0m 400 Bad Request\n  \x1b[31m↳\x1b[0m <?xml version='1.0'?>"
        "<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message><Token-0>t0ken</Token-0>"
    )
    error = str(store_fault("s3://b/t", OSError(response)))
    assert error.startswith("Table s3://b/t failed: 400 Bad Request, ExpiredToken.")
    assert "AWS_SESSION_TOKEN" in error
    assert "t0ken" not in error
    redirect = response.replace("400 Bad Request", "301 Moved Permanently").replace("ExpiredToken", "PermanentRedirect")
    assert "AWS_REGION" in str(store_fault("s3://b/t", OSError(redirect)))


def test_the_dagster_resource_accepts_storage_options_of_dagster_deltalake(
    s3: ObjectStore, make_settings: Callable[..., Settings]
) -> None:
    from dagster_deltalake import S3Config

    from fraud_assets.resources import PlatformResource

    login = {"region": REGION, "access_key_id": ACCESS_KEY, "secret_access_key": SECRET_KEY}
    storage = S3Config(endpoint=s3.endpoint, **login)
    uri = f"s3://{BUCKET}/{uuid4().hex[:8]}"
    home = str(make_settings().home_path)
    platform = PlatformResource(overrides={"home": home, "lake_uri": uri}, storage=storage)
    land(platform.lake(), bodies(5))
    assert read_row_count(platform.lake().open(raw_transactions)) == 5
    unsafe_storage = S3Config(endpoint=s3.endpoint, allow_unsafe_rename=True, **login)
    unsafe = PlatformResource(overrides={"lake_uri": uri}, storage=unsafe_storage)
    with pytest.raises(SettingError, match="ALLOW_UNSAFE_RENAME"):
        unsafe.lake()


def test_a_demo_uses_a_separate_prefix(
    make_settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A demo never writes to the configured lake."""
    from fraud_assets.commands import demo

    make_settings()
    names = ("FRAUD_HOME", "FRAUD_LAKE_URI", "FRAUD_FILE_QUIET_SECONDS", "FRAUD_ALERT_BUDGET_PER_DAY",
             "KAFKA_BOOTSTRAP_SERVERS", "KAFKA_CLIENT_PROPERTIES", "MLFLOW_TRACKING_URI")  # fmt: skip
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("FRAUD_LAKE_URI", "s3://bank/lake")
    first = demo._prepare_settings(tmp_path / "one", "s3://bank/demos/", 100, simulated=True)
    assert first.lake.startswith("s3://bank/demos/2")
    monkeypatch.setenv("FRAUD_LAKE_URI", "s3://bank/lake")
    assert demo._prepare_settings(tmp_path / "two", None, 100, simulated=True).lake == str(tmp_path / "two" / "lake")
