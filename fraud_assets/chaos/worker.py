"""Runs one stage in a loop: `python -m fraud_assets.chaos.worker features|scoring|maintenance [--once]`.

The harness starts and kills these processes. Each pass does the same work as a run of the asset. An error of the
platform is logged, and the stage is retried as Dagster's sensor would retry it. Any other exception ends the process,
and the harness reports it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from fraud_assets.errors import FraudAssetsError
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings, load_settings

_PAUSE_SECONDS = 0.2


def run_features(lake: Lake, settings: Settings) -> None:
    """Processes landed messages into features and quarantine."""
    from fraud_assets.stages.features import process_landed

    process_landed(lake, settings)


def run_scoring(lake: Lake, settings: Settings) -> None:
    """Scores pending features."""
    from fraud_assets.stages.scoring import score_pending

    score_pending(lake, settings)


def run_maintenance(lake: Lake, settings: Settings) -> None:
    """Compacts, writes checkpoints, and vacuums files immediately that maintenance usually keeps for a week."""
    from deltalake.exceptions import DeltaError

    from fraud_assets.core.schema import TABLES
    from fraud_assets.lake.table_errors import table_error
    from fraud_assets.operations.maintenance import maintain_lake

    maintain_lake(lake, settings)
    for table in TABLES:
        if lake.exists(table):
            try:
                # A full vacuum would remove the files of commits in progress.
                lake.open(table).vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False, full=False)
            except (DeltaError, OSError) as error:
                raise table_error(lake.uri(table), error) from error


STAGES: dict[str, Callable[[Lake, Settings], None]] = {
    "features": run_features,
    "scoring": run_scoring,
    "maintenance": run_maintenance,
}


def main() -> None:
    """Runs the stage of the first argument once, or until the process is ended."""
    stage, once = STAGES[sys.argv[1]], "--once" in sys.argv
    settings = load_settings()
    lake = Lake.of(settings)
    while True:
        try:
            stage(lake, settings)
        except FraudAssetsError as error:
            sys.stderr.write(f"{error}\n")
            sys.stderr.flush()
        if once:
            return
        time.sleep(_PAUSE_SECONDS)


if __name__ == "__main__":
    main()
