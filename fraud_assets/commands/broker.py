"""`fraud-assets broker`: runs a broker in the foreground, embedded or Apache Kafka."""

from __future__ import annotations

import threading

import click

from fraud_assets.settings import Settings, load_settings

PORT = 9092


@click.command("broker", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--apache", is_flag=True, help="Run Apache Kafka (one node, KRaft), which keeps its messages.")
@click.option("--port", type=click.IntRange(1, 65_535), help=f"Port on 127.0.0.1, with --apache.  [default: {PORT}]")
@click.option("--if-none-configured", is_flag=True, help="If another broker is configured, start none and wait.")
def command(apache: bool, port: int | None, if_none_configured: bool) -> None:
    """Run a Kafka broker on 127.0.0.1 until Ctrl-C or SIGTERM, for demos and development.

    The embedded broker keeps about 5 MB of messages per partition in memory, so run `fraud-assets land` beside it.
    The other commands find it without a setting. They do not use it if KAFKA_BOOTSTRAP_SERVERS or
    KAFKA_CLIENT_PROPERTIES is set.

    With --apache, the command runs Apache Kafka, creates both topics and keeps all data in FRAUD_HOME/apache-kafka. It
    needs Java 17 and, for the first start, Maven. To use it, set KAFKA_BOOTSTRAP_SERVERS to the printed value.

    \b
    Example: fraud-assets broker
             fraud-assets broker --apache --port 9092
    """
    from fraud_assets.ingest.service.lander import stopped_by_signals
    from fraud_assets.kafka.broker import uses_external_broker

    if port and not apache:
        raise click.UsageError("--port needs --apache.")
    settings = load_settings()
    with stopped_by_signals() as stop:
        if if_none_configured and uses_external_broker(settings):
            _wait_for_stop(settings, stop)
        elif apache:
            _run_apache(settings, port or PORT, stop)
        else:
            _run_embedded(settings, stop)


def _wait_for_stop(settings: Settings, stop: threading.Event) -> None:
    from fraud_assets.kafka.broker import find_broker

    broker = find_broker(settings)
    click.echo(f"{broker.named_by} names the broker {broker.bootstrap}, so none is started here.")
    stop.wait()


def _run_embedded(settings: Settings, stop: threading.Event) -> None:
    from fraud_assets.kafka.broker import embedded_broker, find_broker, uses_external_broker

    with embedded_broker(settings) as broker:
        click.echo(f"Broker at {broker.bootstrap}; its address is in {settings.broker_file}. Press Ctrl-C to stop it.")
        if uses_external_broker(settings):
            real = find_broker(settings)
            click.echo(
                f"Warning: {real.named_by} names {real.bootstrap!r}. The other commands use that broker, not this one.",
                err=True,
            )
        click.echo("Next, in other terminals: run `fraud-assets land`, then `fraud-assets simulate --count 5000`.")
        stop.wait()
    click.echo("Broker stopped. Its messages are deleted.")


def _run_apache(settings: Settings, port: int, stop: threading.Event) -> None:
    from fraud_assets.kafka.broker import Broker
    from fraud_assets.kafka.topics import create_topics
    from fraud_assets.testing.apache_kafka import apache_kafka

    folder = settings.home_path / "apache-kafka"
    click.echo("Starting Apache Kafka. The first start downloads its jars with Maven …", err=True)
    with apache_kafka(folder, port=port) as cluster:
        create_topics(Broker(cluster.bootstrap, embedded=False, topic_id=None), settings)
        click.echo(
            f"Apache Kafka at {cluster.bootstrap}, data in {folder}. Press Ctrl-C to stop it. In other terminals, run:"
        )
        click.echo(f"export KAFKA_BOOTSTRAP_SERVERS={cluster.bootstrap}")
        while not stop.wait(1.0):
            cluster.check()
    click.echo("Apache Kafka stopped. Its messages are kept.")
