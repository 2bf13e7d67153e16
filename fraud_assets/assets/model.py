"""`isolation_forest` and its `alert_thresholds`: trained, registered, calibrated, then champion."""

from collections.abc import Iterator

import dagster as dg

from fraud_assets.assets.ranges import parse_time
from fraud_assets.assets.reporting import materialized, reporting
from fraud_assets.errors import NotEnoughDataError
from fraud_assets.resources import PlatformResource, SparkResource


class TrainingConfig(dg.Config):
    """Training window [start, end) of `tx_datetime`; default: the last FRAUD_TRAIN_DAYS days of the lake."""

    start: str | None = None
    end: str | None = None
    skip_too_little_data: bool = False


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            "isolation_forest",
            deps=["transaction_features"],
            description="Isolation Forest in the MLflow registry, alias `champion`.",
            skippable=True,
            group_name="model",
            kinds={"scikitlearn", "mlflow"},
        ),
        dg.AssetSpec(
            "alert_thresholds",
            deps=["transaction_features"],
            description="Score from which a transaction alerts, by the analysts' daily budget; moves without training.",
            skippable=True,
            group_name="model",
            kinds={"deltalake"},
        ),
    ],
    can_subset=True,
    name="model",
)
def model(
    context: dg.AssetExecutionContext, config: TrainingConfig, platform: PlatformResource, spark: SparkResource
) -> Iterator[dg.MaterializeResult]:
    """Train and calibrate; with only `alert_thresholds` selected, calibrate the champion again."""
    from fraud_assets.stages.training import recalibrate, train

    with reporting(context):
        settings, lake = platform.settings(), platform.lake()
        engine = spark.engine(settings)
        if dg.AssetKey("isolation_forest") not in context.selected_asset_keys:
            recalibrated = recalibrate(lake, settings, engine)
            yield from materialized(context, "alert_thresholds", recalibrated.metadata())
            return
        start = parse_time(config.start) if config.start else None
        end = parse_time(config.end) if config.end else None
        try:
            report = train(lake, settings, start, end, engine)
        except NotEnoughDataError as error:
            if not config.skip_too_little_data:
                raise
            context.log.info(f"Training skipped: {error}")
            return
        yield from materialized(context, "isolation_forest", report.metadata())
        yield from materialized(context, "alert_thresholds", report.calibration.metadata())
