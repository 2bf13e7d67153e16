"""Converts reports to metadata for the web UI: plain numbers, which Dagster plots, and tables for reading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

if TYPE_CHECKING:
    from fraud_assets.engines.landing_report import LandingReport
    from fraud_assets.lake.tables import Lake
    from fraud_assets.operations.maintenance import MaintenanceReport
    from fraud_assets.settings import Settings
    from fraud_assets.stages.calibration import CalibrationReport
    from fraud_assets.stages.features import FeatureReport
    from fraud_assets.stages.score_histogram import ScoreHistogram
    from fraud_assets.stages.scoring import ScoringReport
    from fraud_assets.stages.training import TrainingReport

Metadata = dict[str, Any]
_BAR_CHARACTERS = 30


def count_table_rows(lake: Lake, name: str) -> Metadata:
    """Returns the metadata with the number of rows of a table; empty if there is no such table."""
    from fraud_assets.core.schema import TABLES
    from fraud_assets.lake.log import read_row_count

    table = next((table for table in TABLES if table.name == name), None)
    handle = lake.find(table) if table else None
    return {} if handle is None else {"dagster/row_count": read_row_count(handle)}


def describe_landing(report: LandingReport) -> Metadata:
    """Describes what a landing added to a table."""
    values: Metadata = {"rows_added": report.rows, "bytes_added": report.bytes, "seconds": _round(report.seconds)}
    if report.lag:
        values["messages_waiting"] = sum(report.lag.values())
    if report.quarantined:
        values["labels_quarantined"] = report.quarantined
    if report.offsets:
        values["partitions"] = _make_table(
            {"partition": name, "last_offset": offset, "waiting": report.lag.get(name, 0)}
            for name, offset in sorted(report.offsets.items())
        )
    for name, column, entries in (
        ("files_landed", "rows", report.files),
        ("files_failed", "reason", report.failed),
        ("files_stuck", "reason", report.stuck),
    ):
        if entries:
            values[name] = _make_table({"file": file, column: value} for file, value in entries.items())
    return values


def describe_features(report: FeatureReport) -> Metadata:
    """Describes the features of a run."""
    return {
        "rows_added": report.features,
        "messages_processed": report.landed,
        "batches": report.batches,
        "seconds": _round(report.seconds),
    }


def describe_quarantine(report: FeatureReport) -> Metadata:
    """Describes the quarantine of a run, with a plot and a chart of its reasons."""
    values: Metadata = {
        "rows_added": report.quarantined + report.duplicates,
        "messages_processed": report.landed,
        "duplicates": report.duplicates,
        "quarantine_rate": round(report.quarantined / report.landed, 4) if report.landed else 0.0,
        **{f"reason/{reason}": count for reason, count in report.reasons.items()},
    }
    if report.reasons:
        values["reasons"] = dg.MetadataValue.md(_draw_bars(report.reasons))
    return values


def describe_training(report: TrainingReport, settings: Settings) -> Metadata:
    """Describes a trained model, with a link to its MLflow run if the registry is a server."""
    return {
        "model_version": report.version,
        "mlflow_run": _link_run(report.calibration.model_run_id, settings),
        "rows": report.rows,
        "rows_in_window": report.window_rows,
        "trees": report.trees,
        "seed": report.seed,
        "window_start": dg.MetadataValue.timestamp(report.window_start),
        "window_end": dg.MetadataValue.timestamp(report.window_end),
        "seconds": _round(report.seconds),
    }


def describe_calibration(report: CalibrationReport) -> Metadata:
    """Describes a threshold and its effect on the traffic of the calibration window."""
    return {
        "model_version": report.model_version,
        "threshold": _round(report.threshold),
        "budget_per_day": report.budget_per_day,
        "alerts_per_day": round(report.alerts_per_day, 1),
        "alert_rate": round(report.alert_rate, 5),
        "calibration_rows": report.rows,
        "calibration_start": dg.MetadataValue.timestamp(report.window_start),
        "calibration_end": dg.MetadataValue.timestamp(report.window_end),
    }


def describe_scoring(report: ScoringReport, histogram: ScoreHistogram | None) -> Metadata:
    """Describes the predictions of a run. A run without rows shows no rate and no model, so plots show no zero."""
    values: Metadata = {"rows_added": report.rows, "alerts": report.alerts, "seconds": _round(report.seconds)}
    if report.rows:
        values["alert_rate"] = round(report.alert_rate, 5)
    if report.model:
        values["model_version"] = report.model.version
    if report.busiest:
        values |= {"busiest_day": report.busiest.day.isoformat(), "alerts_on_busiest_day": report.busiest.alerts}
    if histogram:
        title = f"Scores of {histogram.day} (threshold {histogram.threshold:.3f})"
        values["score_histogram"] = dg.MetadataValue.md(f"**{title}**\n\n{_draw_bars(histogram.counts)}")
    return values


def describe_maintenance(reports: Mapping[str, MaintenanceReport], runs_deleted: int, retried: int) -> Metadata:
    """Describes a maintenance: totals, which Dagster plots, and the figures of each table."""
    return {
        "files": sum(report.files_after for report in reports.values()),
        "files_removed": sum(report.files_removed for report in reports.values()),
        "rows_retired": sum(report.rows_retired for report in reports.values()),
        "runs_deleted": runs_deleted,
        "retried_messages_landed": retried,
        "seconds": _round(sum(report.seconds for report in reports.values())),
        "tables": _make_table({"table": name, **report.metadata()} for name, report in reports.items()),
    }


def _link_run(run_id: str, settings: Settings) -> dg.MetadataValue[Any]:
    uri = settings.mlflow_tracking_uri.rstrip("/")
    if uri.startswith(("http://", "https://")):
        return dg.MetadataValue.url(f"{uri}/#/runs/{run_id}")
    return dg.MetadataValue.text(run_id)


def _make_table(rows: Any) -> dg.MetadataValue[Any]:
    records = [dg.TableRecord(dict(row)) for row in rows]
    columns = list(records[0].data) if records else ["table"]
    schema = dg.TableSchema(columns=[dg.TableColumn(name, "string") for name in columns])
    return dg.MetadataValue.table(records, schema=schema)


def _draw_bars(counts: Mapping[str, int]) -> str:
    """Returns a Markdown table with a bar for each count."""
    largest = max(counts.values(), default=0) or 1
    lines = [
        f"| {name} | {count:,} | `{'█' * max(round(count / largest * _BAR_CHARACTERS), 1 if count else 0)}` |"
        for name, count in counts.items()
    ]
    return "\n".join(["| | count | |", "| --- | ---: | --- |", *lines])


def _round(value: float) -> float:
    return round(value, 3)
