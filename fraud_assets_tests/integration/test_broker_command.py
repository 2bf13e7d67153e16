"""`fraud-assets broker`: Apache Kafka keeps its messages, and no broker starts if another is configured."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fraud_assets.errors import BrokerError
from fraud_assets.kafka.broker import Broker, find_broker
from fraud_assets.kafka.consumer import TopicReader
from fraud_assets.kafka.producer import Message
from fraud_assets.settings import Settings
from fraud_assets_tests.support.commands import assert_one_sentence, run
from fraud_assets_tests.support.producing import produce


@contextmanager
def broker_command(home: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run `fraud-assets broker …` until the block ends. Ctrl-C must then end it with exit code 0."""
    home.mkdir(exist_ok=True)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("KAFKA_", "FRAUD_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "fraud_assets.cli", "broker", *arguments],
        cwd=home,
        env={**inherited, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


def wait_for_line(words: str, process: subprocess.Popen[str]) -> str:
    """Return the first line of output that contains the words."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return line.strip()
    raise AssertionError("".join(lines))


@pytest.mark.usefixtures("kafka_jars")
def test_apache_kafka_keeps_its_messages_across_restarts(
    tmp_path: Path, make_settings: Callable[..., Settings], free_port: int
) -> None:
    arguments = ("--apache", "--port", str(free_port))
    with broker_command(tmp_path, *arguments, FRAUD_HOME=str(tmp_path)) as process:
        line = wait_for_line("export KAFKA_BOOTSTRAP_SERVERS=", process)
        settings = make_settings(kafka_bootstrap_servers=line.partition("=")[2])
        produce([Message(settings.transactions_topic, None, b"1")], find_broker(settings), settings)
        second = run(tmp_path / "other", "broker", *arguments)
        assert_one_sentence(second, str(free_port), "--port")
    with broker_command(tmp_path, *arguments, FRAUD_HOME=str(tmp_path)) as process:
        wait_for_line("export KAFKA_BOOTSTRAP_SERVERS=", process)
        for topic, messages in {settings.transactions_topic: 1, settings.labels_topic: 0}.items():
            with TopicReader(topic, settings) as reader:
                assert sum(end + 1 for end in reader.end_offsets().values()) == messages


@pytest.mark.parametrize("name", ["KAFKA_BOOTSTRAP_SERVERS", "KAFKA_CLIENT_PROPERTIES"])
def test_no_broker_starts_if_dotenv_names_one(name: str, tmp_path: Path) -> None:
    properties = tmp_path / "client.properties"
    properties.write_text("bootstrap.servers=kafka.example.org:9092\n")
    value = str(properties) if name == "KAFKA_CLIENT_PROPERTIES" else "kafka.example.org:9092"
    (tmp_path / ".env").write_text(f"{name}={value}\nFRAUD_HOME={tmp_path}\n")
    with broker_command(tmp_path, "--if-none-configured") as process:
        assert "kafka.example.org:9092" in wait_for_line("so none is started here", process)
    assert not (tmp_path / "broker.json").exists()


def test_the_embedded_broker_starts_if_no_broker_is_configured(tmp_path: Path) -> None:
    with broker_command(tmp_path, "--if-none-configured", FRAUD_HOME=str(tmp_path)) as process:
        wait_for_line("Broker at 127.0.0.1", process)
        assert (tmp_path / "broker.json").exists()


def test_a_copied_home_does_not_use_the_broker_of_the_original(
    settings: Settings, broker: Broker, make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    (tmp_path / "copy").mkdir()
    shutil.copy(settings.broker_file, tmp_path / "copy")
    with pytest.raises(
        BrokerError, match=r"copied together with FRAUD_HOME.*belongs to the original.*fraud-assets broker"
    ):
        find_broker(make_settings(home=tmp_path / "copy"))
    (tmp_path / "link").symlink_to(settings.home_path)
    assert find_broker(make_settings(home=tmp_path / "link")) == find_broker(settings) == broker


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
