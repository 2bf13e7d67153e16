from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from fraud_assets.core import scoring
from fraud_assets.core.schema import FRAUD_PREDICTIONS, MODEL_INPUTS, POSITION_COLUMNS
from fraud_assets.core.scoring import PREDICTION_INPUTS, predict, score, to_matrix
from fraud_assets.core.training import fit, score_samples, to_frame, to_treelite
from fraud_assets_tests.support.synthetic import features


@pytest.fixture(scope="module")
def rows():
    return features(3_000)


@pytest.fixture(scope="module")
def forest(rows):
    return fit(rows, trees=50)


@pytest.fixture(scope="module")
def model(forest):
    return to_treelite(forest)


def test_scores_equal_scikit_learn_and_are_higher_for_outliers(forest, model, rows):
    outlier = rows.slice(0, 1).set_column(
        rows.column_names.index("tx_amount"), rows.schema.field("tx_amount"), pa.array([9_999.0])
    )
    all_rows = pa.concat_tables([rows, outlier])
    scores = score(model, all_rows)
    assert scores.dtype == np.float64
    assert scores.shape == (3_001,)
    np.testing.assert_allclose(scores, score_samples(forest, all_rows), rtol=0, atol=1e-8)
    assert scores[-1] > scores[0]


def test_scores_are_identical_for_one_row_many_rows_and_any_chunk(model, rows, monkeypatch):
    many = score(model, rows)
    assert [score(model, rows.slice(k, 1))[0] for k in range(20)] == many[:20].tolist()
    monkeypatch.setattr(scoring, "CHUNK_ROWS", 700)
    monkeypatch.setattr(scoring, "_THREADS_FROM_ROWS", 1)
    assert (score(model, rows) == many).all()


def test_inputs_are_found_by_name_whatever_the_order_of_columns(model, rows):
    shuffled = rows.select(rows.column_names[::-1])
    assert (score(model, shuffled) == score(model, rows)).all()
    assert to_matrix(rows).dtype == np.float32
    assert list(to_frame(rows).columns) == list(MODEL_INPUTS)


def test_an_amount_beyond_float32_trains_and_scores(rows):
    amounts = rows["tx_amount"].to_numpy().copy()
    amounts[:3] = 1e300
    huge = rows.set_column(rows.column_names.index("tx_amount"), rows.schema.field("tx_amount"), pa.array(amounts))
    forest = fit(huge, trees=10)
    np.testing.assert_allclose(score(to_treelite(forest), huge), score_samples(forest, huge), rtol=0, atol=1e-8)


def test_no_rows_give_no_scores_and_an_empty_table(model, rows):
    assert score(model, rows.slice(0, 0)).shape == (0,)
    assert predict(rows.slice(0, 0), model, 0.5, 1, "run", datetime.now(UTC)).schema == FRAUD_PREDICTIONS


def test_predictions_carry_position_version_and_threshold(model, rows):
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    threshold = float(np.sort(score(model, rows))[-30])
    table = predict(rows.select(PREDICTION_INPUTS), model, threshold, 7, "run", now)
    assert table.schema == FRAUD_PREDICTIONS
    assert table.select(POSITION_COLUMNS).equals(rows.select(POSITION_COLUMNS))
    assert table["is_alert"].to_numpy().sum() == 30  # a score at the threshold alerts
    first = table.slice(0, 1).to_pylist()[0]
    assert (first["model_version"], first["model_run_id"]) == (7, "run")
    assert (first["threshold"], first["scored_at"]) == (threshold, now)
