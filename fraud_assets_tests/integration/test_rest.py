"""Producing through a Kafka REST API: each record is acknowledged or reported, and its bytes land unchanged."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
import trustme

from fraud_assets.core.schema import raw_transactions
from fraud_assets.engines.local.landing import land_topics
from fraud_assets.errors import BrokerError, SettingError
from fraud_assets.kafka import rest
from fraud_assets.kafka.broker import find_broker
from fraud_assets.kafka.producer import Message
from fraud_assets.kafka.rest import RestProducer
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings
from fraud_assets.testing.apache_kafka import Cluster
from fraud_assets_tests.support.commands import assert_one_sentence, run
from fraud_assets_tests.support.producing import produce
from fraud_assets_tests.support.rest_server import CLUSTER, KEY, SECRET, RestServer, rest_server

pytestmark = pytest.mark.xdist_group("apache")


@pytest.fixture
def server(apache: Cluster) -> Iterator[RestServer]:
    with rest_server(apache.bootstrap) as running:
        yield running


def rest_settings(settings: Settings, server: RestServer, **overrides: Any) -> Settings:
    options = {
        "confluent_api": server.url,
        "confluent_api_key": f"{KEY}:{SECRET}",
        "confluent_cluster_id": CLUSTER,
        **overrides,
    }
    return type(settings)(_env_file=None, **{**settings.model_dump(), **options})


def landed_messages(settings: Settings) -> list[tuple[bytes | None, bytes]]:
    """Return the key and value of every landed transaction, by partition and offset."""
    return [(key, value) for key, value, _ in landed_with_partitions(settings)]


def landed_with_partitions(settings: Settings) -> list[tuple[bytes | None, bytes, int]]:
    """Return the key, value and partition of every landed transaction, by partition and offset."""
    lake = Lake.of(settings)
    land_topics(lake, settings)
    rows = lake.open(raw_transactions).to_pyarrow_table(columns=["partition", "offset", "key", "value"])
    rows = rows.sort_by([("partition", "ascending"), ("offset", "ascending")]).to_pylist()
    return [(row["key"], row["value"], row["partition"]) for row in rows]


def test_keys_and_values_land_unchanged(apache_settings: Settings, server: RestServer) -> None:
    settings = rest_settings(
        apache_settings, server, confluent_api_key=base64.b64encode(f"{KEY}:{SECRET}".encode()).decode()
    )
    topic = settings.transactions_topic
    sent = [(b"k", b'{"a": 1}'), (None, bytes(range(256))), ("ü".encode(), b""), (b"", b"[1,2]")]
    with RestProducer(settings) as producer:
        for key, value in sent:
            producer.send(Message(topic, key, value))
    assert producer.delivered == len(sent)
    assert sorted(landed_messages(apache_settings), key=repr) == sorted(sent, key=repr)


def test_many_messages_need_few_requests_and_stay_in_order(apache_settings: Settings, server: RestServer) -> None:
    settings = rest_settings(apache_settings, server)
    with RestProducer(settings) as producer:
        for number in range(2_500):
            producer.send(Message(settings.transactions_topic, b"one customer", b"%d" % number))
    assert producer.delivered == 2_500
    assert len(server.requests) < 25
    assert [value for _, value in landed_messages(apache_settings)] == [b"%d" % number for number in range(2_500)]


def test_the_rest_api_and_kafka_use_the_same_partition_for_a_key(apache_settings: Settings, server: RestServer) -> None:
    settings = rest_settings(apache_settings, server)
    messages = [Message(settings.transactions_topic, b"customer %d" % number, b"") for number in range(20)]
    with RestProducer(settings) as producer:
        for message in messages:
            producer.send(message)
    produce(messages, find_broker(apache_settings), apache_settings)
    partitions = {(key, partition) for key, _, partition in landed_with_partitions(apache_settings)}
    assert len(partitions) == 20


def test_throttled_messages_are_sent_again(apache_settings: Settings, server: RestServer) -> None:
    settings = rest_settings(apache_settings, server)
    server.answers.extend([(429, {"Retry-After": "7"}, ""), (503, {}, "<html>busy</html>")])
    server.codes = {1: 429, 3: 50002}
    pauses: list[float] = []
    with RestProducer(settings, sleep=pauses.append) as producer:
        producer._sent = float("inf")  # all in one request
        for number in range(5):
            producer.send(Message(settings.transactions_topic, None, b"%d" % number))
    assert producer.delivered == 5
    assert pauses[0] == 7
    assert sorted(value for _, value in landed_messages(apache_settings)) == [b"%d" % number for number in range(5)]


def test_a_broken_connection_loses_no_message(apache_settings: Settings, server: RestServer) -> None:
    settings = rest_settings(apache_settings, server)
    server.cut_after = 3
    with RestProducer(settings, sleep=lambda seconds: None) as producer:
        producer._sent = float("inf")
        for number in range(5):
            producer.send(Message(settings.transactions_topic, None, b"%d" % number))
    assert producer.delivered == 5
    assert {value for _, value in landed_messages(apache_settings)} == {b"%d" % number for number in range(5)}


def test_a_request_that_is_too_large_is_split(apache_settings: Settings, server: RestServer) -> None:
    settings = rest_settings(apache_settings, server)
    server.largest = 1_000
    with RestProducer(settings) as producer:
        producer._sent = float("inf")
        for number in range(40):
            producer.send(Message(settings.transactions_topic, b"k", b"%d" % number))
    assert [value for _, value in landed_messages(apache_settings)] == [b"%d" % number for number in range(40)]
    with pytest.raises(BrokerError, match=r"does not accept a message of 2,000 bytes"):
        send_one(settings, value=bytes(2_000))


def test_the_producer_gives_up_and_reports_the_undelivered_messages(
    apache_settings: Settings, server: RestServer
) -> None:
    settings = rest_settings(apache_settings, server)
    server.answers.extend([(429, {}, "")] * 100)
    pauses: list[float] = []
    producer = RestProducer(settings, sleep=pauses.append)
    with pytest.raises(BrokerError, match=r"accepts no messages \(HTTP 429\)\. Undelivered .*: 1\."):
        producer.send(Message(settings.transactions_topic, None, b"1"))
    assert sum(pauses) <= rest.PATIENCE_SECONDS


def send_one(settings: Settings, topic: str = "", value: bytes = b"1") -> None:
    with RestProducer(settings, sleep=lambda seconds: None) as producer:
        producer.send(Message(topic or settings.transactions_topic, None, value))


REFUSALS = {
    401: "API_KEY.*key:secret",
    403: "write to topic",
    404: "CLUSTER_ID 'lkc-0815'",
    413: "1 bytes",
    422: "error 422",
}


@pytest.mark.parametrize("code", REFUSALS)
def test_a_refusal_is_reported_without_the_secret(code: int, apache_settings: Settings, server: RestServer) -> None:
    settings = rest_settings(apache_settings, server)
    words = REFUSALS[code]
    server.answers.append((code, {}, json.dumps({"error_code": code * 100 + 1, "message": f"no, {SECRET}"})))
    with pytest.raises(BrokerError, match=words) as refused:
        send_one(settings)
    server.codes = {0: code * 100 + 1}
    with pytest.raises(BrokerError, match=words):
        send_one(settings)
    assert SECRET not in str(refused.value)


def test_a_wrong_key_topic_cluster_or_answer_is_reported(apache_settings: Settings, server: RestServer) -> None:
    with pytest.raises(BrokerError, match="does not accept API_KEY"):
        send_one(rest_settings(apache_settings, server, confluent_api_key=f"{KEY}:wrong-4711"))
    with pytest.raises(BrokerError, match="has no topic 'no-such'"):
        send_one(rest_settings(apache_settings, server), topic="no-such")
    with pytest.raises(BrokerError, match="CLUSTER_ID 'lkc-other'"):
        send_one(rest_settings(apache_settings, server, confluent_cluster_id="lkc-other"))
    for answer in ((200, {}, "<html>Sign in</html>"), (302, {"Location": "/login"}, "")):
        server.answers.append(answer)
        with pytest.raises(BrokerError, match="does not answer like a Kafka REST API"):
            send_one(rest_settings(apache_settings, server))


INVALID_OPTIONS: dict[str, tuple[dict[str, str], str]] = {
    "no cluster": ({"confluent_cluster_id": ""}, "CLUSTER_ID is empty"),
    "no address": ({"confluent_api": "pkc.example.org"}, "CONFLUENT_API is 'pkc.example.org'"),
    "key in clear": ({"confluent_api": "http://pkc.example.org"}, "API_KEY would be sent unencrypted"),
    "key in the address": ({"confluent_api": "https://a:secret-4711@pkc.example.org"}, "move them to API_KEY"),
    "no key and secret": ({"confluent_api_key": "secret-4711"}, "API_KEY is invalid"),
}


@pytest.mark.parametrize("mistake", INVALID_OPTIONS)
def test_invalid_settings_are_refused_without_the_secret(mistake: str, settings: Settings) -> None:
    options, words = INVALID_OPTIONS[mistake]
    unavailable = RestServer("https://127.0.0.1:1")
    with pytest.raises(SettingError, match=words) as refused:
        RestProducer(rest_settings(settings, unavailable, **options))
    assert "secret-4711" not in str(refused.value)


def test_an_unknown_certificate_authority_is_reported_with_the_fix(
    apache_settings: Settings, apache: Cluster, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with rest_server(apache.bootstrap, tmp_path / "server.pem") as server:
        settings = rest_settings(apache_settings, server)
        with pytest.raises(BrokerError, match="SSL_CERT_FILE"):
            send_one(settings)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        send_one(settings)
    assert len(landed_messages(apache_settings)) == 1


def test_simulate_and_replay_produce_through_the_rest_api(
    apache_settings: Settings, server: RestServer, tmp_path
) -> None:
    environment = {
        "CONFLUENT_API": server.url,
        "API_KEY": f"{KEY}:{SECRET}",
        "CLUSTER_ID": CLUSTER,
        "FRAUD_TRANSACTIONS_TOPIC": apache_settings.transactions_topic,
        "FRAUD_LABELS_TOPIC": apache_settings.labels_topic,
    }
    simulated = run(tmp_path, "simulate", "--count", "200", "--json", **environment)
    assert simulated.returncode == 0, simulated.stderr
    assert json.loads(simulated.stdout)["transactions"] == 200
    line = '{"transaction_id":1,"tx_datetime":"2026-01-01T00:00:00","customer_id":1,"terminal_id":1,"tx_amount":1}\n'
    (tmp_path / "day.jsonl").write_text(line)
    environment["KAFKA_BOOTSTRAP_SERVERS"] = "127.0.0.1:1"
    replayed = run(tmp_path, "replay", str(tmp_path / "day.jsonl"), "--via", "rest", **environment)
    assert replayed.returncode == 0, replayed.stderr
    assert len(landed_messages(apache_settings)) == 201
    assert SECRET not in simulated.stdout + simulated.stderr + replayed.stdout + replayed.stderr
    # Without `--via`, a configured broker takes precedence over the REST API.
    assert_one_sentence(run(tmp_path, "simulate", "--count", "10", **environment), "KAFKA_BOOTSTRAP_SERVERS")
