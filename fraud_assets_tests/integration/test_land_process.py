"""`fraud-assets land` and `fraud-assets broker` run as processes and survive signals, kills and outages."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable

import dagster as dg
from deltalake import DeltaTable

from fraud_assets.core.schema import raw_transactions
from fraud_assets.engines.local.landing import land_topics
from fraud_assets.ingest.landing import land_once
from fraud_assets.ingest.service.presence import find_running_landers, is_lander_running, register_lander
from fraud_assets.kafka.broker import Broker, embedded_broker
from fraud_assets.lake.log import read_row_count
from fraud_assets.lake.tables import Lake, open_dataset
from fraud_assets.operations.setup_home import prepare_home
from fraud_assets.settings import Settings
from fraud_assets_tests.support.logged import logged
from fraud_assets_tests.support.starting import Start, sender
from fraud_assets_tests.support.waiting import until

Send = Callable[..., None]


def table_version(lake: Lake) -> int:
    return DeltaTable(lake.uri(raw_transactions)).version() if lake.exists(raw_transactions) else -1


def row_count(lake: Lake) -> int:
    return read_row_count(lake.open(raw_transactions)) if lake.exists(raw_transactions) else 0


def test_the_lander_lands_topics_and_files_waits_for_brokers_and_stops_on_sigterm(
    settings: Settings, lake: Lake, start: Start
) -> None:
    lander = start("land")
    until(lambda: is_lander_running(settings))
    # The drop folder lands without a broker.
    until(settings.incoming.exists)
    part = settings.incoming / "a.jsonl.part"
    part.write_text('{"n": 1}\n')
    part.rename(part.with_suffix(""))
    until(lambda: row_count(lake) == 1)
    for expected in (11, 21):

        def landed(expected: int = expected) -> bool:
            return row_count(lake) == expected

        with embedded_broker(settings) as broker:
            sender(broker)("transactions", [b"%d" % n for n in range(10)])
            until(landed)
    lander.send_signal(signal.SIGTERM)
    _, lines = lander.communicate(timeout=20)
    assert lander.returncode == 0
    assert not is_lander_running(settings)
    assert lines.count("No broker is configured:") >= 1
    assert "Landing of topics works again." in lines
    assert "transactions" in lines
    assert "Stopped" in lines
    assert "Traceback" not in lines
    assert len(lines.splitlines()) < 20


def test_a_kill_between_commits_loses_and_repeats_no_message(
    settings: Settings, lake: Lake, send: Send, start: Start
) -> None:
    send("transactions", [b"%d" % n for n in range(5000)])
    lander = start("land", FRAUD_LAND_BATCH_ROWS="50")
    until(lambda: table_version(lake) >= 3)
    lander.kill()
    lander.wait()
    landed = row_count(lake)
    assert 0 < landed < 5000
    assert not is_lander_running(settings)
    assert land_topics(lake, settings)["raw_transactions"].rows == 5000 - landed
    values = open_dataset(lake.open(raw_transactions)).to_table()["value"].to_pylist()
    assert sorted(map(int, values)) == list(range(5000))


def test_the_broker_process_serves_other_processes_and_stops_cleanly(
    settings: Settings, lake: Lake, start: Start
) -> None:
    broker = start("broker")
    until(settings.broker_file.exists)
    once = start("land", "--once", "--json")
    out, errors = once.communicate(timeout=30)
    assert once.returncode == 0, errors
    report = json.loads(out)
    assert report["raw_transactions"]["rows"] == 0
    assert report["fraud_labels"]["quarantined_labels"] == 0
    broker.send_signal(signal.SIGINT)
    out, errors = broker.communicate(timeout=20)
    assert broker.returncode == 0
    assert errors == ""
    assert "Broker at 127.0.0.1:" in out
    assert "fraud-assets land" in out
    assert not settings.broker_file.exists()


def test_land_once_without_a_broker_reports_one_sentence(start: Start) -> None:
    once = start("land", "--once")
    _, errors = once.communicate(timeout=30)
    assert once.returncode == 1
    assert errors.startswith("Error: No broker is configured:")
    assert len(errors.splitlines()) == 1


def test_a_missing_topic_of_the_embedded_broker_is_reported_once(
    settings: Settings, lake: Lake, broker: Broker, send: Send
) -> None:
    misspelled = settings.model_copy(update={"transactions_topic": "transactoins"})
    send(settings.labels_topic, [b"{}"])
    with logged() as lines:
        land_once(lake, misspelled)
    assert lines[0].startswith("Topic 'transactoins' did not exist at the embedded broker")
    assert "FRAUD_TRANSACTIONS_TOPIC" in lines[0]
    with logged() as lines:
        land_once(lake, misspelled)
    assert not any("did not exist" in line for line in lines)


def test_a_lander_is_found_only_while_it_runs(settings: Settings) -> None:
    assert not is_lander_running(settings)
    with register_lander(settings, "http://127.0.0.1:1"):
        assert find_running_landers(settings) == {os.getpid(): "http://127.0.0.1:1"}
    assert not is_lander_running(settings)
    # A killed lander leaves such a file.
    left = settings.home_path / "landers" / "4194304.lander"
    left.write_text("http://127.0.0.1:1\n")
    assert find_running_landers(settings) == {}
    assert not left.exists()


def test_landed_rows_are_reported_to_dagster(start: Start, settings: Settings, lake: Lake, send: Send) -> None:
    """The lander reports materializations without a run. Their rows add up to the landed rows."""
    prepare_home(settings)
    bodies = [json.dumps({"transaction_id": number}).encode() for number in range(30)]
    send(settings.transactions_topic, bodies)
    (settings.incoming / "loop.csv").symlink_to("loop.csv")
    lander = start("land", DAGSTER_HOME=str(settings.home_path / "dagster"))
    until(lambda: row_count(lake) == 30 and (settings.failed / "loop.csv").is_symlink())
    lander.send_signal(signal.SIGTERM)
    assert lander.wait(30) == 0
    with dg.DagsterInstance.from_config(str(settings.home_path / "dagster")) as instance:
        records = instance.fetch_materializations(dg.AssetKey("raw_transactions"), limit=100).records
    materializations = [record.asset_materialization for record in records]
    assert sum(event.metadata["rows_added"].value for event in materializations if event) == 30
    assert any(
        "loop.csv" in str(event.metadata["files_failed"].value)
        for event in materializations
        if event and "files_failed" in event.metadata
    )
