"""What the harness lets run and kills: `python -m fraud_assets.chaos.worker features|scoring|maintenance [--once]`.

Each does again and again what a run of the asset does. A fault that a person could act upon is said and tried
again, as Dagster's sensor would; any other ends the process, and the harness reports it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from fraud_assets.errors import FraudAssetsError
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings, load_settings

_PAUSE_SECONDS = 0.2


def features(lake: Lake, settings: Settings) -> None:
    """Landed messages to features and quarantine."""
    from fraud_assets.stages.features import process_landed

    process_landed(lake, settings)


def scoring(lake: Lake, settings: Settings) -> None:
    """Features to predictions."""
    from fraud_assets.stages.scoring import score_pending

    score_pending(lake, settings)


def maintenance(lake: Lake, settings: Settings) -> None:
    """Compaction, checkpoints and a vacuum that takes at once what it would else take after a week."""
    from deltalake.exceptions import DeltaError

    from fraud_assets.core.schema import TABLES
    from fraud_assets.lake.table_errors import table_error
    from fraud_assets.operations.maintenance import maintain_lake

    maintain_lake(lake, settings)
    for table in TABLES:
        if lake.exists(table):
            try:
                # Not `full`: that would take the files of commits that are under way.
                lake.open(table).vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False, full=False)
            except (DeltaError, OSError) as error:
                raise table_error(lake.uri(table), error) from error


WORK: dict[str, Callable[[Lake, Settings], None]] = {
    "features": features,
    "scoring": scoring,
    "maintenance": maintenance,
}


def main() -> None:
    """Runs one kind of work until it is ended, or once."""
    work, once = WORK[sys.argv[1]], "--once" in sys.argv
    settings = load_settings()
    lake = Lake.of(settings)
    while True:
        try:
            work(lake, settings)
        except FraudAssetsError as error:
            sys.stderr.write(f"{error}\n")
            sys.stderr.flush()
        if once:
            return
        time.sleep(_PAUSE_SECONDS)


if __name__ == "__main__":
    main()
