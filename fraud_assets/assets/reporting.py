"""How assets tell a person what they did, and in one sentence that something failed."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterUserCodeProcessError
from dagster._utils.error import SerializableErrorInfo

from fraud_assets.errors import FraudAssetsError, disk_fault


class Refusal(dg.Failure, DagsterUserCodeProcessError):
    """A failure of which Dagster shows the sentence alone, without a stack trace.

    Dagster makes a stack trace of every exception but a `DagsterUserCodeProcessError`, which brings its own.
    """

    def __init__(self, reason: FraudAssetsError) -> None:
        name = type(reason).__name__
        # Not through `super()`: the two parents' constructors do not fit together.
        Exception.__init__(self, str(reason))
        self.__dict__.update(vars(dg.Failure(description=str(reason), metadata={"error": name})))
        self.user_code_process_error_infos = [SerializableErrorInfo(f"{reason}\n", [], name)]


class _RunLogHandler(logging.Handler):
    """Passes the platform's log records on to the log of a run."""

    def __init__(self, log: logging.Logger) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.log(record.levelno, record.getMessage())


@contextmanager
def reporting(context: dg.AssetExecutionContext) -> Iterator[None]:
    """The frame of every asset: its log shows what the platform logs, and a user's mistake is one sentence.

    Raises:
        Refusal: a `FraudAssetsError`, or a fault of the disk, in the body.
    """
    handler = _RunLogHandler(context.log)
    platform = logging.getLogger("fraud_assets")
    level = platform.level
    platform.addHandler(handler)
    platform.setLevel(logging.INFO)
    try:
        yield
    except (FraudAssetsError, OSError) as error:
        reason = disk_fault(error) if isinstance(error, OSError) else error
        if reason is None:
            raise
        raise Refusal(reason) from None
    finally:
        platform.removeHandler(handler)
        platform.setLevel(level)


def materialized(
    context: dg.AssetExecutionContext, name: str, metadata: Mapping[str, Any]
) -> Iterator[dg.MaterializeResult]:
    """Reports a table as written, also where only its sister was asked for and both are written together."""
    if dg.AssetKey(name) in context.selected_asset_keys:
        yield dg.MaterializeResult(asset_key=name, metadata=metadata)
    else:
        context.log_event(dg.AssetMaterialization(name, metadata=metadata))
