"""Assets `isolation_forest` and `alert_thresholds`: the model is trained, registered, calibrated and made champion."""

from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from fraud_assets.asset_metadata import describe_calibration, describe_training
from fraud_assets.assets.ranges import parse_time
from fraud_assets.assets.reporting import is_selected, report_table, reporting, summarize_run
from fraud_assets.assets.specs import ENGINE_KIND, describe_asset
from fraud_assets.errors import NotEnoughDataError
from fraud_assets.resources import EngineResource, PlatformResource


class TrainingConfig(dg.Config):
    """Training window [start, end) of `tx_datetime`; default: the last FRAUD_TRAIN_DAYS days in the lake."""

    start: str | None = Field(None, description="Start of the training window, ISO 8601 in UTC.")
    end: str | None = Field(None, description="End of the training window, exclusive, ISO 8601 in UTC.")
    skip_too_little_data: bool = Field(
        False, description="If fewer than FRAUD_TRAIN_MIN_ROWS rows are available, skip training instead of failing."
    )
    replace_champion: bool | None = Field(
        None,
        description="Train even if a champion exists. Default: only if the run materializes no other assets, so that "
        "'Materialize all' does not replace the champion.",
    )


@dg.multi_asset(
    specs=[
        describe_asset(
            "isolation_forest",
            deps=["transaction_features"],
            description="The Isolation Forest that scores transactions, in the MLflow model registry. The alias "
            "`champion` marks the version in use.",
            group="model",
            kinds={"scikitlearn", "mlflow", ENGINE_KIND},
            stage="model",
        ),
        describe_asset(
            "alert_thresholds",
            deps=["transaction_features"],
            description="The score from which a transaction raises an alert, set so that alerts fit the daily budget "
            "of the analysts (FRAUD_ALERT_BUDGET_PER_DAY). Materialize this asset alone to apply a new budget without "
            "training.",
            group="model",
            kinds={"deltalake"},
            stage="model",
        ),
    ],
    can_subset=True,
    name="model",
)
def model(
    context: dg.AssetExecutionContext, config: TrainingConfig, platform: PlatformResource, engines: EngineResource
) -> Iterator[dg.MaterializeResult]:
    """Trains and calibrates a new champion. With only `alert_thresholds` selected, recalibrates the current one."""
    from fraud_assets.stages.backlog import has_champion
    from fraud_assets.stages.calibration import recalibrate
    from fraud_assets.stages.training import train

    with reporting(context):
        settings, lake = platform.settings(), platform.lake()
        engine = engines.choose(settings)
        if not is_selected(context, "isolation_forest"):
            recalibrated = recalibrate(lake, settings, engine)
            yield from report_table(context, lake, "alert_thresholds", describe_calibration(recalibrated))
            summarize_run(context, f"threshold {recalibrated.threshold:.3f} for version {recalibrated.model_version}")
            return
        if not _is_wanted(context, config) and has_champion(settings):
            context.log.info(
                "Training is skipped, because a champion exists and this run materializes other assets too. To replace "
                "the champion, materialize only isolation_forest or start the job train_model."
            )
            return
        start = parse_time(config.start) if config.start else None
        end = parse_time(config.end) if config.end else None
        try:
            report = train(lake, settings, start, end, engine, context.run.run_id)
        except NotEnoughDataError as error:
            if not config.skip_too_little_data:
                raise
            context.log.info(f"Training is skipped: {error}")
            return
        summarize_run(context, f"champion version {report.version} trained on {report.rows:,} transactions")
        yield from report_table(context, lake, "isolation_forest", describe_training(report, settings))
        yield from report_table(context, lake, "alert_thresholds", describe_calibration(report.calibration))


def _is_wanted(context: dg.AssetExecutionContext, config: TrainingConfig) -> bool:
    """Returns whether the run asks for a new champion: by its run config, or because it materializes only the model."""
    if config.replace_champion is not None:
        return config.replace_champion
    selected = context.run.asset_selection or frozenset(context.job_def.asset_layer.executable_asset_keys)
    return selected <= {dg.AssetKey(name) for name in ("isolation_forest", "alert_thresholds")}
