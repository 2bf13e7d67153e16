"""Shared parts of the assets: logging to the run, failures as one message, and reports of written tables."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster._core.errors import DagsterUserCodeProcessError
from dagster._utils.error import SerializableErrorInfo

from fraud_assets.asset_metadata import count_table_rows
from fraud_assets.errors import FraudAssetsError, convert_disk_error

if TYPE_CHECKING:
    from fraud_assets.core.schema import Table
    from fraud_assets.lake.tables import Lake


SUMMARY_TAG = "summary"


class PlatformFailure(dg.Failure, DagsterUserCodeProcessError):
    """A run failure that Dagster shows as its message only, without a stack trace.

    Dagster makes a stack trace of every exception except a `DagsterUserCodeProcessError`, which carries its own.
    """

    def __init__(self, reason: FraudAssetsError) -> None:
        name = type(reason).__name__
        # `super().__init__` cannot be used, because the constructors of the two parents are incompatible.
        Exception.__init__(self, str(reason))
        self.__dict__.update(vars(dg.Failure(description=str(reason), metadata={"error": name})))
        self.user_code_process_error_infos = [SerializableErrorInfo(f"{reason}\n", [], name)]


class _RunLogHandler(logging.Handler):
    """Forwards the platform's log records to the log of a run."""

    def __init__(self, log: logging.Logger) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.log(record.levelno, record.getMessage())


@contextmanager
def reporting(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> Iterator[None]:
    """Wraps every asset and check: forwards the platform's log to the run and reports an error as one message.

    Raises:
        PlatformFailure: the body raised a `FraudAssetsError`, or an `OSError` of the disk.
    """
    handler = _RunLogHandler(context.log)
    platform = logging.getLogger("fraud_assets")
    level = platform.level
    platform.addHandler(handler)
    platform.setLevel(logging.INFO)
    try:
        yield
    except (FraudAssetsError, OSError) as error:
        reason = convert_disk_error(error) if isinstance(error, OSError) else error
        if reason is None:
            raise
        raise PlatformFailure(reason) from None
    finally:
        platform.removeHandler(handler)
        platform.setLevel(level)


def is_selected(context: dg.AssetExecutionContext, name: str) -> bool:
    """Returns whether the run materializes an asset."""
    return dg.AssetKey(name) in context.selected_asset_keys


def report_table(
    context: dg.AssetExecutionContext, lake: Lake, name: str, metadata: Mapping[str, Any]
) -> Iterator[dg.MaterializeResult]:
    """Reports an asset as written, even if only the other asset of the same multi-asset is selected.

    If the asset is a table, its number of rows is added to the metadata.
    """
    metadata = {**metadata, **count_table_rows(lake, name)}
    if is_selected(context, name):
        yield dg.MaterializeResult(asset_key=name, metadata=metadata)
    else:
        context.log_event(dg.AssetMaterialization(name, metadata=metadata))


def summarize_run(context: dg.AssetExecutionContext, text: str) -> None:
    """Puts a text before the earlier texts of the tag `summary` of the run. The list of runs shows its beginning."""
    run = context.instance.get_run_by_id(context.run.run_id)
    earlier = run.tags.get(SUMMARY_TAG) if run else None
    context.instance.add_run_tags(context.run.run_id, {SUMMARY_TAG: f"{text}, {earlier}" if earlier else text})


def warn_empty_range(
    context: dg.AssetExecutionContext, lake: Lake, table: Table, period: tuple[datetime, datetime], purpose: str
) -> str:
    """Logs a warning that a range of `tx_datetime` has no rows, and returns the warning for the metadata.

    Args:
        context: the context of the run.
        lake: the lake that contains the table.
        table: the table that was searched.
        period: start and end of the range.
        purpose: the intended use of the rows, for example "to recompute".

    Raises:
        LakeError: the table cannot be read.
    """
    from fraud_assets.lake.held_days import describe_empty_range

    note = describe_empty_range(lake, table, *period, purpose)
    context.log.warning(note)
    return note
