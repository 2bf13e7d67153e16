"""Replay converts the columns of any file to messages, sends labels in event time and loses no message."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from fraud_assets.commands import replay as replay_command
from fraud_assets.commands import simulate as simulate_command
from fraud_assets.core.schema import fraud_labels, raw_transactions
from fraud_assets.engines.local.landing import land_topics
from fraud_assets.errors import FraudAssetsError, SettingError
from fraud_assets.settings import Settings
from fraud_assets.simulator.event_order import EventOrder, convert_flags
from fraud_assets.simulator.generator import simulate
from fraud_assets.simulator.replay import open_source, replay_messages
from fraud_assets_tests.support.producing import produce

END = datetime(2026, 8, 7, 14, 3, tzinfo=UTC)
SPARKOV = {
    "transaction_id": "trans_num",
    "customer_id": "cc_num",
    "terminal_id": "merchant",
    "tx_amount": "amt",
    "tx_datetime": "trans_date_trans_time",
}


def sparkov_table() -> pa.Table:
    return pa.table(
        {
            "trans_date_trans_time": pa.array(
                [datetime(2019, 1, 1, 0, 0, 18), datetime(2019, 1, 1, 0, 0, 44)], pa.timestamp("us")
            ),
            "cc_num": pa.array([4_992_346_398_065_154_184, 60_416_207_185], pa.int64()),
            "merchant": ["fraud_Heller, Gutmann and Zieme", 'fraud_"Lind-Buckridge"'],
            "amt": [4.97, 107.23],
            "trans_num": ["0b242abb623afc578575680df30655b9", "1f76529f8574734946361c461b024d99"],
            "is_fraud": [0, 1],
        }
    )


def write_file(table: pa.Table, path: Path) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        path.write_text("".join(json.dumps(row, default=str) + "\n" for row in table.to_pylist()))
    return path


def replay_bodies(paths, settings, mapping=None, limit=None, now=END):
    """Return the bodies of the transactions, the bodies of the labels, and the event order."""
    order = EventOrder(settings, now=now)
    messages = list(replay_messages([open_source(path, settings, mapping) for path in paths], order, limit))
    by_topic = [
        [json.loads(message.value) for message in messages if message.topic == topic]
        for topic in (settings.transactions_topic, settings.labels_topic)
    ]
    return (*by_topic, order)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_a_mapping_reads_a_file_with_other_column_names(tmp_path, settings, suffix):
    path = write_file(sparkov_table(), tmp_path / f"file{suffix}")
    transactions, labels, _ = replay_bodies([path], settings, SPARKOV)
    assert [str(body["customer_id"]) for body in transactions] == ["4992346398065154184", "60416207185"]
    assert [body["terminal_id"] for body in transactions] == sparkov_table()["merchant"].to_pylist()
    assert [body["tx_amount"] for body in transactions] == [4.97, 107.23]
    assert [datetime.fromisoformat(body["tx_datetime"]).second for body in transactions] == [18, 44]
    assert [set(body) for body in transactions] == [
        {"transaction_id", "tx_datetime", "customer_id", "terminal_id", "tx_amount"}
    ] * 2
    assert labels == [
        {
            "transaction_id": "1f76529f8574734946361c461b024d99",
            "is_fraud": True,
            "labelled_at": "2019-01-08T00:00:44.000000Z",
        }
    ]


def test_columns_match_in_any_case_and_by_payload_name(tmp_path, settings):
    handbook_table = pa.table(
        {
            "TRANSACTION_ID": pa.array([7], pa.int32()),
            "TX_DATETIME": pa.array([datetime(2018, 4, 1, 0, 0, 31)], pa.timestamp("us")),
            "CUSTOMER_ID": pa.array([596], pa.int32()),
            "TERMINAL_ID": pa.array([3156], pa.int32()),
            "Amt": [57.16],
            "TX_FRAUD": pa.array([1], pa.int8()),
            "TX_FRAUD_SCENARIO": pa.array([2], pa.int8()),
        }
    )
    mapped = settings.model_copy(update={"field_mapping": {"tx_amount": "amt"}})
    transactions, labels, _ = replay_bodies([write_file(handbook_table, tmp_path / "book.parquet")], mapped)
    assert transactions == [
        {
            "transaction_id": 7,
            "tx_datetime": "2018-04-01T00:00:31.000000Z",
            "customer_id": 596,
            "terminal_id": 3156,
            "amt": 57.16,
        }
    ]
    assert labels[0]["transaction_id"] == 7


def test_integer_ids_that_pandas_stored_as_floats_are_integers(tmp_path, settings):
    table = sparkov_table().set_column(1, "cc_num", pa.array([12.0, None]))
    transactions, _, _ = replay_bodies([write_file(table, tmp_path / "floats.parquet")], settings, SPARKOV)
    assert [body["customer_id"] for body in transactions] == [12, None]


def test_labels_are_sent_in_event_time(tmp_path, settings):
    rows = simulate(5_000, seed=1, end=END)
    path = write_file(rows, tmp_path / "simulated.parquet")
    due = [time + timedelta(days=7) for time in rows.filter(rows["is_fraud"])["tx_datetime"].to_pylist()]
    order = EventOrder(settings, now=END)
    labels, latest = [], END - timedelta(days=99)
    for message in replay_messages([open_source(path, settings)], order):
        body = json.loads(message.value)
        if message.topic == settings.labels_topic:
            labels.append(datetime.fromisoformat(body["labelled_at"]))
        else:
            time = datetime.fromisoformat(body["tx_datetime"])
            assert time >= latest, "transactions keep their order"
            assert len(labels) == sum(label <= time for label in due), "exactly the labels of its past came before it"
            latest = time
    assert labels == sorted(label for label in due if label <= END)
    assert (order.labels, order.labels_not_due) == (len(labels), len(due) - len(labels))
    assert order.labels_not_due > 0


def test_label_times_of_a_file_are_kept_and_a_file_may_hold_only_labels(tmp_path, settings):
    table = sparkov_table().append_column("labelled_at", pa.array(["2019-01-02T00:00:00Z", None]))
    transactions, labels, _ = replay_bodies([write_file(table, tmp_path / "a.csv")], settings, SPARKOV)
    assert len(transactions) == 2
    assert labels == [
        {
            "transaction_id": "0b242abb623afc578575680df30655b9",
            "is_fraud": False,
            "labelled_at": "2019-01-02T00:00:00.000000Z",
        }
    ]
    labels_only = pa.table({"transaction_id": ["a"], "is_fraud": [True], "labelled_at": ["2019-01-02T00:00:00Z"]})
    transactions, labels, order = replay_bodies([write_file(labels_only, tmp_path / "labels.jsonl")], settings)
    assert (transactions, len(labels), order.labels) == ([], 1, 1)


def test_broken_lines_are_sent_unchanged(tmp_path, settings):
    time = '"tx_datetime": "2026-01-01T00:00:00Z"'
    good = f'{{"transaction_id": 1, {time}, "customer_id": 2, "terminal_id": 3, "tx_amount": 4}}'
    broken = ["nonsense", "[1]", good.replace("4}", "true}"), good.replace("4}", "NaN}"), '{"transaction_id": 5}']
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join([good, "", *broken]))
    order = EventOrder(settings, now=END)
    values = [message.value for message in replay_messages([open_source(path, settings)], order)]
    assert json.loads(values[0])["transaction_id"] == "1"
    assert values[1:] == [line.encode() for line in broken]


def test_the_limit_counts_transactions(tmp_path, settings):
    path = write_file(simulate(50_000, seed=1, end=END), tmp_path / "many.parquet")
    transactions, _, order = replay_bodies([path], settings, limit=21_000)
    assert len(transactions) == order.transactions == 21_000


def test_a_file_that_cannot_be_replayed_is_refused_with_the_reason(tmp_path, settings):
    path = write_file(sparkov_table(), tmp_path / "file.parquet")
    with pytest.raises(SettingError, match=r"no column for transaction_id.*It has trans_date.*--map"):
        open_source(path, settings)
    with pytest.raises(SettingError, match="no column nothing"):
        open_source(path, settings, {"customer_id": "nothing"})
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(FraudAssetsError, match=r"broken\.parquet cannot be read"):
        open_source(tmp_path / "broken.parquet", settings)
    with pytest.raises(FraudAssetsError, match="no known format"):
        open_source(tmp_path / "file.xlsx", settings)


def test_a_replay_that_exceeds_the_capacity_of_the_broker_loses_no_message(tmp_path, settings, lake, broker):
    rows = simulate(70_000, seed=2, end=END)
    padded = pc.binary_join_element_wise(rows["terminal_id"], "x" * 300, "-")
    path = write_file(rows.set_column(3, "terminal_id", padded), tmp_path / "large.parquet")
    order = EventOrder(settings, now=END + timedelta(days=30))
    waits = 0

    def land() -> None:
        nonlocal waits
        waits += 1
        land_topics(lake, settings)

    sent = produce(replay_messages([open_source(path, settings)], order), broker, settings, on_wait=land)
    land()
    assert sent == 70_000 + order.labels
    landed = lake.open(raw_transactions).to_pyarrow_dataset().to_table(columns=["value"])["value"].to_pylist()
    assert sum(map(len, landed)) > 25_000_000
    assert waits > 2, "the producer had to wait for the lander"
    assert len(landed) == 70_000
    assert {json.loads(value)["transaction_id"] for value in landed} == set(rows["transaction_id"].to_pylist())
    assert lake.open(fraud_labels).to_pyarrow_dataset().count_rows() == order.labels == pc.sum(rows["is_fraud"]).as_py()


def test_the_commands_write_files_and_produce_messages(tmp_path, settings, lake, broker, monkeypatch):
    monkeypatch.setenv("FRAUD_HOME", str(settings.home_path))
    run = CliRunner().invoke
    file = tmp_path / "made.parquet"
    simulated = run(simulate_command.command, ["--count", "300", "--seed", "3", "--out", str(file), "--json"])
    assert json.loads(simulated.stdout.splitlines()[-1])["transactions"] == 300
    replayed = run(replay_command.command, [str(file), "--limit", "200", "--json"])
    assert json.loads(replayed.stdout.splitlines()[-1])["transactions"] == 200
    produced = run(simulate_command.command, ["--count", "400", "--bad", "13", "--json"])
    summary = json.loads(produced.stdout.splitlines()[-1])
    assert (summary["transactions"], summary["bad"]) == (400, 13)
    land_topics(lake, settings)
    assert lake.open(raw_transactions).to_pyarrow_dataset().count_rows() == 200 + 400 + 13
    assert run(replay_command.command, [str(file), "--map", "nonsense"]).exit_code == 2
    assert run(simulate_command.command, ["--live", "--count", "5"]).exit_code == 2


def test_replay_reads_values_like_the_drop_folder(settings: Settings, tmp_path: Path) -> None:
    """The files hold missing values, labels with a fraction, bytes, INT96 times after 2262 and nested fields."""
    header = "transaction_id,tx_datetime,customer_id,terminal_id,tx_amount"
    csv = tmp_path / "a.csv"
    csv.write_text(f'{header}\n1,2026-01-01T00:00:00Z,NULL,t,1\n2,2026-01-01T00:00:00Z,"NULL",t,1\n')
    lines = tmp_path / "b.jsonl"
    after = {"id": "n", "who": "c"}
    row = {"after": after, "tx_datetime": "2026-01-01T00:00:00Z", "terminal_id": "t", "tx_amount": 1}
    label_time = "2026-01-02T00:00:00Z"
    lines.write_text(
        json.dumps({**row, "is_fraud": 1.0, "labelled_at": label_time})
        + "\n"
        + json.dumps({**row, "after": {"id": "m", "who": "c"}, "is_fraud": 0.0, "labelled_at": label_time})
    )
    parquet = tmp_path / "c.parquet"
    labels = {
        "transaction_id": pa.array([b"Zo\xc3\xab"]),
        "is_fraud": [0.5],
        "labelled_at": pa.array([datetime(9999, 12, 31, tzinfo=UTC)], pa.timestamp("us", "UTC")),
    }
    pq.write_table(pa.table(labels), parquet, use_deprecated_int96_timestamps=True)
    mapped = settings.model_copy(update={"field_mapping": {"transaction_id": "after.id", "customer_id": "after.who"}})
    found = {}
    for path, file_settings in ((csv, settings), (lines, mapped), (parquet, settings)):
        messages = list(replay_messages([open_source(path, file_settings)], EventOrder(file_settings, now=END)))
        found[path.name] = [(message.topic, json.loads(message.value)) for message in messages]
    assert [body["customer_id"] for _, body in found["a.csv"]] == [None, "NULL"]
    line_bodies = [body for _, body in found["b.jsonl"]]
    assert [body.get("is_fraud") for body in line_bodies] == [None, None, True, False]
    assert [body["after.id"] for body in line_bodies] == ["n", "m", "n", "m"]
    ((_, label),) = found["c.parquet"]
    assert label == {"transaction_id": "Zoë", "is_fraud": 0.5, "labelled_at": "9999-12-31T00:00:00.000000Z"}
    assert convert_flags(pa.array([1.0, 0.0, 0.5])).to_pylist() == [True, False, None]
