"""`fraud_predictions`: every feature row scored once, by the champion."""

from collections.abc import Iterator

import dagster as dg

from fraud_assets.assets.ranges import parse_range
from fraud_assets.assets.reporting import reporting
from fraud_assets.errors import NoChampionError
from fraud_assets.resources import PlatformResource, SparkResource


class ScoringConfig(dg.Config):
    """Scoring again: `tx_datetime` in [rescore_start, rescore_end) by the champion of now."""

    rescore_start: str | None = None
    rescore_end: str | None = None


@dg.asset(
    deps=["transaction_features", "isolation_forest", "alert_thresholds"],
    group_name="predictions",
    kinds={"treelite", "deltalake"},
    output_required=False,
)
def fraud_predictions(
    context: dg.AssetExecutionContext, config: ScoringConfig, platform: PlatformResource, spark: SparkResource
) -> Iterator[dg.MaterializeResult]:
    """Scores new feature rows exactly once. A higher score is more suspicious; each row names its model version."""
    from fraud_assets.core.schema import fraud_predictions as predictions_table
    from fraud_assets.errors import LostRegistryError
    from fraud_assets.lake.held_days import describe_empty_range
    from fraud_assets.stages.alert_days import REMEDY, describe_busy_day
    from fraud_assets.stages.scoring import score_pending, score_range

    with reporting(context):
        settings, lake = platform.settings(), platform.lake()
        again = parse_range(config.rescore_start, config.rescore_end)
        if again:
            report = score_range(lake, settings, *again)
            if not report.rows:
                note = describe_empty_range(lake, predictions_table, *again, "to score again")
                context.log.warning(note)
                yield dg.MaterializeResult(metadata={"rows": 0, "note": note})
                return
        else:
            try:
                report = score_pending(lake, settings, spark.engine(settings))
            except NoChampionError as error:
                tell = context.log.warning if isinstance(error, LostRegistryError) else context.log.info
                tell(f"Scoring skipped, it catches up later: {error}")
                return
        if report.busiest and report.busiest.is_over_limit:
            context.log.warning(f"{describe_busy_day(report.busiest, settings)}. {REMEDY}")
        yield dg.MaterializeResult(metadata=report.metadata())
