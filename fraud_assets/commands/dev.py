"""`fraud-assets dev`: runs the whole platform on this machine with live traffic, until Ctrl-C."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from fraud_assets.errors import BrokerError, FraudAssetsError
from fraud_assets.settings import Settings, load_settings

_BROKER_SECONDS = 30.0
_END_SECONDS = 10.0
_WORKSPACE = Path("workspace.yaml")


@click.command("dev", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--port", type=click.IntRange(1, 65_535), default=3000, show_default=True, help="Port of the web UI on 127.0.0.1."
)
@click.option(
    "--history-days",
    type=click.IntRange(min=1),
    default=45,
    show_default=True,
    help="Days of simulated history to drop as a file at the first start.",
)
@click.option("--no-traffic", is_flag=True, help="Do not simulate payments; use the messages of your own producer.")
def command(port: int, history_days: int, no_traffic: bool) -> None:
    """Run broker, simulated traffic, landing, web UI and daemon on this machine, until Ctrl-C ends all of them.

    If KAFKA_BOOTSTRAP_SERVERS or KAFKA_CLIENT_PROPERTIES is set, that broker is used and none is started. The command
    creates FRAUD_HOME and sets DAGSTER_HOME in the .env file of the current folder, so that plain `dagster` commands
    share the history of the web UI. Metrics and health of landing are at FRAUD_LAND_HTTP.

    \b
    Example: fraud-assets dev
             fraud-assets dev --port 3100 --no-traffic
    """
    from honcho.manager import Manager

    from fraud_assets.operations.setup_home import set_up_home

    settings = load_settings()
    _refuse_second_platform(settings, port)
    for sentence in set_up_home(settings, Path(".env")):
        click.echo(sentence, err=True)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "DAGSTER_HOME": str(settings.dagster_path)}
    with _run_broker(settings, environment):
        click.echo(f"Web UI: http://127.0.0.1:{port} (in about 20 s). Press Ctrl-C to end all processes.", err=True)
        manager = Manager()
        for name, arguments in _list_processes(port, history_days, no_traffic=no_traffic).items():
            manager.add_process(name, f"exec {shlex.join([sys.executable, *arguments])}", env=environment)
        manager.loop()
    # honcho returns 130 after Ctrl-C and 143 after SIGTERM, which end the command as intended.
    sys.exit(0 if manager.returncode in (0, 130, 143) else 1)


def _refuse_second_platform(settings: Settings, port: int) -> None:
    """Raises an error if the platform of this home already runs, or another program uses the port.

    Raises:
        FraudAssetsError: Nothing was started.
    """
    from fraud_assets.ingest.service.presence import is_lander_running
    from fraud_assets.system.ports import is_free

    if is_lander_running(settings):
        raise FraudAssetsError(
            f"A lander already runs for {settings.home_path}, so `fraud-assets dev` or its services may be running. "
            "End them first, or set FRAUD_HOME to another folder."
        )
    if not is_free(port):
        raise FraudAssetsError(f"Port {port} of 127.0.0.1 is in use. Choose another one with --port, or free this one.")


def _list_processes(port: int, history_days: int, *, no_traffic: bool) -> dict[str, list[str]]:
    """Returns the arguments of Python for each process, by the name that its output gets."""
    program = ["-m", "fraud_assets.cli"]
    definitions = ["-w", str(_WORKSPACE)] if _WORKSPACE.exists() else ["-m", "fraud_assets.definitions"]
    traffic = ["simulate", "--live", "--via", "kafka", "--history-days", str(history_days), "--drop-history"]
    dagster = ["dev", *definitions, "-h", "127.0.0.1", "-p", str(port), "--log-level", "warning"]
    return {
        **({} if no_traffic else {"traffic": [*program, *traffic]}),
        "landing": [*program, "land"],
        "dagster": ["-W", "ignore", "-m", "dagster", *dagster],
    }


@contextmanager
def _run_broker(settings: Settings, environment: dict[str, str]) -> Iterator[None]:
    """Runs the embedded broker in a process of its own, unless another broker is configured.

    Raises:
        BrokerError: the broker did not start in time.
    """
    from fraud_assets.kafka.broker import find_broker, uses_external_broker

    if uses_external_broker(settings):
        click.echo(f"Broker: {find_broker(settings).bootstrap}", err=True)
        yield
        return
    command = [sys.executable, "-m", "fraud_assets.cli", "broker"]
    # A new session, so that Ctrl-C first ends the processes that use the broker.
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        _wait_for_broker(settings, process)
        yield
    finally:
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_for_broker(settings: Settings, process: subprocess.Popen[bytes]) -> None:
    from fraud_assets.kafka.broker import find_broker

    deadline = time.monotonic() + _BROKER_SECONDS
    while True:
        try:
            find_broker(settings)
        except BrokerError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise BrokerError("The embedded broker did not start. Run `fraud-assets broker` to see why.") from error
            time.sleep(0.2)
        else:
            return
