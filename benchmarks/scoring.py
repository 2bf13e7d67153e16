"""Compares scoring between Delta tables with treelite and scikit-learn alone: python benchmarks/scoring.py [--quick]"""

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import _lakes as lakes

from fraud_assets.core.schema import MODEL_INPUTS, fraud_predictions, transaction_features
from fraud_assets.core.scoring import to_matrix
from fraud_assets.core.training import fit, score_samples
from fraud_assets.lake.tables import Lake, open_dataset
from fraud_assets.registry.models import read_champion
from fraud_assets.settings import load_settings
from fraud_assets.stages.features import process_landed
from fraud_assets.stages.scoring import score_pending
from fraud_assets.stages.training import train

SAMPLE = 100_000


def main() -> None:
    import treelite.gtil

    quick = "--quick" in sys.argv
    files = lakes.handbook_files()[: 1 if quick else None]
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(home=Path(folder), mlflow_tracking_uri="")
        lake = Lake.of(settings)
        lakes.log_progress("computing features and training a champion")
        rows = lakes.land_handbook(lake, files)
        process_landed(lake, settings)
        train(lake, settings)
        features = open_dataset(lake.open(transaction_features)).to_table(columns=list(MODEL_INPUTS))
        inputs, model = to_matrix(features), read_champion(settings).model
        threads = len(os.sched_getaffinity(0))
        used: dict[str, list[float]] = {"stage": [], "alone": []}

        def stage() -> float:
            shutil.rmtree(Path(settings.lake) / fraud_predictions.name, ignore_errors=True)
            cpu = time.process_time()
            spent = lakes.seconds(lambda: score_pending(lake, settings))
            used["stage"].append(time.process_time() - cpu)
            return spent

        def alone() -> float:
            cpu = time.process_time()
            spent = lakes.seconds(lambda: treelite.gtil.predict(model, inputs, nthread=threads))
            used["alone"].append(time.process_time() - cpu)
            return spent

        sample = features.slice(0, SAMPLE)
        forest = fit(features.slice(0, 300_000), settings.train_trees, settings.train_seed)

        def scikit_learn() -> float:
            return lakes.seconds(lambda: score_samples(forest, sample)) * rows / sample.num_rows

        treelite.gtil.predict(model, inputs[:1000], nthread=threads)
        wall = lakes.alternately(2 if quick else 3, stage=stage, alone=alone, scikit_learn=scikit_learn)
    cpu = {name: min(values) for name, values in used.items()}
    ratio = wall["alone"] / wall["stage"]
    print(
        f"Scoring of {rows:,} handbook transactions with {settings.train_trees} trees "
        "(Delta in, scores, alerts, Delta out)"
    )
    print(
        f"  reaches {ratio:.2f} of the speed of treelite alone on a matrix in memory "
        f"({lakes.describe_aim(ratio, 0.8, least=True)});"
    )
    print(f"  by CPU time, which other load affects less: {cpu['alone'] / cpu['stage']:.2f}.")
    print(
        f"  It is {wall['scikit_learn'] / wall['stage']:.1f} times as fast as scikit-learn's "
        f"score_samples alone ({SAMPLE:,} rows of it)."
    )


if __name__ == "__main__":
    main()
