"""Reads the champion at low cost.

Scoring and the sensor read the champion every few seconds. With the default SQLite registry this reads three rows and
one file, and imports neither MLflow (6 s) nor scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from fraud_assets.core.schema import FEATURE_VERSION, MODEL_INPUTS
from fraud_assets.core.scoring import ModelVersion
from fraud_assets.errors import FeatureVersionError, ModelRegistryError, NoChampionError
from fraud_assets.registry.client import mask_credentials, open_client, silence_mlflow, translate_errors
from fraud_assets.registry.files import MODEL_FOLDER, TRAIN, ModelRecord, read_model
from fraud_assets.registry.home import find_local_path, find_sqlite_path, locate_in_home, read_rows

if TYPE_CHECKING:
    import treelite

    from fraud_assets.settings import Settings

ALIAS = "champion"


@dataclass(frozen=True)
class Champion(ModelVersion):
    """The model version that scores, in its treelite form."""

    model: treelite.Model
    feature_version: str


def find_champion_version(settings: Settings) -> int:
    """Returns the version number of the champion, without loading the model.

    Raises:
        NoChampionError: No version has the alias yet.
        ModelRegistryError: The registry cannot be read.
    """
    return _resolve(settings)[0]


def read_champion(settings: Settings) -> Champion:
    """Returns the current champion. A version never changes, so its model is loaded once per process.

    Raises:
        NoChampionError: No version has the alias yet.
        FeatureVersionError: The champion was trained on another feature version.
        ModelRegistryError: The registry or the model's files cannot be read.
    """
    version, run_id, artifacts = _resolve(settings)
    if not run_id:
        raise ModelRegistryError(
            f"Version {version} of model {settings.model_name} has no MLflow run, so its files are unknown. "
            f"Give the alias {ALIAS} to a version that the platform registered, or train a new champion ({TRAIN})."
        )
    model, recorded = _load(settings.mlflow_uri, run_id, artifacts)
    if recorded.feature_version != FEATURE_VERSION or recorded.features != MODEL_INPUTS:
        raise FeatureVersionError(
            f"Version {version} of model {settings.model_name} was trained on feature version "
            f"{recorded.feature_version}, but the features have version {FEATURE_VERSION}. Train a new champion "
            f"({TRAIN})."
        )
    return Champion(version, run_id, model, recorded.feature_version)


def _resolve(settings: Settings) -> tuple[int, str, str]:
    """Finds version, run and artifact URI of the champion. The URI is empty if MLflow's client has to look it up."""
    path = find_sqlite_path(settings.mlflow_uri)
    found = _resolve_by_client(settings) if path is None else _resolve_by_sqlite(path, settings)
    if found is None:
        raise NoChampionError(
            f"No version of model {settings.model_name} has the alias {ALIAS} yet. The first model is trained once the "
            f"lake holds {settings.train_min_rows:,} transactions (FRAUD_TRAIN_MIN_ROWS); to train it now, materialize "
            "isolation_forest."
        )
    return found


def _resolve_by_sqlite(path: Path, settings: Settings) -> tuple[int, str, str] | None:
    rows = read_rows(
        path,
        """
        select a.version, v.run_id, r.artifact_uri, e.artifact_location from registered_model_aliases a
        join model_versions v on v.name = a.name and v.version = a.version
        left join runs r on r.run_uuid = v.run_id
        left join experiments e on e.experiment_id = r.experiment_id
        where a.name = ? and a.alias = ?
        """,
        settings.model_name,
        ALIAS,
    )
    if not rows:
        return None
    version, run_id, artifacts, root = rows[0]
    return int(version), run_id or "", locate_in_home(settings, artifacts or "", root or "")


def _resolve_by_client(settings: Settings) -> tuple[int, str, str] | None:
    from mlflow.exceptions import MlflowException

    with translate_errors(settings.mlflow_uri):
        try:
            found = open_client(settings).get_model_version_by_alias(settings.model_name, ALIAS)
        except MlflowException as error:
            # A registry returns INVALID_PARAMETER_VALUE if the model exists and the alias does not.
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
    return int(found.version), found.run_id or "", ""


@lru_cache(maxsize=4)
def _load(uri: str, run_id: str, artifacts: str) -> tuple[treelite.Model, ModelRecord]:
    """Loads the model of a run and its record. The id of a run is unique, so the cache never returns an old model."""
    path, folder = find_sqlite_path(uri), find_local_path(artifacts) if artifacts else None
    if path is not None and folder is not None:
        query = "select key, value from params where run_uuid = ?"
        recorded = ModelRecord.of(dict(read_rows(path, query, run_id)))
        return read_model(folder / MODEL_FOLDER, recorded), recorded
    with TemporaryDirectory() as temporary, translate_errors(uri):
        silence_mlflow()
        from mlflow import MlflowClient

        client = MlflowClient(uri, uri)
        run = client.get_run(run_id)
        _refuse_missing_folder(run.info.artifact_uri, uri)
        recorded = ModelRecord.of(run.data.params)
        return read_model(Path(client.download_artifacts(run_id, MODEL_FOLDER, temporary)), recorded), recorded


def _refuse_missing_folder(artifacts: str, uri: str) -> None:
    """Raises ModelRegistryError if the files of a run are in a local folder that does not exist.

    MLflow's own message does not name the folder. A registry in a database keeps its absolute path.
    """
    folder = find_local_path(artifacts)
    if folder is not None and not folder.exists():
        raise ModelRegistryError(
            f"The model registry {mask_credentials(uri)} keeps the files of the champion in {folder}, which does not "
            f"exist. Restore that folder, or train a new champion ({TRAIN})."
        )
