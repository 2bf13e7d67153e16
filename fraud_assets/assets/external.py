"""External assets at the edge of the asset graph: where data comes from, and where models go."""

from fraud_assets.assets.specs import describe_external
from fraud_assets.registry.client import mask_credentials
from fraud_assets.settings import load_settings_or_defaults

_SETTINGS = load_settings_or_defaults()
_BROKERS = _SETTINGS.kafka_bootstrap_servers or "the configured broker"

EXTERNAL_ASSETS = [
    describe_external(
        "transactions_topic",
        group="sources",
        kinds={"kafka"},
        description="The Kafka topic of transactions (FRAUD_TRANSACTIONS_TOPIC). `fraud-assets land` reads it.",
        location=f"topic {_SETTINGS.transactions_topic} at {_BROKERS}",
    ),
    describe_external(
        "labels_topic",
        group="sources",
        kinds={"kafka"},
        description="The Kafka topic of fraud labels (FRAUD_LABELS_TOPIC). `fraud-assets land` reads it.",
        location=f"topic {_SETTINGS.labels_topic} at {_BROKERS}",
    ),
    describe_external(
        "drop_folder",
        group="sources",
        kinds={"file"},
        description="The folder FRAUD_HOME/incoming. JSON lines, CSV and Parquet files that are dropped here land too.",
        location=str(_SETTINGS.incoming),
    ),
    describe_external(
        "model_registry",
        group="model",
        kinds={"mlflow"},
        description="The MLflow model registry (MLFLOW_TRACKING_URI; default: a SQLite database under FRAUD_HOME). The "
        "alias `champion` marks the version that scores.",
        location=mask_credentials(_SETTINGS.mlflow_uri),
        deps=["isolation_forest"],
    ),
]
