"""Runs all checks at the same time, independently of each other and within a time limit."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Mapping

from fraud_assets.doctor.alerts import check_alerts
from fraud_assets.doctor.files import check_files
from fraud_assets.doctor.finding import Finding, fail, fail_from_error
from fraud_assets.doctor.installation import check_home, check_settings, check_versions
from fraud_assets.doctor.kafka import check_broker, check_landers, check_schema_registry
from fraud_assets.doctor.lake import check_lake, check_quarantine, check_reconciliation, check_registry
from fraud_assets.doctor.orchestrator import check_dagster
from fraud_assets.doctor.spark import check_spark
from fraud_assets.errors import FraudAssetsError
from fraud_assets.settings import Settings

Check = Callable[[Settings], list[Finding]]

CHECKS: Mapping[str, Check] = {
    "settings": check_settings,
    "versions": check_versions,
    "home": check_home,
    "broker": check_broker,
    "schema registry": check_schema_registry,
    "landers": check_landers,
    "drop folder": check_files,
    "lake": check_lake,
    "reconciliation": check_reconciliation,
    "quarantine": check_quarantine,
    "registry": check_registry,
    "alerts": check_alerts,
    "spark": check_spark,
    "dagster": check_dagster,
}
"""All checks, in the order of the report."""

TIMEOUT_SECONDS = 15.0
_ANSWER_SECONDS = 4.0


def run_checks(
    settings: Settings, checks: Mapping[str, Check] = CHECKS, timeout: float = TIMEOUT_SECONDS
) -> list[Finding]:
    """Runs the checks at the same time.

    If a check raises an exception or has not ended after `timeout` seconds, its finding reports that. The findings of
    other checks are not affected.

    Args:
        settings: the settings to check.
        checks: the checks to run, by name.
        timeout: time limit for all checks together, in seconds.

    Returns:
        The findings, in the order of `checks`.
    """
    quick = settings.model_copy(
        update={
            "kafka_timeout_seconds": min(settings.kafka_timeout_seconds, _ANSWER_SECONDS),
            "lake_timeout_seconds": min(settings.lake_timeout_seconds, _ANSWER_SECONDS),
        }
    )
    results: dict[str, list[Finding]] = {}

    def run(name: str, check: Check) -> None:
        # `check_settings` shows the configured timeouts. All other checks use short timeouts.
        results[name] = _run_safely(name, check, settings if check is check_settings else quick)

    _import_libraries()
    # The threads are daemons because a check that hangs must not keep the process from ending.
    threads = [threading.Thread(target=run, args=item, name=f"check {item[0]}", daemon=True) for item in checks.items()]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = f"no answer within {timeout:g} s"
    return [
        finding
        for name in checks
        for finding in results.get(
            name, [fail(name, late, "Check whether the service behind it is overloaded or unreachable.")]
        )
    ]


def _import_libraries() -> None:
    """Imports the libraries that several checks use. Threads that import one at the same time can see a part of it.

    The time that the imports take does not count against the time limit.
    """
    for library in ("sqlalchemy.orm", "dagster", "mlflow"):
        importlib.import_module(library)


def _run_safely(name: str, check: Check, settings: Settings) -> list[Finding]:
    try:
        return check(settings)
    except FraudAssetsError as error:
        return [fail_from_error(name, error)]
    # A bug in one check must not hide the findings of the others or print a stack trace.
    except Exception as error:  # noqa: BLE001
        cause = " ".join(str(error).split())[:200]
        return [fail(name, f"could not be checked ({type(error).__name__}: {cause})", "Report this line as a bug.")]
