"""The model, its training and the alert budget."""

from __future__ import annotations

from pydantic import Field

from fraud_assets.settings.source import GroupSettings


class ModelSettings(GroupSettings):
    """The model, its training and the alert budget."""

    mlflow_tracking_uri: str = Field(
        "",
        alias="MLFLOW_TRACKING_URI",
        description="MLflow tracking and registry; empty means SQLite under FRAUD_HOME.",
    )
    model_name: str = Field("isolation_forest", description="Name of the registered model.")
    train_days: int = Field(28, ge=1, description="Length of the training window: the last days in the lake.")
    train_min_rows: int = Field(1_000, ge=2, description="Fewest rows that a model is trained on.")
    train_max_rows: int = Field(
        1_000_000,
        ge=256,
        description="Rows of a larger training window that are drawn to train on, uniformly and by FRAUD_TRAIN_SEED; "
        "a tree sees 256 of them, so that more take memory and change nothing.",
    )
    train_trees: int = Field(100, ge=1, description="Trees of the Isolation Forest.")
    train_seed: int = Field(42, ge=0, description="Random seed of the training and of its sample.")
    alert_budget_per_day: float = Field(
        100.0, gt=0, description="Transactions per day that the analysts can review; sets the threshold."
    )
    alert_max_rate: float = Field(
        0.05, gt=0, le=1, description="Largest share of the transactions that may alert, whatever the budget."
    )
    alert_budget_warn_factor: float = Field(
        3.0,
        ge=1,
        description="A day with more alerts than this many times FRAUD_ALERT_BUDGET_PER_DAY is a warning, in the "
        "scoring run, its metadata and `fraud-assets doctor`.",
    )
