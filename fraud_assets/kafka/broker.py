"""Finds the configured broker, and runs the embedded one: librdkafka's in-process cluster on 127.0.0.1.

The embedded broker serves Kafka's protocol to every process of this machine. It keeps about 5 MB per partition in
memory and drops older messages without an error; `kafka.loss_rules` and `kafka.embedded_backlog` detect that.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import uuid4

from fraud_assets.errors import BrokerError, convert_disk_error, is_temporary
from fraud_assets.kafka.connection import load_connection
from fraud_assets.settings import Settings
from fraud_assets.system.files import replaced_file

_ANSWER_SECONDS = 10.0
_CONNECT_SECONDS = 2.0


@dataclass(frozen=True)
class Broker:
    """The address of a broker.

    Attributes:
        bootstrap: `host:port,…`.
        embedded: Whether it is the embedded broker.
        topic_id: Id of all topics of an embedded broker, new after each start; None for an external broker, which has
            an id per topic.
        named_by: The setting that holds the address, for error messages.
    """

    bootstrap: str
    embedded: bool
    topic_id: str | None
    named_by: str = field(default="KAFKA_BOOTSTRAP_SERVERS", compare=False)

    @property
    def name(self) -> str:
        """The broker's name within a sentence of an error message."""
        return f"the embedded broker at {self.bootstrap}" if self.embedded else f"the broker at {self.bootstrap}"

    @property
    def title(self) -> str:
        """The broker's name at the start of a sentence."""
        return self.name[0].upper() + self.name[1:]


def find_broker(settings: Settings) -> Broker:
    """Returns the broker of KAFKA_BOOTSTRAP_SERVERS or KAFKA_CLIENT_PROPERTIES, else the embedded one of FRAUD_HOME.

    Raises:
        BrokerError: No broker is configured, or the embedded broker that broker.json names no longer runs.
        SettingError: The settings of the connection are invalid.
    """
    if uses_external_broker(settings):
        configured = load_connection(settings)
        return Broker(configured.bootstrap, False, None, configured.name_of("bootstrap.servers"))
    path = settings.broker_file
    try:
        entry = json.loads(path.read_text())
        broker = Broker(entry["bootstrap_servers"], embedded=True, topic_id=entry["topic_id"])
        pid, home = int(entry["pid"]), entry.get("home_inode")
    except FileNotFoundError:
        raise BrokerError(
            f"No broker is configured: KAFKA_BOOTSTRAP_SERVERS and KAFKA_CLIENT_PROPERTIES are not set, and {path} "
            "does not exist. "
            "Start `fraud-assets broker`, or set KAFKA_BOOTSTRAP_SERVERS to host:port."
        ) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        _raise_if_temporary(error)
        raise BrokerError(
            f"{path} cannot be read as the embedded broker's address ({type(error).__name__}). "
            "Remove it and restart `fraud-assets broker`."
        ) from None
    if home is not None and home != settings.home_path.stat().st_ino:
        raise BrokerError(
            f"{path} was copied together with FRAUD_HOME: the embedded broker at {broker.bootstrap} belongs to the "
            "original. Start `fraud-assets broker`, which replaces the file, or set KAFKA_BOOTSTRAP_SERVERS."
        )
    if not _is_alive(pid) or not _is_listening(broker.bootstrap):
        raise BrokerError(
            f"{path} is out of date: the embedded broker at {broker.bootstrap} (process {pid}) no longer runs. "
            "Restart `fraud-assets broker`, or set KAFKA_BOOTSTRAP_SERVERS to a running broker."
        )
    return broker


def uses_external_broker(settings: Settings) -> bool:
    """Returns whether the settings name an external broker; it need not be reachable."""
    return bool(settings.kafka_bootstrap_servers or settings.kafka_client_properties)


def is_broker_configured(settings: Settings) -> bool:
    """Returns whether the settings or broker.json name any broker; it need not be reachable."""
    return uses_external_broker(settings) or settings.broker_file.exists()


@contextmanager
def embedded_broker(settings: Settings) -> Iterator[Broker]:
    """Runs an embedded broker in this process, with its address in broker.json, until the block ends.

    Raises:
        BrokerError: An embedded broker already runs under this FRAUD_HOME, or the broker did not start.
    """
    from confluent_kafka import KafkaException, Producer

    path = settings.broker_file
    running = _find_running(settings)
    if running is not None:
        raise BrokerError(
            f"An embedded broker already runs at {running.bootstrap} ({path}). "
            "Use that broker, or set FRAUD_HOME to another folder."
        )
    try:
        # This producer never sends: it owns the cluster, which runs as long as the client exists.
        owner = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "embedded", "log_level": 0})
        node = next(iter(owner.list_topics(timeout=_ANSWER_SECONDS).brokers.values()))
    except (KafkaException, StopIteration) as error:
        raise BrokerError(f"The embedded broker did not start: {error}. Try again.") from error
    broker = Broker(f"{node.host}:{node.port}", embedded=True, topic_id=uuid4().hex)
    entry = {
        "bootstrap_servers": broker.bootstrap,
        "topic_id": broker.topic_id,
        "pid": os.getpid(),
        "started_at": datetime.now(UTC).isoformat(),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A copied folder has another inode; a moved or linked folder has the same one.
        entry["home_inode"] = path.parent.stat().st_ino
        with replaced_file(path) as part:
            part.write(json.dumps(entry).encode() + b"\n")
    except OSError as error:
        raise BrokerError(
            f"{path} cannot be written: {error.strerror}. Set FRAUD_HOME to a writable folder."
        ) from error
    try:
        yield broker
    finally:
        _remove_broker_file(settings, broker)
        # This stops the cluster. Another reference to the client would keep it running.
        del owner


def _find_running(settings: Settings) -> Broker | None:
    """Returns the running embedded broker of this FRAUD_HOME, or None if no broker answers."""
    if not settings.broker_file.exists():
        return None
    try:
        return find_broker(settings.model_copy(update={"kafka_bootstrap_servers": "", "kafka_client_properties": ""}))
    except BrokerError:
        return None


def _remove_broker_file(settings: Settings, broker: Broker) -> None:
    """Removes broker.json if it still names this broker."""
    try:
        entry = json.loads(settings.broker_file.read_text())
    except (OSError, ValueError):
        return
    if entry.get("topic_id") == broker.topic_id:
        settings.broker_file.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_listening(bootstrap: str) -> bool:
    """Returns whether a process listens at the first address."""
    host, _, port = bootstrap.partition(",")[0].rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS):
            return True
    except (OSError, ValueError) as error:
        _raise_if_temporary(error)
        return False


def _raise_if_temporary(error: Exception) -> None:
    """Raises the error if it is temporary, such as too many open files: then the broker is not the cause."""
    if isinstance(error, OSError) and is_temporary(error):
        raise BrokerError(str(convert_disk_error(error) or error)) from None
