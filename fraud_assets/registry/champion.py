"""Loads the champion, and detects a lost registry: one without a champion although the lake holds predictions."""

from __future__ import annotations

import pyarrow.compute as pc

from fraud_assets.core.schema import fraud_predictions
from fraud_assets.errors import LostRegistryError, NoChampionError
from fraud_assets.lake.log import add_actions
from fraud_assets.lake.tables import Lake, open_dataset
from fraud_assets.registry.client import mask_credentials
from fraud_assets.registry.files import TRAIN
from fraud_assets.registry.models import (
    ALIAS,
    Champion,
    ModelVersion,
    find_champion_version,
    read_champion,
)
from fraud_assets.settings import Settings


def load_champion(lake: Lake, settings: Settings) -> Champion:
    """Loads the current champion.

    Raises:
        LostRegistryError: No champion exists, but the lake holds predictions of one.
        NoChampionError: No champion exists yet.
        FeatureVersionError: The champion was trained on another feature version.
        ModelRegistryError: The registry or the model's files cannot be read.
        LakeError: The predictions cannot be read.
    """
    try:
        return read_champion(settings)
    except NoChampionError as error:
        last = find_last_model(lake)
        if last is None:
            raise
        raise LostRegistryError(_describe(last, settings)) from error


def describe_lost_registry(lake: Lake, settings: Settings) -> str:
    """Describes a lost registry. Returns an empty text if the registry has a champion or never had one.

    Raises:
        ModelRegistryError: The registry cannot be read.
        LakeError: The predictions cannot be read.
    """
    try:
        find_champion_version(settings)
    except NoChampionError:
        last = find_last_model(lake)
        return _describe(last, settings) if last else ""
    return ""


def find_last_model(lake: Lake) -> ModelVersion | None:
    """Finds the model of the newest predictions; it reads only the newest data file. Returns None without predictions.

    Raises:
        LakeError: The predictions cannot be read.
    """
    if not lake.exists(fraud_predictions):
        return None
    handle = lake.open(fraud_predictions)
    files = add_actions(handle)
    if not files.num_rows:
        return None
    newest = files["path"][pc.index(files["modification_time"], pc.max(files["modification_time"])).as_py()].as_py()
    rows = open_dataset(handle, [newest]).to_table(columns=["scored_at", "model_version", "model_run_id"])
    last = pc.index(rows["scored_at"], pc.max(rows["scored_at"])).as_py()
    return ModelVersion(rows["model_version"][last].as_py(), rows["model_run_id"][last].as_py())


def _describe(last: ModelVersion, settings: Settings) -> str:
    return (
        f"The model registry {mask_credentials(settings.mlflow_uri)} has no version of model {settings.model_name} "
        f"with the alias {ALIAS}, but the lake holds predictions of version {last.version} (MLflow run {last.run_id}). "
        "The registry was lost, or MLFLOW_TRACKING_URI, FRAUD_HOME or FRAUD_MODEL_NAME points to another. Point them "
        f"to that model's registry, give the alias {ALIAS} to a version, or train a new champion ({TRAIN})."
    )
