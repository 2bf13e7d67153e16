"""A registry without a champion although the lake holds predictions: it was lost, or the settings name another one."""

from __future__ import annotations

import pyarrow.compute as pc

from fraud_assets.core.schema import fraud_predictions
from fraud_assets.errors import LostRegistryError, NoChampionError
from fraud_assets.lake.log import add_actions
from fraud_assets.lake.tables import Lake, dataset_of
from fraud_assets.registry.files import TRAIN
from fraud_assets.registry.models import ALIAS, Champion, ModelVersion, champion, champion_version, mask_credentials
from fraud_assets.settings import Settings


def load_champion(lake: Lake, settings: Settings) -> Champion:
    """The champion of this moment.

    Raises:
        LostRegistryError: there is none, but the lake holds predictions of one.
        NoChampionError: there is none yet.
        FeatureVersionError: it was trained on another feature version.
        ModelRegistryError: the registry or the model's files cannot be read.
        LakeError: the predictions cannot be read.
    """
    try:
        return champion(settings)
    except NoChampionError as error:
        made = find_last_model(lake)
        if made is None:
            raise
        raise LostRegistryError(_sentence(made, settings)) from error


def describe_lost_registry(lake: Lake, settings: Settings) -> str:
    """The sentence that says so where the registry was lost; empty where it has a champion or never had one.

    Raises:
        ModelRegistryError: the registry cannot be read.
        LakeError: the predictions cannot be read.
    """
    try:
        champion_version(settings)
    except NoChampionError:
        made = find_last_model(lake)
        return _sentence(made, settings) if made else ""
    return ""


def find_last_model(lake: Lake) -> ModelVersion | None:
    """The model of the newest predictions, from the newest data file alone; None where nothing was scored.

    Raises:
        LakeError: the predictions cannot be read.
    """
    if not lake.exists(fraud_predictions):
        return None
    handle = lake.open(fraud_predictions)
    files = add_actions(handle)
    if not files.num_rows:
        return None
    newest = files["path"][pc.index(files["modification_time"], pc.max(files["modification_time"])).as_py()].as_py()
    rows = dataset_of(handle, [newest]).to_table(columns=["scored_at", "model_version", "model_run_id"])
    last = pc.index(rows["scored_at"], pc.max(rows["scored_at"])).as_py()
    return ModelVersion(rows["model_version"][last].as_py(), rows["model_run_id"][last].as_py())


def _sentence(made: ModelVersion, settings: Settings) -> str:
    return (
        f"The model registry {mask_credentials(settings.mlflow_uri)} has no version of model {settings.model_name} with the alias "
        f"{ALIAS}, but the lake holds predictions of version {made.version} (MLflow run {made.run_id}): the registry "
        "was lost, or MLFLOW_TRACKING_URI, FRAUD_HOME or FRAUD_MODEL_NAME points elsewhere. Point them to that "
        f"model's registry, give the alias {ALIAS} to a version, or train a new champion ({TRAIN})."
    )
