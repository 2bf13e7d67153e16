"""Checks broker, topics, lag, landers and schema registry."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

from fraud_assets.core.schema import Table, fraud_labels, raw_transactions
from fraud_assets.doctor.finding import Finding, fail, fail_from_error, ok, skip, warn
from fraud_assets.errors import FraudAssetsError, LakeError
from fraud_assets.kafka.broker import Broker, find_broker, is_broker_configured
from fraud_assets.kafka.client import name_topic_setting
from fraud_assets.lake.positions import NOTHING, SourcePartition, committed_offset
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings, environment_name

if TYPE_CHECKING:
    from confluent_kafka import Consumer

_HEALTH_SECONDS = 2.0
_BEHIND_MESSAGES = 100_000


def check_broker(settings: Settings) -> list[Finding]:
    """Checks the broker and both topics; counts the messages that have not landed."""
    topics = ((settings.labels_topic, fraud_labels), (settings.transactions_topic, raw_transactions))
    unchecked = [skip(f"topic {topic}", "the broker was not reached") for topic, _ in topics]
    if not is_broker_configured(settings):
        fix = "Start `fraud-assets broker`, or set KAFKA_BOOTSTRAP_SERVERS. Without a broker, only dropped files land."
        return [warn("broker", "none is configured", fix), *unchecked]
    try:
        broker = find_broker(settings)
        with closing(_open_consumer(broker, settings)) as consumer:
            metadata = _request(lambda: consumer.list_topics(timeout=settings.kafka_timeout_seconds), broker)
            kind = "embedded" if broker.embedded else f"{len(metadata.brokers)} brokers"
            found = [ok("broker", f"{broker.bootstrap}, {kind}, {_security_protocol(broker, settings)}")]
            for topic, table in topics:
                entry = metadata.topics.get(topic)
                partitions = sorted(entry.partitions) if entry is not None and entry.error is None else []
                found += _check_topic(topic, table, partitions, consumer, broker, settings)
            return found
    except FraudAssetsError as error:
        return [fail_from_error("broker", error), *unchecked]


def check_landers(settings: Settings) -> list[Finding]:
    """Checks the running `fraud-assets land` processes by the health that they report."""
    from fraud_assets.ingest.service.presence import find_running_landers

    running = find_running_landers(settings)
    if not running:
        if not is_broker_configured(settings):
            return [ok("landers", "none runs, and none is needed without a broker")]
        return [warn("landers", "none runs, so nothing lands", "Start `fraud-assets land`.")]
    found = []
    for process, address in running.items():
        state, reason, lands_messages = _read_health(address)
        text = f"process {process}{f' at {address}' if address else ''} {state}"
        if lands_messages and reason:
            found.append(warn("landers", f"{text}: {reason}", "Messages land. Correct the drop folder."))
        elif reason:
            found.append(fail("landers", f"{text}: {reason}", "Remove that cause. Landing then continues by itself."))
        else:
            found.append(ok("landers", text))
    return found


def check_schema_registry(settings: Settings) -> list[Finding]:
    """Checks the schema registry if a format needs it."""
    if (settings.transactions_format, settings.labels_format) == ("json", "json"):
        return []
    from fraud_assets.kafka.schemas import get_registry_client

    url = settings.schema_registry_url
    try:
        subjects = get_registry_client(settings).get_subjects()
    # The client raises its own errors and those of its HTTP and TLS libraries.
    except Exception as error:  # noqa: BLE001
        cause = " ".join(str(error).split())[:200]
        fix = "Check SCHEMA_REGISTRY_URL, its credentials and SCHEMA_REGISTRY_CA_LOCATION."
        return [fail("schema registry", f"{url} does not answer ({type(error).__name__}: {cause})", fix)]
    return [ok("schema registry", f"{url}, {len(subjects)} subjects")]


def _check_topic(
    topic: str, table: Table, partitions: list[int], consumer: Consumer, broker: Broker, settings: Settings
) -> list[Finding]:
    from fraud_assets.kafka.client import find_topic_id
    from fraud_assets.kafka.loss_rules import find_first_readable_offset
    from fraud_assets.lake.known_topics import is_known

    name = f"topic {topic}"
    if not partitions:
        if broker.embedded:
            return [ok(name, "does not exist yet; the embedded broker creates it on first use")]
        fix = f"Create it, or set {name_topic_setting(topic, settings)} to the right topic."
        return [fail(name, f"does not exist at {broker.name}, or may not be read", fix)]
    topic_id = find_topic_id(broker, topic, settings)
    try:
        lake = Lake.of(settings)
        handle = lake.open(table) if lake.exists(table) else None
    except LakeError as error:
        return [skip(name, f"{len(partitions)} partitions; the lake cannot be read: {error}")]
    sources = [SourcePartition(topic, topic_id, partition) for partition in partitions]
    marks = {partition: _watermarks(consumer, topic, partition, broker, settings) for partition in partitions}
    low, high = ({partition: mark[side] for partition, mark in marks.items()} for side in (0, 1))
    landed = {source: NOTHING if handle is None else committed_offset(handle, source) for source in sources}
    if not broker.embedded and (handle is None or not is_known(handle, topic, sources)):
        # The first landing of the topic will record these log starts, so earlier messages do not count as lost.
        landed = {source: low[source.partition] - 1 for source in sources}
    found = find_first_readable_offset(landed, low, high, settings.accept_lost)
    if found.lost:
        lost = ", ".join(
            f"{low[source.partition] - last - 1} of partition {source.partition}" for source, last in found.lost.items()
        )
        fix = (
            "Restore them from a copy into the drop folder and raise the topic's retention, or set "
            f"{environment_name('accept_lost')} to continue without them."
        )
        return [fail(name, f"the broker deleted messages before they landed: {lost}", fix)]
    if found.ahead:
        beyond = ", ".join(str(source.partition) for source in found.ahead)
        text = f"the lake holds messages that the broker has lost: partitions {beyond}"
        fix = "Find out what happened to the broker. If you recreate the topic, it lands from its start."
        return [fail(name, text, fix)]
    waiting = sum(max(0, high[source.partition] - first) for source, first in found.first.items())
    text = f"{len(partitions)} partitions, {waiting:,} messages to land"
    if waiting > _BEHIND_MESSAGES:
        return [warn(name, text, "Start `fraud-assets land`, or more such processes, which share the partitions.")]
    return [ok(name, text)]


def _open_consumer(broker: Broker, settings: Settings) -> Consumer:
    from confluent_kafka import Consumer

    from fraud_assets.kafka.client import build_client_config, create_admin_client
    from fraud_assets.kafka.connection import EMBEDDED, load_connection

    if not broker.embedded:
        # The admin client reports why the broker refuses a connection; a consumer would only time out.
        create_admin_client(broker, settings)
    config = {**build_client_config(broker, settings), "group.id": "fraud-assets-doctor", "enable.auto.commit": False}
    # A check must not create a topic.
    config["allow.auto.create.topics"] = False
    return (EMBEDDED if broker.embedded else load_connection(settings)).client(Consumer, config)


def _watermarks(consumer: Consumer, topic: str, partition: int, broker: Broker, settings: Settings) -> tuple[int, int]:
    from confluent_kafka import TopicPartition

    topic_partition = TopicPartition(topic, partition)
    offsets: tuple[int, int] = _request(
        lambda: consumer.get_watermark_offsets(topic_partition, timeout=settings.kafka_timeout_seconds), broker
    )
    return offsets


def _request(request: Callable[[], Any], broker: Broker) -> Any:
    from confluent_kafka import KafkaException

    from fraud_assets.kafka.client import unreachable_error

    try:
        answer = request()
    except KafkaException as error:
        raise unreachable_error(broker, error.args[0].str()) from None
    if answer is None:
        raise unreachable_error(broker, "timed out")
    return answer


def _security_protocol(broker: Broker, settings: Settings) -> str:
    from fraud_assets.kafka.connection import load_connection

    return "PLAINTEXT" if broker.embedded else load_connection(settings).config.get("security.protocol", "PLAINTEXT")


def _read_health(address: str) -> tuple[str, str, bool]:
    """Returns a lander's state, its problem if there is one, and whether it lands messages.

    A lander that serves no HTTP counts as running without a problem.
    """
    if not address.startswith("http"):
        return "runs", "", True
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=_HEALTH_SECONDS) as answer:  # noqa: S310
            health = json.load(answer)
    except urllib.error.HTTPError as error:
        health = json.load(error)
    except (OSError, ValueError) as error:
        return "runs", f"{address}/health does not answer ({error})", False
    age = health.get("oldest_unlanded_seconds", 0)
    status = health.get("status")
    return f"is {status}, oldest message not landed {age:g} s old", health.get("reason", ""), status != "failing"
