"""`fraud-assets replay`: produces the transactions and labels of files."""

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
    help="Column of the files for a field, if its name differs. Case is ignored. Repeatable.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Maximum number of transactions to send.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Maximum number of messages per second.")
@via_option
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def command(
    files: tuple[Path, ...],
    mapping: tuple[str, ...],
    limit: int | None,
    rate: float | None,
    via: Via | None,
    as_json: bool,
) -> None:
    """Produce the transactions of FILES (Parquet, CSV or JSON lines) and their fraud labels to Kafka.

    The files need the columns transaction_id, tx_datetime, customer_id, terminal_id and tx_amount. Labels are sent if
    there is a column is_fraud (or TX_FRAUD) or labelled_at. Each label is sent before the first transaction that is
    later than the label. Without labelled_at, the label of a fraud is dated FRAUD_FEEDBACK_DELAY_DAYS after its
    transaction. At the end, remaining labels are sent if they are dated before now. A file with only transaction_id,
    is_fraud and labelled_at is sent after the others.

    The embedded broker accepts messages only as fast as `fraud-assets land` lands them. Drop large files
    into FRAUD_HOME/incoming instead.

    \b
    Example: fraud-assets replay april.parquet --rate 100
    Example with other column names:
      fraud-assets replay train_first_5039_rows.parquet --map transaction_id=trans_num,customer_id=cc_num \\
        --map terminal_id=merchant,tx_amount=amt,tx_datetime=trans_date_trans_time
    """
    from fraud_assets.simulator.destination import open_producer
    from fraud_assets.simulator.event_order import EventOrder
    from fraud_assets.simulator.pace import pace_messages, show_progress
    from fraud_assets.simulator.replay import open_source, replay_messages

    settings = load_settings()
    columns = _parse_mapping(mapping)
    sources = [open_source(path, settings, columns) for path in files]
    known = [source.rows for source in sources if source.rows is not None]
    total = min(sum(known), limit or sum(known)) if len(known) == len(sources) else limit
    order = EventOrder(settings)
    start = time.monotonic()
    with open_producer(settings, via) as producer, show_progress(total, "replay") as tick:
        for message in pace_messages(replay_messages(sources, order, limit), rate):
            producer.send(message)
            tick()
    seconds = time.monotonic() - start
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


def _parse_mapping(mapping: tuple[str, ...]) -> dict[str, str]:
    from fraud_assets.simulator.replay import FIELDS

    pairs: dict[str, str] = {}
    for part in ",".join(mapping).split(","):
        if not part.strip():
            continue
        field, equals, column = (side.strip() for side in part.partition("="))
        if not equals or not column or field not in FIELDS:
            raise click.BadParameter(
                f"{part!r} is not a mapping. Write FIELD=COLUMN, where FIELD is one of {', '.join(FIELDS)}.",
                param_hint="--map",
            )
        pairs[field] = column
    return pairs
