"""`fraud-assets broker`: a broker in the foreground, embedded or Apache Kafka."""

from __future__ import annotations

import threading

import click

from fraud_assets.settings import Settings, load_settings

PORT = 9092


@click.command("broker", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--apache", is_flag=True, help="Apache Kafka (one node, KRaft) instead; keeps its messages.")
@click.option("--port", type=click.IntRange(1, 65_535), help=f"With --apache: port on 127.0.0.1; {PORT}.")
@click.option("--if-none-configured", is_flag=True, help="Where a broker is configured, only wait for the end.")
def command(apache: bool, port: int | None, if_none_configured: bool) -> None:
    """Run a broker on 127.0.0.1 until SIGTERM or Ctrl-C, for demos and development.

    The embedded one speaks the Kafka protocol and keeps about 5 MB a partition in memory, so let
    `fraud-assets land` run beside it. It is not used where KAFKA_BOOTSTRAP_SERVERS or KAFKA_CLIENT_PROPERTIES is set.

    With --apache it is Apache Kafka from its jars, with both topics made and all data under FRAUD_HOME/apache-kafka.
    It needs Java 17 and, the first time, Maven; set KAFKA_BOOTSTRAP_SERVERS to what it prints to use it.

    \b
    Example: fraud-assets broker
             fraud-assets broker --apache --port 9092
    """
    from fraud_assets.ingest.service.lander import stopped_by_signals
    from fraud_assets.kafka.broker import uses_external_broker

    if port and not apache:
        raise click.UsageError("--port goes with --apache.")
    settings = load_settings()
    with stopped_by_signals() as stop:
        if if_none_configured and uses_external_broker(settings):
            _wait_only(settings, stop)
        elif apache:
            _run_apache(settings, port or PORT, stop)
        else:
            _run_embedded(settings, stop)


def _wait_only(settings: Settings, stop: threading.Event) -> None:
    from fraud_assets.kafka.broker import find_broker

    broker = find_broker(settings)
    click.echo(f"{broker.named_by} names {broker.bootstrap}: no broker is started here.")
    stop.wait()


def _run_embedded(settings: Settings, stop: threading.Event) -> None:
    from fraud_assets.kafka.broker import embedded_broker, find_broker, uses_external_broker

    with embedded_broker(settings) as broker:
        click.echo(f"Broker at {broker.bootstrap}, named in {settings.broker_file}. Ctrl-C ends it.")
        if uses_external_broker(settings):
            real = find_broker(settings)
            click.echo(f"{real.named_by} names {real.bootstrap!r} and wins over this one.", err=True)
        click.echo("Next, in other terminals: `fraud-assets land`, then `fraud-assets simulate --count 5000`.")
        stop.wait()
    click.echo("Broker stopped; its messages are gone.")


def _run_apache(settings: Settings, port: int, stop: threading.Event) -> None:
    from fraud_assets.kafka.broker import Broker
    from fraud_assets.kafka.topics import create_topics
    from fraud_assets.testing.apache_kafka import apache_kafka

    folder = settings.home_path / "apache-kafka"
    click.echo("Starting Apache Kafka; the first time its jars are resolved by Maven …", err=True)
    with apache_kafka(folder, port=port) as cluster:
        create_topics(Broker(cluster.bootstrap, embedded=False, topic_id=None), settings)
        click.echo(f"Apache Kafka at {cluster.bootstrap}, data in {folder}. Ctrl-C ends it. In other terminals:")
        click.echo(f"export KAFKA_BOOTSTRAP_SERVERS={cluster.bootstrap}")
        while not stop.wait(1.0):
            cluster.check()
    click.echo("Apache Kafka stopped; its messages are kept.")
