"""Assets `isolation_forest` and `alert_thresholds`: the model is trained, registered, calibrated and made champion."""

from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from fraud_assets.assets.ranges import parse_time
from fraud_assets.assets.reporting import is_selected, report_table, reporting
from fraud_assets.errors import NotEnoughDataError
from fraud_assets.resources import EngineResource, PlatformResource


class TrainingConfig(dg.Config):
    """Training window [start, end) of `tx_datetime`; default: the last FRAUD_TRAIN_DAYS days in the lake."""

    start: str | None = Field(None, description="Start of the training window, ISO 8601 in UTC.")
    end: str | None = Field(None, description="End of the training window, exclusive, ISO 8601 in UTC.")
    skip_too_little_data: bool = Field(
        False, description="If fewer than FRAUD_TRAIN_MIN_ROWS rows are available, skip training instead of failing."
    )


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            "isolation_forest",
            deps=["transaction_features"],
            description="The Isolation Forest that scores transactions, in the MLflow model registry. The alias "
            "`champion` marks the version in use.",
            skippable=True,
            group_name="model",
            kinds={"scikitlearn", "mlflow"},
        ),
        dg.AssetSpec(
            "alert_thresholds",
            deps=["transaction_features"],
            description="The score from which a transaction raises an alert, set so that alerts fit the daily budget "
            "of the analysts (FRAUD_ALERT_BUDGET_PER_DAY). Materialize this asset alone to apply a new budget without "
            "training.",
            skippable=True,
            group_name="model",
            kinds={"deltalake"},
        ),
    ],
    can_subset=True,
    name="model",
)
def model(
    context: dg.AssetExecutionContext, config: TrainingConfig, platform: PlatformResource, engines: EngineResource
) -> Iterator[dg.MaterializeResult]:
    """Trains and calibrates a new champion. With only `alert_thresholds` selected, recalibrates the current one."""
    from fraud_assets.stages.training import recalibrate, train

    with reporting(context):
        settings, lake = platform.settings(), platform.lake()
        engine = engines.choose(settings)
        if not is_selected(context, "isolation_forest"):
            recalibrated = recalibrate(lake, settings, engine)
            yield from report_table(context, "alert_thresholds", recalibrated.metadata())
            return
        start = parse_time(config.start) if config.start else None
        end = parse_time(config.end) if config.end else None
        try:
            report = train(lake, settings, start, end, engine)
        except NotEnoughDataError as error:
            if not config.skip_too_little_data:
                raise
            context.log.info(f"Training is skipped: {error}")
            return
        yield from report_table(context, "isolation_forest", report.metadata())
        yield from report_table(context, "alert_thresholds", report.calibration.metadata())
