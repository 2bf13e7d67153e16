"""Which broker is meant, and the embedded one: librdkafka's in-process cluster on 127.0.0.1.

The embedded broker speaks the real protocol to every process of this machine, but it keeps about 5 MB a
partition in memory and forgets the oldest beyond that without a word. `kafka.consumer` notices.
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

from fraud_assets.errors import BrokerError, disk_fault, is_temporary
from fraud_assets.kafka.connection import connection
from fraud_assets.settings import Settings
from fraud_assets.system.files import replaced_file

_ANSWER_SECONDS = 10.0
_CONNECT_SECONDS = 2.0


@dataclass(frozen=True)
class Broker:
    """Where the broker is.

    Attributes:
        topic_id: of an embedded broker, names its life; a real one has an id per topic.
        named_by: where its address is set, for error messages.
    """

    bootstrap: str
    embedded: bool
    topic_id: str | None
    named_by: str = field(default="KAFKA_BOOTSTRAP_SERVERS", compare=False)

    @property
    def name(self) -> str:
        """How error messages name it: the setting or the program, and the address."""
        return f"the embedded broker at {self.bootstrap}" if self.embedded else f"the broker at {self.bootstrap}"


def find_broker(settings: Settings) -> Broker:
    """The broker of KAFKA_BOOTSTRAP_SERVERS or KAFKA_CLIENT_PROPERTIES, else the embedded one under FRAUD_HOME.

    Raises:
        BrokerError: no broker is named, or the embedded broker that broker.json names is gone.
        SettingError: how to reach it cannot be made out of the settings.
    """
    if uses_external_broker(settings):
        reached = connection(settings)
        return Broker(reached.bootstrap, False, None, reached.name_of("bootstrap.servers"))
    path = settings.broker_file
    try:
        entry = json.loads(path.read_text())
        broker = Broker(entry["bootstrap_servers"], embedded=True, topic_id=entry["topic_id"])
        pid, home = int(entry["pid"]), entry.get("home_inode")
    except FileNotFoundError:
        raise BrokerError(
            f"No broker: KAFKA_BOOTSTRAP_SERVERS is not set, nor KAFKA_CLIENT_PROPERTIES, and {path} does not exist. "
            "Start `fraud-assets broker`, or set KAFKA_BOOTSTRAP_SERVERS to host:port."
        ) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        _raise_if_passing(error)
        raise BrokerError(
            f"{path} cannot be read as the embedded broker's address ({type(error).__name__}). "
            "Remove it and start `fraud-assets broker` again."
        ) from None
    if home is not None and home != settings.home_path.stat().st_ino:
        raise BrokerError(
            f"{path} came here with a copied FRAUD_HOME: the embedded broker at {broker.bootstrap} belongs to the "
            "original. Start `fraud-assets broker`, which replaces it, or set KAFKA_BOOTSTRAP_SERVERS."
        )
    if not _is_alive(pid) or not _accepts(broker.bootstrap):
        raise BrokerError(
            f"{path} is left over: the embedded broker at {broker.bootstrap} (process {pid}) no longer runs. "
            "Start `fraud-assets broker` again, or set KAFKA_BOOTSTRAP_SERVERS to a broker that runs."
        )
    return broker


def uses_external_broker(settings: Settings) -> bool:
    """Whether the settings name a broker other than the embedded one, reachable or not."""
    return bool(settings.kafka_bootstrap_servers or settings.kafka_client_properties)


def broker_is_configured(settings: Settings) -> bool:
    """Whether any broker is named at all, reachable or not."""
    return uses_external_broker(settings) or settings.broker_file.exists()


@contextmanager
def embedded_broker(settings: Settings) -> Iterator[Broker]:
    """Runs an embedded broker in this process and names it in broker.json until the block ends.

    Raises:
        BrokerError: an embedded broker already runs under this FRAUD_HOME, or none could be started.
    """
    from confluent_kafka import KafkaException, Producer

    path = settings.broker_file
    running = _running(settings)
    if running is not None:
        raise BrokerError(
            f"An embedded broker already runs at {running.bootstrap} ({path}). "
            "Use that one, or set FRAUD_HOME to another folder."
        )
    try:
        # The producer is never used as one: the cluster lives as long as this client does.
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
        # A copy of the folder has another inode; a folder that was moved or that a link names has the same.
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
        _withdraw(settings, broker)
        # Ends the cluster; other references to the client would keep it alive.
        del owner


def _running(settings: Settings) -> Broker | None:
    """The embedded broker that answers under this FRAUD_HOME, if one does."""
    if not settings.broker_file.exists():
        return None
    try:
        return find_broker(settings.model_copy(update={"kafka_bootstrap_servers": "", "kafka_client_properties": ""}))
    except BrokerError:
        return None


def _withdraw(settings: Settings, broker: Broker) -> None:
    """Removes broker.json where it still names this broker."""
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


def _accepts(bootstrap: str) -> bool:
    """Whether something listens at the address."""
    host, _, port = bootstrap.partition(",")[0].rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS):
            return True
    except (OSError, ValueError) as error:
        _raise_if_passing(error)
        return False


def _raise_if_passing(error: Exception) -> None:
    """Too many open files say nothing about the broker."""
    if isinstance(error, OSError) and is_temporary(error):
        raise BrokerError(str(disk_fault(error) or error)) from None
