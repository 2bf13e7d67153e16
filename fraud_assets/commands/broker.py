"""`fraud-assets broker`: the embedded broker in the foreground."""

from __future__ import annotations

import click

from fraud_assets.settings import load_settings


@click.command("broker", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Run the embedded broker until SIGTERM or Ctrl-C, for demos and development.

    It speaks the Kafka protocol on 127.0.0.1 and keeps about 5 MB a partition in memory, so let
    `fraud-assets land` run beside it. It is not used where KAFKA_BOOTSTRAP_SERVERS is set.

    \b
    Example: fraud-assets broker
    """
    from fraud_assets.kafka.broker import embedded_broker
    from fraud_assets.streaming.land import stopped_by_signals

    settings = load_settings()
    with stopped_by_signals() as stop, embedded_broker(settings) as broker:
        click.echo(f"Broker at {broker.bootstrap}, named in {settings.broker_file}. Ctrl-C ends it.")
        if settings.kafka_bootstrap_servers:
            click.echo(
                f"KAFKA_BOOTSTRAP_SERVERS is {settings.kafka_bootstrap_servers!r} and wins over this one.", err=True
            )
        click.echo("Next, in other terminals: `fraud-assets land`, then `fraud-assets simulate --count 5000`.")
        stop.wait()
    click.echo("Broker stopped; its messages are gone.")
