"""External assets at the edge of the asset graph: where data comes from, and where models go."""

import dagster as dg

from fraud_assets.assets.specs import OWNERS, describe_source

SOURCES = [
    describe_source(
        "transactions_topic",
        kinds={"kafka"},
        description="The Kafka topic of transactions (FRAUD_TRANSACTIONS_TOPIC). `fraud-assets land` reads it.",
    ),
    describe_source(
        "labels_topic",
        kinds={"kafka"},
        description="The Kafka topic of fraud labels (FRAUD_LABELS_TOPIC). `fraud-assets land` reads it.",
    ),
    describe_source(
        "drop_folder",
        kinds={"file"},
        description="The folder FRAUD_HOME/incoming. JSON lines, CSV and Parquet files that are dropped here land too.",
    ),
]

MODEL_REGISTRY = dg.AssetSpec(
    "model_registry",
    deps=["isolation_forest"],
    group_name="model",
    kinds={"mlflow"},
    owners=OWNERS,
    description="The MLflow model registry (MLFLOW_TRACKING_URI; default: a SQLite database under FRAUD_HOME). The "
    "alias `champion` marks the version that scores.",
)

EXTERNAL_ASSETS = [*SOURCES, MODEL_REGISTRY]
