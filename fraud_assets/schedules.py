"""Jobs and what starts them by the clock."""

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
    description="Landed messages to features, quarantine and predictions; the first training too.",
)
land_files = dg.define_asset_job(
    "land_files",
    selection=dg.AssetSelection.assets("raw_transactions", "fraud_labels"),
    description="Dropped files to the landing tables.",
)
train_model = dg.define_asset_job(
    "train_model",
    selection=dg.AssetSelection.assets("isolation_forest", "alert_thresholds"),
    description="Trains, registers and calibrates a new champion.",
)
maintain_lake = dg.define_asset_job(
    "maintain_lake",
    selection=dg.AssetSelection.assets("lake_maintenance"),
    description="Compaction, checkpoints, vacuum.",
)

training_schedule = dg.ScheduleDefinition(
    name="training_schedule",
    job=train_model,
    cron_schedule="0 3 * * 1",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="A new champion every Monday at 03:00 UTC.",
    run_config={"ops": {"model": {"config": {"skip_too_little_data": True}}}},
)
maintenance_schedule = dg.ScheduleDefinition(
    name="maintenance_schedule",
    job=maintain_lake,
    cron_schedule="*/15 * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Small files are compacted every quarter of an hour.",
)
JOBS = [score_new_transactions, land_files, train_model, maintain_lake]
SCHEDULES = [training_schedule, maintenance_schedule]
