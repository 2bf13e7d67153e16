"""Runs Apache Kafka in KRaft mode on 127.0.0.1, from the jars that Maven resolves for `apache-kafka.pom.xml`.

Tests, proofs, benchmarks and `fraud-assets broker --apache` use it. It needs Java 17 or newer, and Maven at the first
start.
"""

from __future__ import annotations

import base64
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from uuid import uuid4

from fraud_assets.errors import BrokerError, DiskError, JarsError
from fraud_assets.system.java import QUICK_START, find_java, resolve_jars, summarize_output
from fraud_assets.system.ports import find_free_ports, is_free

_PRODUCT = "Apache Kafka"
_FORMAT_SECONDS = 60
_UP_SECONDS = 60
_STOP_SECONDS = 15
_QUIET = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
_PLAIN, _CONTROLLER = "PLAINTEXT", "CONTROLLER"


def describe_obstacle() -> str | None:
    """Returns why Apache Kafka cannot run on this machine, in one line; None if it can. Resolves the jars once."""
    try:
        find_java(_PRODUCT)
        _jars()
    except (BrokerError, JarsError, DiskError) as error:
        return str(error)
    return None


@dataclass
class _Node:
    """A combined broker and controller: its files and, while it runs, its process."""

    number: int
    folder: Path
    ports: dict[str, int]
    process: subprocess.Popen[bytes] | None = None

    @property
    def properties(self) -> Path:
        return self.folder / "server.properties"

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    @property
    def is_formatted(self) -> bool:
        return (self.folder / "data" / "meta.properties").exists()


