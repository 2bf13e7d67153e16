"""Broker, topics, lag, landers, schema registry."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

from fraud_assets.core.schema import Table, fraud_labels, raw_transactions
from fraud_assets.doctor.finding import Finding, fail, ok, refused, skip, warn
from fraud_assets.errors import FraudAssetsError, LakeError
from fraud_assets.kafka.broker import Broker, broker_is_configured, find_broker
from fraud_assets.lake.positions import NOTHING, SourcePartition, committed_offset
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings, environment_name

if TYPE_CHECKING:
    from confluent_kafka import Consumer

_HEALTH_SECONDS = 2.0
_BEHIND_MESSAGES = 100_000


def check_broker(settings: Settings) -> list[Finding]:
    """Broker, both topics, and what of them has not landed."""
    topics = ((settings.labels_topic, fraud_labels), (settings.transactions_topic, raw_transactions))
    unchecked = [skip(f"topic {topic}", "the broker was not reached") for topic, _ in topics]
    if not broker_is_configured(settings):
        fix = "Start `fraud-assets broker`, or set KAFKA_BOOTSTRAP_SERVERS; without, only dropped files land."
        return [warn("broker", "none is named", fix), *unchecked]
    try:
        broker = find_broker(settings)
        with closing(_consumer(broker, settings)) as consumer:
            metadata = _asked(lambda: consumer.list_topics(timeout=settings.kafka_timeout_seconds), broker)
            kind = "embedded" if broker.embedded else f"{len(metadata.brokers)} brokers"
            found = [ok("broker", f"{broker.bootstrap}, {kind}, {_protocol(broker, settings)}")]
            for topic, table in topics:
                entry = metadata.topics.get(topic)
                partitions = sorted(entry.partitions) if entry is not None and entry.error is None else []
                found += _topic(topic, table, partitions, consumer, broker, settings)
            return found
    except FraudAssetsError as error:
        return [refused("broker", error), *unchecked]


def check_landers(settings: Settings) -> list[Finding]:
    """The `fraud-assets land` processes, and how they say they are."""
    from fraud_assets.ingest.service.presence import running_landers

    running = running_landers(settings)
    if not running:
        if not broker_is_configured(settings):
            return [ok("landers", "none runs, and none is needed without a broker")]
        return [warn("landers", "none runs, so nothing lands by itself", "Start `fraud-assets land`.")]
    found = []
    for process, address in running.items():
        state, reason, recovered = _health(address)
        text = f"process {process}{f' at {address}' if address else ''} {state}"
        if recovered and reason:
            found.append(warn("landers", f"{text}: {reason}", "Messages land; correct the drop folder."))
        elif reason:
            found.append(fail("landers", f"{text}: {reason}", "Remove that cause; it goes on by itself."))
        else:
            found.append(ok("landers", text))
    return found


def check_schema_registry(settings: Settings) -> list[Finding]:
    """The schema registry, where a format needs one."""
    if (settings.transactions_format, settings.labels_format) == ("json", "json"):
        return []
    from fraud_assets.kafka.schemas import registry_client

    url = settings.schema_registry_url
    try:
        subjects = registry_client(settings).get_subjects()
    # Its client raises its own errors, those of HTTP and those of certificates.
    except Exception as error:  # noqa: BLE001
        cause = " ".join(str(error).split())[:200]
        fix = "Check SCHEMA_REGISTRY_URL, its credentials and SCHEMA_REGISTRY_CA_LOCATION."
        return [fail("schema registry", f"{url} does not answer ({type(error).__name__}: {cause})", fix)]
    return [ok("schema registry", f"{url}, {len(subjects)} subjects")]


def _topic(
    topic: str, table: Table, partitions: list[int], consumer: Consumer, broker: Broker, settings: Settings
) -> list[Finding]:
    from fraud_assets.kafka.client import find_topic_id, topic_setting
    from fraud_assets.kafka.loss_rules import first_readable_offset
    from fraud_assets.lake.known_topics import is_known

    name = f"topic {topic}"
    if not partitions:
        if broker.embedded:
            return [ok(name, "not there yet; the embedded broker makes it on first use")]
        fix = f"Create it, or set {topic_setting(topic, settings)} to the topic that is meant."
        return [fail(name, f"does not exist at {broker.name}, or may not be read", fix)]
    topic_id = find_topic_id(broker, topic, settings)
    try:
        lake = Lake.of(settings)
        handle = lake.open(table) if lake.exists(table) else None
    except LakeError as error:
        return [skip(name, f"{len(partitions)} partitions; the lake cannot be read: {error}")]
    streams = [SourcePartition(topic, topic_id, partition) for partition in partitions]
    marks = {partition: _ends(consumer, topic, partition, broker, settings) for partition in partitions}
    low, high = ({partition: mark[side] for partition, mark in marks.items()} for side in (0, 1))
    landed = {stream: NOTHING if handle is None else committed_offset(handle, stream) for stream in streams}
    if not broker.embedded and (handle is None or not is_known(handle, topic, streams)):
        # Landing will record these log starts at its first sight of the topic.
        landed = {stream: low[stream.partition] - 1 for stream in streams}
    found = first_readable_offset(landed, low, high, settings.accept_lost)
    if found.lost:
        lost = ", ".join(
            f"{low[stream.partition] - last - 1} of partition {stream.partition}" for stream, last in found.lost.items()
        )
        fix = (
            "Bring them back from another copy into the drop folder and raise the topic's retention; "
            f"{environment_name('accept_lost')} goes on without them."
        )
        return [fail(name, f"messages are gone that had not landed: {lost}", fix)]
    if found.ahead:
        beyond = ", ".join(str(stream.partition) for stream in found.ahead)
        text = f"the lake holds messages that the broker has lost: partitions {beyond}"
        return [fail(name, text, "Find out what happened to the broker; a topic recreated lands from its start.")]
    waiting = sum(max(0, high[stream.partition] - first) for stream, first in found.first.items())
    text = f"{len(partitions)} partitions, {waiting:,} messages to land"
    if waiting > _BEHIND_MESSAGES:
        return [warn(name, text, "Start `fraud-assets land`, or more of them: they share the partitions.")]
    return [ok(name, text)]


def _consumer(broker: Broker, settings: Settings) -> Consumer:
    from confluent_kafka import Consumer

    from fraud_assets.kafka.client import admin_client, client_config
    from fraud_assets.kafka.connection import EMBEDDED, connection

    if not broker.embedded:
        # It listens for the broker's refusal, which a consumer would only time out on.
        admin_client(broker, settings)
    config = {**client_config(broker, settings), "group.id": "fraud-assets-doctor", "enable.auto.commit": False}
    # Looking must not make a topic.
    config["allow.auto.create.topics"] = False
    return (EMBEDDED if broker.embedded else connection(settings)).client(Consumer, config)


def _ends(consumer: Consumer, topic: str, partition: int, broker: Broker, settings: Settings) -> tuple[int, int]:
    from confluent_kafka import TopicPartition

    place = TopicPartition(topic, partition)
    ends: tuple[int, int] = _asked(
        lambda: consumer.get_watermark_offsets(place, timeout=settings.kafka_timeout_seconds), broker
    )
    return ends


def _asked(question: Callable[[], Any], broker: Broker) -> Any:
    from confluent_kafka import KafkaException

    from fraud_assets.kafka.client import unreachable_error

    try:
        answer = question()
    except KafkaException as error:
        raise unreachable_error(broker, error.args[0].str()) from None
    if answer is None:
        raise unreachable_error(broker, "timed out")
    return answer


def _protocol(broker: Broker, settings: Settings) -> str:
    from fraud_assets.kafka.connection import connection

    return "PLAINTEXT" if broker.embedded else connection(settings).config.get("security.protocol", "PLAINTEXT")


def _health(address: str) -> tuple[str, str, bool]:
    """How a lander says it is, what is wrong, and whether messages land; it need not serve its health at all."""
    if not address.startswith("http"):
        return "runs", "", True
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=_HEALTH_SECONDS) as answer:  # noqa: S310
            health = json.load(answer)
    except urllib.error.HTTPError as error:
        health = json.load(error)
    except (OSError, ValueError) as error:
        return "runs", f"{address}/health does not answer ({error})", False
    waits = health.get("oldest_unlanded_seconds", 0)
    status = health.get("status")
    return f"is {status}, oldest message not landed {waits:g} s old", health.get("reason", ""), status != "failing"
