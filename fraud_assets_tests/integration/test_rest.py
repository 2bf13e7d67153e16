"""Producing through a Kafka REST API: each record is acknowledged or an error, and its bytes land unchanged."""

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


def by_rest(settings: Settings, server: RestServer, **overrides: Any) -> Settings:
    options = {
        "confluent_api": server.url,
        "confluent_api_key": f"{KEY}:{SECRET}",
        "confluent_cluster_id": CLUSTER,
        **overrides,
    }
    return type(settings)(_env_file=None, **{**settings.model_dump(), **options})


def landed(settings: Settings) -> list[tuple[bytes | None, bytes]]:
    """Key and value of every landed transaction, in order of the offsets within a partition."""
    return [(key, value) for key, value, _ in landed_places(settings)]


def landed_places(settings: Settings) -> list[tuple[bytes | None, bytes, int]]:
    """The same with their partitions."""
    lake = Lake.of(settings)
    land_topics(lake, settings)
    rows = lake.open(raw_transactions).to_pyarrow_table(columns=["partition", "offset", "key", "value"])
    rows = rows.sort_by([("partition", "ascending"), ("offset", "ascending")]).to_pylist()
    return [(row["key"], row["value"], row["partition"]) for row in rows]


def test_bytes_land_as_they_were(apache_settings: Settings, server: RestServer) -> None:
    settings = by_rest(apache_settings, server, confluent_api_key=base64.b64encode(f"{KEY}:{SECRET}".encode()).decode())
    topic = settings.transactions_topic
    sent = [(b"k", b'{"a": 1}'), (None, bytes(range(256))), ("ü".encode(), b""), (b"", b"[1,2]")]
    with RestProducer(settings) as producer:
        for key, value in sent:
            producer.send(Message(topic, key, value))
    assert producer.delivered == len(sent)
    assert sorted(landed(apache_settings), key=repr) == sorted(sent, key=repr)


def test_many_go_in_few_requests_and_in_order(apache_settings: Settings, server: RestServer) -> None:
    settings = by_rest(apache_settings, server)
    with RestProducer(settings) as producer:
        for number in range(2_500):
            producer.send(Message(settings.transactions_topic, b"one customer", b"%d" % number))
    assert producer.delivered == 2_500
    assert len(server.requests) < 25
    assert [value for _, value in landed(apache_settings)] == [b"%d" % number for number in range(2_500)]


def test_a_key_has_one_partition_whichever_way(apache_settings: Settings, server: RestServer) -> None:
    settings = by_rest(apache_settings, server)
    messages = [Message(settings.transactions_topic, b"customer %d" % number, b"") for number in range(20)]
    with RestProducer(settings) as producer:
        for message in messages:
            producer.send(message)
    produce(messages, find_broker(apache_settings), apache_settings)
    places = {(key, partition) for key, _, partition in landed_places(apache_settings)}
    assert len(places) == 20


def test_what_is_put_off_is_sent_again(apache_settings: Settings, server: RestServer) -> None:
    settings = by_rest(apache_settings, server)
    server.answers.extend([(429, {"Retry-After": "7"}, ""), (503, {}, "<html>busy</html>")])
    server.codes = {1: 429, 3: 50002}
    pauses: list[float] = []
    with RestProducer(settings, sleep=pauses.append) as producer:
        producer._sent = float("inf")  # all in one request
        for number in range(5):
            producer.send(Message(settings.transactions_topic, None, b"%d" % number))
    assert producer.delivered == 5
    assert pauses[0] == 7
    assert sorted(value for _, value in landed(apache_settings)) == [b"%d" % number for number in range(5)]


def test_a_connection_that_breaks_loses_nothing(apache_settings: Settings, server: RestServer) -> None:
    settings = by_rest(apache_settings, server)
    server.cut_after = 3
    with RestProducer(settings, sleep=lambda seconds: None) as producer:
        producer._sent = float("inf")
        for number in range(5):
            producer.send(Message(settings.transactions_topic, None, b"%d" % number))
    assert producer.delivered == 5
    assert {value for _, value in landed(apache_settings)} == {b"%d" % number for number in range(5)}