@dataclass
class Cluster:
    """A running cluster. Nodes are numbered from 1 and keep their data and ports when they are restarted.

    Attributes:
        folder: folder of the nodes' files; `node-1/server.log` is the log of the first node.
        brokers: number of nodes, running or not.
    """

    folder: Path
    brokers: int
    _nodes: dict[int, _Node] = field(repr=False)
    _command: list[str] = field(repr=False)

    @property
    def bootstrap(self) -> str:
        """`host:port,…` of the unencrypted listeners of all nodes."""
        return self.address(_PLAIN)

    def address(self, listener: str) -> str:
        """Returns `host:port,…` of a listener on all nodes."""
        return ",".join(f"127.0.0.1:{node.ports[listener]}" for node in self._nodes.values())

    def pid(self, node: int) -> int | None:
        """Returns the process id of a node; None if it does not run."""
        process = self._nodes[node].process
        return None if process is None or process.poll() is not None else process.pid

    def check(self) -> None:
        """Checks that all nodes run.

        Raises:
            BrokerError: a node does not run; with the last lines of its log.
        """
        for node in self._nodes.values():
            if self.pid(node.number) is None:
                raise BrokerError(f"Node {node.number} of Apache Kafka has ended. {_log_excerpt(node)}")

    def kill(self, *nodes: int) -> None:
        """Ends nodes by SIGKILL, as a power cut does; without arguments, all nodes."""
        for node in self._select(nodes):
            if node.process is not None:
                node.process.kill()
                node.process.wait()

    def stop(self, *nodes: int) -> None:
        """Ends nodes by SIGTERM, and after 15 s by SIGKILL; without arguments, all nodes."""
        running = [node.process for node in self._select(nodes) if node.process is not None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        deadline = monotonic() + _STOP_SECONDS
        for process in running:
            try:
                process.wait(max(deadline - monotonic(), 0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start(self, *nodes: int) -> None:
        """Starts the nodes that do not run, and waits until each answers; without arguments, all nodes.

        Raises:
            BrokerError: a node ended or did not answer within a minute; with the last lines of its log.
        """
        down = [node for node in self._select(nodes) if self.pid(node.number) is None]
        for node in down:
            with node.log.open("ab") as log:
                node.process = subprocess.Popen(
                    [*self._command, "kafka.Kafka", str(node.properties)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=node.folder,
                    # Ctrl-C must reach only the Python process, which then stops the nodes.
                    start_new_session=True,
                )
        deadline = monotonic() + _UP_SECONDS
        for node in down:
            self._wait_for(node, deadline)

    def _select(self, numbers: Sequence[int]) -> list[_Node]:
        return [self._nodes[number] for number in numbers or self._nodes]

    def _wait_for(self, node: _Node, deadline: float) -> None:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        # The client asks the node itself: other nodes may still list a node that was just killed.
        admin = AdminClient(
            {
                "bootstrap.servers": f"127.0.0.1:{node.ports[_PLAIN]}",
                "log_level": 0,
                "reconnect.backoff.ms": 20,
                "reconnect.backoff.max.ms": 100,
                "topic.metadata.refresh.fast.interval.ms": 50,
            }
        )
        while monotonic() < deadline:
            if self.pid(node.number) is None:
                raise BrokerError(f"Node {node.number} of Apache Kafka ended during startup. {_log_excerpt(node)}")
            try:
                if node.number in admin.list_topics(timeout=0.5).brokers:
                    return
            except KafkaException:
                continue
            sleep(0.02)
        raise BrokerError(
            f"Node {node.number} of Apache Kafka did not answer within {_UP_SECONDS} s. {_log_excerpt(node)}"
        )


@contextmanager
def apache_kafka(
    folder: Path,
    brokers: int = 1,
    *,
    port: int | None = None,
    listeners: Mapping[str, str] | None = None,
    scram: Mapping[str, str] | None = None,
    config: Mapping[str, object] | None = None,
    jvm: Sequence[str] = QUICK_START,
) -> Iterator[Cluster]:
    """Runs Apache Kafka until the block ends, on free ports of 127.0.0.1. The data in `folder` is kept and reused.

    Topics are not created on first use. With three brokers, topics have three replicas, two of which must be in sync.

    Args:
        folder: folder of data, configuration and logs.
        brokers: number of nodes, each a broker and a controller.
        port: port of the unencrypted listener of the first node; the default is a free port.
        listeners: security protocols of additional listeners by name (in capitals), such as `{"SASL": "SASL_SSL"}`.
        scram: passwords by user for SCRAM-SHA-256 and SCRAM-SHA-512; used only if the folder is new.
        config: additional settings of all nodes, as in `server.properties`; they override the others.
        jvm: options of the Java virtual machine.

    Yields:
        The running cluster.

    Raises:
        BrokerError: a node did not start; with the last lines of its log.
        JarsError: Java is missing, or the jars cannot be resolved.
        DiskError: the folder cannot be written.
    """
    extra = dict(listeners or {})
    command = [find_java(_PRODUCT), *jvm, _QUIET, "-cp", f"{_jars()}/*"]
    nodes = _create_nodes(folder, brokers, [_PLAIN, _CONTROLLER, *extra])
    if port is not None:
        _require_free(port)
        nodes[1].ports[_PLAIN] = port
    voters = ",".join(f"{node.number}@127.0.0.1:{node.ports[_CONTROLLER]}" for node in nodes.values())
    for node in nodes.values():
        _write_private(node.properties, _properties(node, brokers, voters, extra, config or {}))
    _format(nodes, command, folder.absolute() / "cluster.id", scram or {})
    cluster = Cluster(folder.absolute(), brokers, nodes, command)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def _create_nodes(folder: Path, brokers: int, listeners: Sequence[str]) -> dict[int, _Node]:
    """Creates the folders of the nodes and assigns a free port to each listener."""
    nodes: dict[int, _Node] = {}
    for number in range(1, brokers + 1):
        node_folder = folder.absolute() / f"node-{number}"
        try:
            node_folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiskError(f"{node_folder} cannot be created: {error.strerror}. Choose another folder.") from error
        used = {port for node in nodes.values() for port in node.ports.values()}
        nodes[number] = _Node(number, node_folder, find_free_ports(listeners, used))
    return nodes


def _properties(
    node: _Node, brokers: int, voters: str, extra: Mapping[str, str], config: Mapping[str, object]
) -> dict[str, object]:
    """Returns the `server.properties` of a node."""
    protocols = {_CONTROLLER: "PLAINTEXT", _PLAIN: "PLAINTEXT", **extra}
    addresses = {name: f"{name}://127.0.0.1:{port}" for name, port in node.ports.items()}
    copies, in_sync = min(3, brokers), 2 if brokers >= 3 else 1
    return {
        "process.roles": "broker,controller",
        "node.id": node.number,
        "controller.quorum.voters": voters,
        "listeners": ",".join(addresses.values()),
        "advertised.listeners": ",".join(address for name, address in addresses.items() if name != _CONTROLLER),
        "controller.listener.names": _CONTROLLER,
        "inter.broker.listener.name": _PLAIN,
        "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
        "log.dirs": node.folder / "data",
        "auto.create.topics.enable": "false",
        "num.partitions": 4,
        "default.replication.factor": copies,
        "min.insync.replicas": in_sync,
        "offsets.topic.num.partitions": 4,
        "offsets.topic.replication.factor": copies,
        "transaction.state.log.num.partitions": 4,
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": copies,
        "share.coordinator.state.topic.min.isr": in_sync,
        "group.initial.rebalance.delay.ms": 0,
        # A killed node can join again only after this timeout; the default is 9 s.
        "broker.session.timeout.ms": 3000,
        "broker.heartbeat.interval.ms": 500,
        # The default is half the heap, allocated at startup.
        "log.cleaner.dedupe.buffer.size": 8_388_608,
        **config,
    }


def _format(nodes: Mapping[int, _Node], command: list[str], id_file: Path, scram: Mapping[str, str]) -> None:
    """Formats the data folders that are new."""
    new = [node for node in nodes.values() if not node.is_formatted]
    if not new:
        return
    if not id_file.exists():
        id_file.write_text(base64.urlsafe_b64encode(uuid4().bytes).decode().rstrip("="))
    users = [
        f"{mechanism}=[name={user},password={password}]"
        for user, password in scram.items()
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
    ]
    arguments = ["format", f"--cluster-id={id_file.read_text()}", *(f"--add-scram={user}" for user in users)]
    running = [
        subprocess.Popen(
            [*command, "kafka.tools.StorageTool", *arguments, "--config", str(node.properties)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for node in new
    ]
    try:
        for node, process in zip(new, running, strict=True):
            output = process.communicate(timeout=_FORMAT_SECONDS)[0]
            if process.returncode:
                raise BrokerError(
                    f"{node.folder / 'data'} cannot be formatted for Apache Kafka: {summarize_output(output)}"
                )
    except subprocess.TimeoutExpired:
        raise BrokerError(f"Apache Kafka did not format its folders within {_FORMAT_SECONDS} s. Try again.") from None
    finally:
        for process in running:
            process.kill()
            process.wait()


def _write_private(path: Path, properties: Mapping[str, object]) -> None:
    """Writes a properties file that only its owner can read, because it may contain passwords."""
    lines = "".join(f"{key}={_escaped(value)}\n" for key, value in properties.items())
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(lines)


def _escaped(value: object) -> str:
    return str(value).replace("\\", "\\\\").replace("\n", "\\n")


def _log_excerpt(node: _Node) -> str:
    """Returns the last lines of a node's log for an error message."""
    return f"The log {node.log} ends with: {summarize_output(node.log.read_bytes())}"


def _require_free(port: int) -> None:
    if not is_free(port):
        raise BrokerError(f"Port {port} of 127.0.0.1 is in use. Choose another with --port, or free this one.")


def _jars() -> Path:
    return resolve_jars("fraud_assets.testing", "apache-kafka.pom.xml", _PRODUCT)
