"""`fraud-assets replay`: produce the transactions and labels of files."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from fraud_assets.settings import load_settings
from fraud_assets.simulator.destination import Via, via_option


@click.command("replay", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--map",
    "mapping",
    multiple=True,
    metavar="FIELD=COLUMN,…",
    help="The file's column of a field, where its name differs; letter case does not matter.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Transactions to send, at most.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Messages a second, at most.")
@via_option
@click.option("--json", "as_json", is_flag=True, help="Summary as one JSON object.")
def command(
    files: tuple[Path, ...],
    mapping: tuple[str, ...],
    limit: int | None,
    rate: float | None,
    via: Via | None,
    as_json: bool,
) -> None:
    """Produce the transactions of Parquet, CSV or JSON-lines FILES, and their fraud labels.

    Needed columns: transaction_id, tx_datetime, customer_id, terminal_id, tx_amount. Labels are sent when there is
    is_fraud (or TX_FRAUD) or labelled_at: each before the first transaction that is later than the label; without
    labelled_at a fraud's label is FRAUD_FEEDBACK_DELAY_DAYS later than its transaction. Labels left over at the end
    are sent if dated before now. A file with only transaction_id, is_fraud and labelled_at is sent after the others.

    To the embedded broker it goes no faster than `fraud-assets land` takes it; bulk is better dropped as a file
    into FRAUD_HOME/incoming.

    \b
    Example, a file with other names:
      fraud-assets replay train_first_5039_rows.parquet --map transaction_id=trans_num,customer_id=cc_num \\
        --map terminal_id=merchant,tx_amount=amt,tx_datetime=trans_date_trans_time
    """
    from fraud_assets.simulator.destination import open_producer
    from fraud_assets.simulator.event_order import EventOrder
    from fraud_assets.simulator.pace import pace_messages, show_progress
    from fraud_assets.simulator.replay import open_source, replay_messages

    settings = load_settings()
    columns = _pairs(mapping)
    sources = [open_source(path, settings, columns) for path in files]
    known = [source.rows for source in sources if source.rows is not None]
    total = min(sum(known), limit or sum(known)) if len(known) == len(sources) else limit
    order = EventOrder(settings)
    began = time.monotonic()
    with open_producer(settings, via) as producer, show_progress(total, "replay") as tick:
        for message in pace_messages(replay_messages(sources, order, limit), rate):
            producer.send(message)
            tick()
    seconds = time.monotonic() - began
    summary = {
        "files": len(files),
        "transactions": order.transactions,
        "labels": order.labels,
        "labels_not_due": order.labels_not_due,
        "delivered": producer.delivered,
        "seconds": round(seconds, 3),
        "messages_per_second": round(producer.delivered / max(seconds, 1e-9), 1),
    }
    if as_json:
        click.echo(json.dumps(summary))
        return
    click.echo(
        f"Produced {order.transactions:,} transactions and {order.labels:,} labels in {seconds:.1f} s"
        + (f"; {order.labels_not_due:,} labels are dated in the future." if order.labels_not_due else ".")
    )


def _pairs(mapping: tuple[str, ...]) -> dict[str, str]:
    from fraud_assets.simulator.replay import FIELDS

    pairs: dict[str, str] = {}
    for part in ",".join(mapping).split(","):
        if not part.strip():
            continue
        field, equals, column = (side.strip() for side in part.partition("="))
        if not equals or not column or field not in FIELDS:
            raise click.BadParameter(
                f"{part!r}: write FIELD=COLUMN, with FIELD one of {', '.join(FIELDS)}.", param_hint="--map"
            )
        pairs[field] = column
    return pairs
