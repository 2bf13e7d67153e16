"""Settings of the model, its training and the alert budget."""

from __future__ import annotations

from pydantic import Field

from fraud_assets.settings.source import GroupSettings


class ModelSettings(GroupSettings):
    """Settings of the model, its training and the alert budget."""

    mlflow_tracking_uri: str = Field(
        "",
        alias="MLFLOW_TRACKING_URI",
        description="URI of MLflow's tracking server and model registry. If empty, a SQLite database under FRAUD_HOME "
        "is used.",
    )
    model_name: str = Field("isolation_forest", description="Name of the registered model.")
    train_days: int = Field(
        28, ge=1, description="Length of the training window in days. It ends at the newest transaction in the lake."
    )
    train_min_rows: int = Field(1_000, ge=2, description="Minimum rows to train a model.")
    train_max_rows: int = Field(
        1_000_000,
        ge=256,
        description="Maximum rows to train a model. A larger window is sampled uniformly with FRAUD_TRAIN_SEED. Each "
        "tree uses 256 rows, so a larger sample takes memory and does not change the model.",
    )
    train_trees: int = Field(100, ge=1, description="Number of trees of the Isolation Forest.")
    train_seed: int = Field(42, ge=0, description="Random seed of the training and of its sample.")
    alert_budget_per_day: float = Field(
        100.0,
        gt=0,
        description="Number of transactions that the analysts can review per day. It determines the alert threshold.",
    )
    alert_max_rate: float = Field(
        0.05, gt=0, le=1, description="Maximum share of transactions that alert, regardless of the budget."
    )
    alert_budget_warn_factor: float = Field(
        3.0,
        ge=1,
        description="A day with more alerts than this factor times FRAUD_ALERT_BUDGET_PER_DAY causes a warning in the "
        "scoring run, in its metadata and in `fraud-assets doctor`.",
    )
