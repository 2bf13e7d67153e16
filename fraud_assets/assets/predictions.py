"""Asset `fraud_predictions`: the champion scores every row of `transaction_features` once."""

from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from fraud_assets.asset_metadata import describe_scoring
from fraud_assets.assets.ranges import parse_range
from fraud_assets.assets.reporting import report_table, reporting, summarize_run, warn_empty_range
from fraud_assets.assets.specs import ENGINE_KIND, describe_asset
from fraud_assets.core.schema import FRAUD_PREDICTIONS, MODEL_INPUTS, TRANSACTION_FEATURES
from fraud_assets.errors import NoChampionError
from fraud_assets.printable import format_count
from fraud_assets.resources import EngineResource, PlatformResource

_DESCRIPTION = """The fraud score of every transaction in `transaction_features`, exactly one row each. A higher score
is more suspicious, and `is_alert` marks the scores that raise an alert. Each row names the model version that scored
it."""


_LINEAGE = {
    **{
        name: [("transaction_features", name)] for name in FRAUD_PREDICTIONS.names if name in TRANSACTION_FEATURES.names
    },
    "score": [("transaction_features", name) for name in MODEL_INPUTS],
    "threshold": [("alert_thresholds", "threshold")],
    "is_alert": [*(("transaction_features", name) for name in MODEL_INPUTS), ("alert_thresholds", "threshold")],
}


class ScoringConfig(dg.Config):
    """Scores `tx_datetime` in [rescore_start, rescore_end) again with the current champion, instead of new rows."""

    rescore_start: str | None = Field(None, description="Start of the range to score again, ISO 8601 in UTC.")
    rescore_end: str | None = Field(None, description="End of the range to score again, exclusive, ISO 8601 in UTC.")


@dg.multi_asset(
    specs=[
        describe_asset(
            "fraud_predictions",
            deps=["transaction_features", "isolation_forest", "alert_thresholds"],
            description=_DESCRIPTION,
            group="predictions",
            kinds={ENGINE_KIND, "treelite", "deltalake"},
            stage="predictions",
            lineage=_LINEAGE,
            fresh=True,
        )
    ],
    name="fraud_predictions",
)
def fraud_predictions(
    context: dg.AssetExecutionContext, config: ScoringConfig, platform: PlatformResource, engines: EngineResource
) -> Iterator[dg.MaterializeResult]:
    """Scores the feature rows that have no score yet, or scores a range again."""
    from fraud_assets.core.schema import fraud_predictions as predictions_table
    from fraud_assets.errors import LostRegistryError
    from fraud_assets.stages.alert_days import REMEDY, describe_busy_day
    from fraud_assets.stages.score_histogram import count_scores
    from fraud_assets.stages.scoring import score_pending, score_range

    with reporting(context):
        settings, lake = platform.settings(), platform.lake()
        period = parse_range(config.rescore_start, config.rescore_end)
        if period:
            report = score_range(lake, settings, *period)
            if not report.rows:
                note = warn_empty_range(context, lake, predictions_table, period, "to score again")
                yield from report_table(context, lake, "fraud_predictions", {"rows_added": 0, "note": note})
                return
        else:
            try:
                report = score_pending(lake, settings, engines.choose(settings))
            except NoChampionError as error:
                # Before the first training this is normal. A lost registry requires manual action.
                log = context.log.warning if isinstance(error, LostRegistryError) else context.log.info
                log(f"Scoring is skipped and catches up later: {error}")
                return
        if report.busiest and report.busiest.is_over_limit:
            context.log.warning(f"{describe_busy_day(report.busiest, settings)}. {REMEDY}")
        summarize_run(context, f"{format_count(report.alerts, 'alert')}, {report.rows:,} scored")
        histogram = count_scores(lake.open(predictions_table)) if report.rows else None
        yield from report_table(context, lake, "fraud_predictions", describe_scoring(report, histogram))
