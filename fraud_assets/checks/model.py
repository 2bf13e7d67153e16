"""Check `champion`: the champion can be read and scores the present features."""

import dagster as dg

from fraud_assets.assets.reporting import reporting
from fraud_assets.resources import PlatformResource


@dg.asset_check(
    asset="isolation_forest",
    name="champion",
    description="A champion exists, its files can be read, and it has a threshold and the present features.",
)
def model_checks(context: dg.AssetCheckExecutionContext, platform: PlatformResource) -> dg.AssetCheckResult:
    """Loads the champion as scoring does."""
    from fraud_assets.core.schema import FEATURE_VERSION, MODEL_INPUTS
    from fraud_assets.errors import FraudAssetsError
    from fraud_assets.stages.scoring import load_scorer

    with reporting(context):
        settings, lake = platform.settings(), platform.lake()
        try:
            scorer = load_scorer(lake, settings)
        except FraudAssetsError as error:
            return dg.AssetCheckResult(passed=False, description=str(error))
    return dg.AssetCheckResult(
        passed=True,
        metadata={
            "model_version": scorer.model_version.version,
            "threshold": round(scorer.threshold, 3),
            "features": len(MODEL_INPUTS),
            "feature_version": FEATURE_VERSION,
        },
    )
