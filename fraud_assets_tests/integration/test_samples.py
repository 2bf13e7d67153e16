"""The bundled samples land completely with their own field mapping, also with card numbers as pseudonyms."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from fraud_assets.cli import cli
from fraud_assets.core.pseudonyms import compute_hmac
from fraud_assets.core.schema import fraud_labels, transaction_features
from fraud_assets.ingest.files.landing import land_files
from fraud_assets.lake.tables import Lake, open_dataset
from fraud_assets.samples import FIELD_MAPPINGS, sample_file
from fraud_assets.settings import Settings
from fraud_assets.stages.features import process_landed


@pytest.mark.parametrize("fields", ["", "cc_num"])
def test_the_sparkov_sample_lands_completely_with_every_digit(
    make_settings: Callable[..., Settings], fields: str
) -> None:
    settings = make_settings(
        field_mapping=FIELD_MAPPINGS["sparkov"], pseudonymise=fields, pseudonym_key="k" * 32 if fields else ""
    )
    lake = Lake.of(settings)
    settings.incoming.mkdir(parents=True)
    (settings.incoming / "sparkov.parquet").write_bytes(sample_file("sparkov").read_bytes())
    (report,) = land_files(lake, settings)
    assert (report.rows, report.labels, report.reason) == (5039, 5039, "")
    processed = process_landed(lake, settings)
    assert (processed.features, processed.quarantined, processed.duplicates) == (5039, 0, 0)
    source = pq.read_table(sample_file("sparkov")).sort_by("trans_num")
    rows = open_dataset(lake.open(transaction_features)).to_table().sort_by("transaction_id")
    cards = [str(number) for number in source["cc_num"].to_pylist()]
    assert max(map(len, cards)) == 19
    expected = [compute_hmac(card.encode(), settings.pseudonym_policy) for card in cards] if fields else cards
    assert rows["customer_id"].to_pylist() == expected
    assert rows["tx_amount"].to_pylist() == source["amt"].to_pylist()
    labels = open_dataset(lake.open(fraud_labels)).to_table()
    assert pc.sum(labels["is_fraud"]).as_py() == 22


def test_a_sample_and_files_cannot_be_combined() -> None:
    result = CliRunner().invoke(cli, ["demo", "--sample", "sparkov", "--data", str(sample_file("sparkov"))])
    assert result.exit_code == 2
    assert "--sample" in result.output