def test_a_request_that_is_too_large_goes_in_parts(apache_settings: Settings, server: RestServer) -> None:
    settings = by_rest(apache_settings, server)
    server.largest = 1_000
    with RestProducer(settings) as producer:
        producer._sent = float("inf")
        for number in range(40):
            producer.send(Message(settings.transactions_topic, b"k", b"%d" % number))
    assert [value for _, value in landed(apache_settings)] == [b"%d" % number for number in range(40)]
    with pytest.raises(BrokerError, match=r"does not accept a message of 2,000 bytes"):
        send_one(settings, value=bytes(2_000))


def test_without_end_it_gives_up_and_says_how_many(apache_settings: Settings, server: RestServer) -> None:
    settings = by_rest(apache_settings, server)
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
def test_a_refusal_is_one_sentence(code: int, apache_settings: Settings, server: RestServer) -> None:
    settings = by_rest(apache_settings, server)
    words = REFUSALS[code]
    server.answers.append((code, {}, json.dumps({"error_code": code * 100 + 1, "message": f"no, {SECRET}"})))
    with pytest.raises(BrokerError, match=words) as whole:
        send_one(settings)
    server.codes = {0: code * 100 + 1}
    with pytest.raises(BrokerError, match=words):
        send_one(settings)
    assert SECRET not in str(whole.value)


def test_the_wrong_key_topic_cluster_and_page(apache_settings: Settings, server: RestServer) -> None:
    with pytest.raises(BrokerError, match="does not accept API_KEY"):
        send_one(by_rest(apache_settings, server, confluent_api_key=f"{KEY}:wrong-4711"))
    with pytest.raises(BrokerError, match="has no topic 'no-such'"):
        send_one(by_rest(apache_settings, server), topic="no-such")
    with pytest.raises(BrokerError, match="CLUSTER_ID 'lkc-other'"):
        send_one(by_rest(apache_settings, server, confluent_cluster_id="lkc-other"))
    for answer in ((200, {}, "<html>Sign in</html>"), (302, {"Location": "/login"}, "")):
        server.answers.append(answer)
        with pytest.raises(BrokerError, match="does not answer like a Kafka REST API"):
            send_one(by_rest(apache_settings, server))


WRONG: dict[str, tuple[dict[str, str], str]] = {
    "no cluster": ({"confluent_cluster_id": ""}, "CLUSTER_ID is empty"),
    "no address": ({"confluent_api": "pkc.example.org"}, "CONFLUENT_API is 'pkc.example.org'"),
    "key in clear": ({"confluent_api": "http://pkc.example.org"}, "API_KEY would be sent unencrypted"),
    "key in the address": ({"confluent_api": "https://a:secret-4711@pkc.example.org"}, "move them to API_KEY"),
    "no key and secret": ({"confluent_api_key": "secret-4711"}, "API_KEY is invalid"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_settings_that_cannot_work(mistake: str, settings: Settings) -> None:
    options, words = WRONG[mistake]
    nowhere = RestServer("https://127.0.0.1:1")
    with pytest.raises(SettingError, match=words) as refused:
        RestProducer(by_rest(settings, nowhere, **options))
    assert "secret-4711" not in str(refused.value)


def test_tls_of_an_authority_that_is_not_known(
    apache_settings: Settings, apache: Cluster, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with rest_server(apache.bootstrap, tmp_path / "server.pem") as server:
        settings = by_rest(apache_settings, server)
        with pytest.raises(BrokerError, match="SSL_CERT_FILE"):
            send_one(settings)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        send_one(settings)
    assert len(landed(apache_settings)) == 1


def test_simulate_and_replay_by_rest(apache_settings: Settings, server: RestServer, tmp_path) -> None:
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
    assert len(landed(apache_settings)) == 201
    assert SECRET not in simulated.stdout + simulated.stderr + replayed.stdout + replayed.stderr
    # The other way is what a broker that is named means.
    assert_one_sentence(run(tmp_path, "simulate", "--count", "10", **environment), "KAFKA_BOOTSTRAP_SERVERS")
