from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, timedelta
from threading import Barrier, Thread

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from fraud_assets.asset_metadata import describe_scoring
from fraud_assets.cli import main
from fraud_assets.core.evaluation import Protocol
from fraud_assets.core.schema import (
    POSITION_COLUMNS,
    alert_thresholds,
    fraud_predictions,
    transaction_features,
)
from fraud_assets.core.scoring import score
from fraud_assets.errors import CommitConflictError, LakeError, NoChampionError, NotEnoughDataError, SettingError
from fraud_assets.lake.log import read_row_count
from fraud_assets.lake.tables import Lake, open_dataset
from fraud_assets.registry.models import read_champion
from fraud_assets.settings import load_settings
from fraud_assets.stages import scoring
from fraud_assets.stages.calibration import recalibrate
from fraud_assets.stages.evaluation import evaluate_lake, find_latest_start
from fraud_assets.stages.scoring import ScoringReport, score_pending, score_range
from fraud_assets.stages.training import train
from fraud_assets_tests.support.logged import logged
from fraud_assets_tests.support.odd_paths import WORKS
from fraud_assets_tests.support.synthetic import FIRST, commit_features, commit_labels, features

ROWS = 1_200


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A home with a champion, trained once for all tests of this module."""
    home = tmp_path_factory.mktemp("registry") / f"a{WORKS}"
    settings = load_settings(home=home, mlflow_tracking_uri="", train_trees=5)
    lake = Lake.of(settings)
    commit_features(lake, features(ROWS))
    train(lake, settings)
    assert len(list((home / "mlflow" / "artifacts").rglob("model.tl"))) == 1
    return home


@pytest.fixture
def settings(registry, tmp_path):
    return load_settings(
        home=registry, lake_uri=str(tmp_path / "lake"), mlflow_tracking_uri="", train_trees=5, batch_rows=500
    )


@pytest.fixture
def lake(settings):
    """A separate lake with unscored features and an alert threshold of the champion."""
    lake = Lake.of(settings)
    commit_features(lake, features(ROWS))
    recalibrate(lake, settings)
    return lake


def read(lake, table, *columns):
    rows = open_dataset(lake.open(table)).to_table(columns=list(columns or table.schema.names))
    return rows.sort_by([("partition", "ascending"), ("offset", "ascending")])


def positions(lake, table):
    return read(lake, table, *POSITION_COLUMNS).to_pylist()


def test_each_feature_row_is_scored_once_in_bounded_batches(lake, settings):
    with logged() as lines:
        report = score_pending(lake, settings)
    assert (report.rows, report.batches, report.model.version) == (ROWS, 3, 1)
    assert report.alert_rate == report.alerts / ROWS
    assert report.model.run_id == read_champion(settings).run_id
    assert 0 < report.alert_rate <= settings.alert_max_rate
    assert lines[0].startswith("scored 500 of 1,200 ")
    assert positions(lake, fraud_predictions) == positions(lake, transaction_features)
    second = score_pending(lake, settings)
    assert replace(second, seconds=0.0) == ScoringReport()
    # A run without rows omits unknown values, so a plot shows no point instead of a zero.
    assert describe_scoring(second, None).keys() == {"rows_added", "alerts", "seconds"}
    commit_features(lake, features(30, first_offset=ROWS))
    third = score_pending(lake, settings)
    assert third.rows == 30
    # For each day of this run, the alerts of all runs count.
    alerts = read(lake, fraud_predictions, "tx_date", "is_alert", *POSITION_COLUMNS).filter(pc.field("is_alert"))
    newest_days = sorted(third.days)[-7:]
    counts = [pc.sum(pc.equal(alerts["tx_date"], pa.scalar(day))).as_py() or 0 for day in newest_days]
    assert third.busiest.alerts == max(counts) > third.alerts
    assert third.busiest.limit == 3 * settings.alert_budget_per_day
    assert positions(lake, fraud_predictions) == positions(lake, transaction_features)


def test_predictions_hold_the_scores_of_the_champion(lake, settings):
    score_pending(lake, settings)
    rows, scored = read(lake, transaction_features), read(lake, fraud_predictions)
    assert scored.schema.equals(fraud_predictions.schema)
    assert (scored["score"].to_numpy() == score(read_champion(settings).model, rows)).all()
    assert (scored["is_alert"].to_numpy() == (scored["score"].to_numpy() >= scored["threshold"].to_numpy())).all()
    assert scored["transaction_id"].equals(rows["transaction_id"])
    assert scored["tx_datetime"].equals(rows["tx_datetime"])


def test_concurrent_runs_score_each_row_once(lake, settings):
    barrier, totals = Barrier(3), []

    def score_with_others():
        barrier.wait()
        totals.append(score_pending(lake, settings.model_copy(update={"batch_rows": 100})).rows)

    threads = [Thread(target=score_with_others) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(totals) == ROWS
    assert positions(lake, fraud_predictions) == positions(lake, transaction_features)


def test_a_commit_conflict_starts_over_from_the_committed_offsets(lake, settings, monkeypatch):
    real_commit, calls = scoring.commit_append, []

    def commit_after_another_run(*arguments, **named):
        calls.append(1)
        if len(calls) == 1:
            monkeypatch.setattr(scoring, "commit_append", real_commit)
            score_pending(lake, settings.model_copy(update={"batch_rows": 200}))  # the other run scores all rows
        return real_commit(*arguments, **named)

    monkeypatch.setattr(scoring, "commit_append", commit_after_another_run)
    assert score_pending(lake, settings).rows == 0
    assert positions(lake, fraud_predictions) == positions(lake, transaction_features)


def test_without_a_champion_nothing_is_scored(lake, settings):
    other = settings.model_copy(update={"model_name": "never_trained"})
    with pytest.raises(NoChampionError, match="never_trained"):
        score_pending(lake, other)
    assert read_row_count(lake.open(fraud_predictions)) == 0
    score_pending(lake, settings)
    with pytest.raises(NoChampionError, match="never_trained"):
        score_range(lake, other, FIRST, FIRST + timedelta(days=1))


def test_without_features_the_registry_is_not_read(settings, tmp_path):
    other = settings.model_copy(update={"model_name": "never_trained"})
    assert score_pending(Lake(str(tmp_path / "empty")), other).rows == 0


def test_features_of_another_version_are_not_scored(lake, settings):
    rows = features(10, first_offset=ROWS)
    index = rows.column_names.index("feature_version")
    commit_features(lake, rows.set_column(index, rows.schema.field(index), pa.array(["0"] * 10)))
    with pytest.raises(LakeError, match=r"feature version 0, but the champion supports only version 1. Recompute"):
        score_pending(lake, settings.model_copy(update={"batch_rows": 10_000}))
    assert read_row_count(lake.open(fraud_predictions)) == 0


def test_scoring_a_range_again_uses_the_current_threshold_and_changes_no_other_row(lake, settings):
    score_pending(lake, settings)
    before = read(lake, fraud_predictions)
    generous = settings.model_copy(update={"alert_max_rate": 0.5, "alert_budget_per_day": 1e6})
    threshold = recalibrate(lake, generous).threshold
    low, high = FIRST + timedelta(days=2, hours=7), FIRST + timedelta(days=4, hours=1)
    report = score_range(lake, settings, low, high)
    after = read(lake, fraud_predictions)
    inside = pc.and_(
        pc.greater_equal(after["tx_datetime"], pa.scalar(low)), pc.less(after["tx_datetime"], pa.scalar(high))
    )
    assert (report.rows, report.batches) == (pc.sum(inside).as_py(), 3)
    assert set(after.filter(inside)["threshold"].to_pylist()) == {threshold}
    assert after.filter(pc.invert(inside)).equals(before.filter(pc.invert(inside)))
    assert after.select(POSITION_COLUMNS).equals(before.select(POSITION_COLUMNS))
    assert score_pending(lake, settings).rows == 0


def test_scoring_a_range_again_skips_unscored_rows(lake, settings):
    """Otherwise, these rows would have two predictions after their first scoring."""
    score_pending(lake, settings)
    commit_features(lake, features(100, first_offset=ROWS))
    assert score_range(lake, settings, FIRST, FIRST + timedelta(days=400)).rows == ROWS
    assert read_row_count(lake.open(fraud_predictions)) == ROWS
    assert score_pending(lake, settings).rows == 100
    assert positions(lake, fraud_predictions) == positions(lake, transaction_features)


def test_scoring_a_range_again_tolerates_a_concurrent_run_and_compaction(lake, settings, monkeypatch):
    score_pending(lake, settings)
    commit_features(lake, features(100, first_offset=ROWS))
    real_commit, calls = scoring.commit_range, []

    def commit_after_another_run(*arguments, **named):
        calls.append(1)
        if len(calls) == 1:
            lake.open(fraud_predictions).optimize.compact()
            monkeypatch.setattr(scoring, "commit_range", real_commit)
            score_pending(lake, settings)
            monkeypatch.setattr(scoring, "commit_range", commit_after_another_run)
        return real_commit(*arguments, **named)

    monkeypatch.setattr(scoring, "commit_range", commit_after_another_run)
    score_range(lake, settings, FIRST, FIRST + timedelta(days=1))
    assert positions(lake, fraud_predictions) == positions(lake, transaction_features)


def test_scoring_a_range_again_starts_over_after_a_commit_conflict(lake, settings, monkeypatch):
    score_pending(lake, settings)
    real_commit, calls = scoring.commit_range, []

    def conflict_once(*arguments, **named):
        calls.append(1)
        if len(calls) == 1:
            raise CommitConflictError("another writer")
        return real_commit(*arguments, **named)

    monkeypatch.setattr(scoring, "commit_range", conflict_once)
    assert score_range(lake, settings, FIRST, FIRST + timedelta(days=1)).rows == ROWS / 10
    assert len(calls) == 2


def test_an_invalid_range_is_refused(lake, settings):
    for low, high in ((FIRST, FIRST), (FIRST.replace(tzinfo=None), FIRST)):
        with pytest.raises(SettingError, match="Give start < end"):
            score_range(lake, settings, low, high)


# --- Evaluation on the lake ---------------------------------------------------------------------------------------


@pytest.fixture
def labeled_lake(lake, settings):
    """A lake with frauds on days 4 and 5. Later labels withdraw t500 and t520; an older label of t540 has no effect."""
    late, later = FIRST + timedelta(days=12), FIRST + timedelta(days=13)
    labels = [(f"t{n}", True, late) for n in range(500, 700, 20)]
    commit_labels(lake, labels)
    commit_labels(lake, [("t500", False, later), ("t520", False, later), ("nobody", True, later)], len(labels))
    commit_labels(lake, [("t540", False, FIRST)], len(labels) + 3)  # lands last, but is older
    return lake


PROTOCOL = Protocol(FIRST.date(), train_days=3, delay_days=1, test_days=3)


def test_the_latest_label_counts_and_a_missing_label_means_genuine(labeled_lake, settings):
    small = settings.model_copy(update={"train_min_rows": 300})
    result = evaluate_lake(labeled_lake, small, PROTOCOL, "platform")
    assert (result.train_rows, result.train_frauds) == (360, 0)
    assert (result.test_rows + result.test_rows_of_compromised_cards, result.test_frauds) == (360, 8)
    assert evaluate_lake(labeled_lake, small, PROTOCOL, "book").test_rows == result.test_rows


def test_the_default_days_are_old_enough_to_have_labels(labeled_lake, settings):
    assert find_latest_start(labeled_lake, settings, 1, 1, 1) == date(2025, 12, 31)
    assert find_latest_start(labeled_lake, settings.model_copy(update={"feedback_delay_days": 2}), 3, 1, 3) == date(
        2026, 1, 1
    )


def test_too_few_rows_or_frauds_are_not_evaluated(labeled_lake, settings):
    with pytest.raises(NotEnoughDataError, match=r"needs 1,000 .*FRAUD_TRAIN_MIN_ROWS.* holds 360 .*--train-start"):
        evaluate_lake(labeled_lake, settings, PROTOCOL, "platform")
    small = settings.model_copy(update={"train_min_rows": 10})
    with pytest.raises(NotEnoughDataError, match="0 of them fraud"):
        evaluate_lake(labeled_lake, small, Protocol(FIRST.date(), 1, 1, 1), "platform")
    empty = Lake(settings.lake + "-empty")
    with pytest.raises(NotEnoughDataError, match="no features at all"):
        evaluate_lake(empty, settings, PROTOCOL, "platform")
    with pytest.raises(NotEnoughDataError):
        find_latest_start(empty, settings, 1, 1, 1)


def run_evaluate(monkeypatch, capsys, settings, *arguments):
    monkeypatch.setenv("FRAUD_HOME", str(settings.home_path))
    monkeypatch.setenv("FRAUD_LAKE_URI", settings.lake)
    monkeypatch.setenv("FRAUD_TRAIN_MIN_ROWS", "100")
    monkeypatch.setattr("sys.argv", ["fraud-assets", "evaluate", *arguments])
    status = 0
    try:
        main()
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


DAYS = ("--train-start", "2026-01-01", "--train-days", "3", "--delay-days", "1", "--test-days", "3")


def test_the_command_prints_one_flat_json_object_and_registers_nothing(labeled_lake, settings, monkeypatch, capsys):
    thresholds = read_row_count(labeled_lake.open(alert_thresholds))
    status, out, err = run_evaluate(monkeypatch, capsys, settings, *DAYS, "--model", "book", "--json")
    assert status == 0
    summary = json.loads(out)
    assert out.count("\n") == 1
    assert 0 <= summary["auc_roc"] <= 1
    assert {"average_precision", "card_precision_at_100", "train_rows", "test_frauds"} <= set(summary)
    assert not any(isinstance(value, (dict, list)) for value in summary.values())
    assert "training 10 trees" in err
    assert read_row_count(labeled_lake.open(alert_thresholds)) == thresholds
    assert read_champion(settings).version == 1


def test_the_command_prints_text_and_reports_missing_data(labeled_lake, settings, monkeypatch, capsys):
    status, out, _ = run_evaluate(monkeypatch, capsys, settings, *DAYS)
    assert status == 0
    assert "Card precision@100" in out
    status, out, err = run_evaluate(monkeypatch, capsys, settings, "--train-start", "2031-01-01")
    assert (status, out) == (1, "")
    assert "(FRAUD_TRAIN_MIN_ROWS) from 2031-01-01" in err
    assert "Traceback" not in err
