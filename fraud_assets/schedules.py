"""Defines the jobs, and the schedules that start two of them."""

import dagster as dg

score_new_transactions = dg.define_asset_job(
    "score_new_transactions",
    selection=dg.AssetSelection.assets(
        "transaction_features",
        "quarantined_transactions",
        "isolation_forest",
        "alert_thresholds",
        "fraud_predictions",
    ),
    description="Computes features of landed messages, quarantines invalid ones and scores the rest. It also trains "
    "the first model. `new_files_sensor` starts it for the assets that have pending work.",
)
land_files = dg.define_asset_job(
    "land_files",
    selection=dg.AssetSelection.assets("raw_transactions", "fraud_labels"),
    description="Lands the files of the drop folder into `raw_transactions` and `fraud_labels`. "
    "`dropped_files_sensor` starts it. If you start it yourself, it lands the Kafka topics too.",
)
train_model = dg.define_asset_job(
    "train_model",
    selection=dg.AssetSelection.assets("isolation_forest", "alert_thresholds"),
    description="Trains an Isolation Forest, registers it in MLflow, sets its alert threshold and makes it champion.",
)
maintain_lake = dg.define_asset_job(
    "maintain_lake",
    selection=dg.AssetSelection.assets("lake_maintenance"),
    description="Compacts small files, writes checkpoints, removes unused files, and applies the retention of rows and "
    "of runs.",
)

training_schedule = dg.ScheduleDefinition(
    name="training_schedule",
    job=train_model,
    cron_schedule="0 3 * * 1",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Trains a new champion every Monday at 03:00 UTC. It is skipped if there is too little data.",
    run_config={"ops": {"model": {"config": {"skip_too_little_data": True}}}},
)
maintenance_schedule = dg.ScheduleDefinition(
    name="maintenance_schedule",
    job=maintain_lake,
    cron_schedule="*/15 * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Maintains the tables and the run history every 15 minutes.",
)
JOBS = [score_new_transactions, land_files, train_model, maintain_lake]
SCHEDULES = [training_schedule, maintenance_schedule]
