"""Registers models in MLflow and reads the champion at low cost.

Training writes through MLflow's client. Scoring and the sensor read the champion every few seconds. With the default
SQLite registry this reads three rows and one file, and imports neither MLflow (6 s) nor scikit-learn. This module does
not change MLflow's global state, which would leak MLFLOW_TRACKING_URI into the process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from importlib.metadata import version as installed
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fraud_assets.core.schema import FEATURE_VERSION, MODEL_INPUTS
from fraud_assets.core.scoring import ModelVersion
from fraud_assets.errors import FeatureVersionError, ModelRegistryError, NoChampionError, SettingError
from fraud_assets.registry.files import MODEL_FOLDER, TRAIN, ModelRecord, digest, read_model, write_model
from fraud_assets.registry.home import (
    find_local_path,
    find_sqlite_path,
    locate_in_home,
    lock_registry,
    read_rows,
    relocate_registry,
    remove_misnamed_folder,
)

if TYPE_CHECKING:
    import pyarrow as pa
    import treelite
    from mlflow import MlflowClient

    from fraud_assets.settings import Settings

ALIAS = "champion"
KIND_TAG = "mlflow.experimentKind"
MACHINE_LEARNING = "custom_model_development"
"""The kind of an experiment that trains models. The UI of MLflow 3.17 first uses the page that the browser stored."""

_REQUIREMENTS = ("scikit-learn", "skops", "numpy", "pandas")


@dataclass(frozen=True)
class Champion(ModelVersion):
    """The model version that scores, in its treelite form."""

    model: treelite.Model
    feature_version: str


@dataclass(frozen=True)
class TrainingFacts:
    """The facts about a training that the registry records.

    Attributes:
        rows: Number of training rows.
        window_start: Start of the training window (inclusive).
        window_end: End of the training window (exclusive).
        trees: Number of trees.
        seed: Random seed of the sample and of the forest.
        example: A few feature rows.
        metrics: Metrics of the training run.
        window_rows: Number of rows of the window; None if all of them are training rows.
    """

    rows: int
    window_start: datetime
    window_end: datetime
    trees: int
    seed: int
    example: pa.Table
    metrics: Mapping[str, float] = field(default_factory=dict)
    window_rows: int | None = None


# --- Reading the champion --------------------------------------------------------------------------------------


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


def mask_credentials(uri: str) -> str:
    """Returns the URI of a registry without user name and password, for messages."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://…@{parts.hostname}{parts.path}" if parts.username or parts.password else uri


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

    with _translate_errors(settings.mlflow_uri):
        try:
            found = _client(settings).get_model_version_by_alias(settings.model_name, ALIAS)
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
    with TemporaryDirectory() as temporary, _translate_errors(uri):
        _silence_mlflow()
        from mlflow import MlflowClient

        client = MlflowClient(uri, uri)
        recorded = ModelRecord.of(client.get_run(run_id).data.params)
        return read_model(Path(client.download_artifacts(run_id, MODEL_FOLDER, temporary)), recorded), recorded


# --- Registering a model ---------------------------------------------------------------------------------------


def register_model(forest: Any, facts: TrainingFacts, settings: Settings) -> ModelVersion:
    """Tracks a training run, stores its model in both forms and registers it. The alias does not move.

    The scikit-learn form (skops, no pickle) is for analysis with `mlflow.sklearn.load_model("models:/…@champion")`; its
    `-score_samples` equal the platform's scores. The platform scores with the treelite form.

    Args:
        forest: The scikit-learn model.
        facts: The facts to record.
        settings: The settings of the registry.

    Returns:
        The new version.

    Raises:
        ModelRegistryError: The registry cannot be written. Nothing is registered.
    """
    with _translate_errors(settings.mlflow_uri):
        _create_database(settings)
        client = _client(settings)
        run = client.create_run(_experiment(client, settings), run_name=f"{settings.model_name}-{facts.rows}")
        run_id = run.info.run_id
        try:
            source, model_id = _log_run(client, run.info.experiment_id, run_id, forest, facts, settings)
            _registered_model(client, settings.model_name)
            version = client.create_model_version(settings.model_name, source, run_id, model_id=model_id)
        except BaseException:
            client.set_terminated(run_id, "FAILED")
            raise
        client.set_terminated(run_id, "FINISHED")
    return ModelVersion(int(version.version), run_id)


def set_champion(version: int, settings: Settings) -> None:
    """Gives the champion alias to a version. Scoring uses it from now on.

    Raises:
        ModelRegistryError: The registry cannot be written.
    """
    with _translate_errors(settings.mlflow_uri):
        _client(settings).set_registered_model_alias(settings.model_name, ALIAS, str(version))


def _log_run(
    client: MlflowClient, experiment_id: str, run_id: str, forest: Any, facts: TrainingFacts, settings: Settings
) -> tuple[str, str]:
    """Logs parameters, metrics and both forms of the model. Returns the model's location and its id in MLflow."""
    from mlflow.entities import LoggedModelOutput, Metric, Param

    from fraud_assets.core.training import to_treelite

    serialized = to_treelite(forest).serialize_bytes()
    params = {
        "trees": facts.trees,
        "seed": facts.seed,
        "feature_version": FEATURE_VERSION,
        "features": ",".join(MODEL_INPUTS),
        "window_start": facts.window_start.isoformat(),
        "window_end": facts.window_end.isoformat(),
        "rows": facts.rows,
        "window_rows": facts.rows if facts.window_rows is None else facts.window_rows,
    }
    texts = {key: str(value) for key, value in {**params, "model_sha256": digest(serialized)}.items()}
    now = int(datetime.now().astimezone().timestamp() * 1000)
    metrics = [Metric(key, float(value), now, 0) for key, value in facts.metrics.items()]
    client.log_batch(run_id, params=[Param(key, value) for key, value in texts.items()], metrics=metrics)
    logged = client.create_logged_model(
        experiment_id, name=settings.model_name, source_run_id=run_id, params=texts, model_type="IsolationForest"
    )
    with TemporaryDirectory() as temporary:
        sklearn_folder, treelite_folder = Path(temporary) / "sklearn", Path(temporary) / MODEL_FOLDER
        _save_sklearn_form(forest, sklearn_folder, run_id, logged.model_id, facts.example)
        client.log_model_artifacts(logged.model_id, str(sklearn_folder))
        write_model(treelite_folder, serialized, {**params, "features": list(MODEL_INPUTS)})
        client.log_artifacts(run_id, str(treelite_folder), MODEL_FOLDER)
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return logged.artifact_location, logged.model_id


def _save_sklearn_form(forest: Any, folder: Path, run_id: str, model_id: str, rows: pa.Table) -> None:
    """Saves the scikit-learn form of a model to a folder, with a few feature rows as its example."""
    import mlflow.sklearn
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema

    # The signature has the tables' own types, because MLflow rejects integers for a float column.
    example = rows.select(MODEL_INPUTS).to_pandas()
    columns = [ColSpec("long" if kind == "int64" else "double", name) for name, kind in example.dtypes.items()]
    mlflow.sklearn.save_model(
        forest,
        str(folder),
        mlflow_model=Model(run_id=run_id, model_id=model_id),
        serialization_format="skops",
        skops_trusted_types=["sklearn.tree._tree.Tree"],
        signature=ModelSignature(Schema(columns), Schema([ColSpec("long", "prediction")])),
        input_example=example,
        # The requirements are explicit: MLflow's inference imports the model in a new process and adds test tools.
        pip_requirements=[f"{name}=={installed(name)}" for name in _REQUIREMENTS],
    )


def _experiment(client: MlflowClient, settings: Settings) -> str:
    """Returns the id of the experiment, and creates it if it does not exist."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(settings.model_name)
    if found is not None:
        # A kind that a user has chosen stays. A kind that MLflow's page inferred is replaced.
        kind = found.tags.get(KIND_TAG, "")
        if not kind or "infer" in kind:
            client.set_experiment_tag(found.experiment_id, KIND_TAG, MACHINE_LEARNING)
        return found.experiment_id
    location = None
    if find_sqlite_path(settings.mlflow_uri) is not None:
        # Without a location, MLflow writes `mlruns/` into the current folder.
        settings.mlflow_artifacts.mkdir(parents=True, exist_ok=True)
        location = settings.mlflow_artifacts.as_uri()
    try:
        return client.create_experiment(
            settings.model_name, artifact_location=location, tags={KIND_TAG: MACHINE_LEARNING}
        )
    except MlflowException:
        # Another training may have created it meanwhile.
        found = client.get_experiment_by_name(settings.model_name)
        if found is None:
            raise
        return found.experiment_id


def _registered_model(client: MlflowClient, name: str) -> None:
    """Creates the registered model if it does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description="Card-fraud detector; a higher score is more suspicious.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _create_database(settings: Settings) -> None:
    """Creates folder and tables of a SQLite registry, and updates the locations of the default registry.

    One process at a time creates the tables, because MLflow's migrations cannot run concurrently.
    """
    path = find_sqlite_path(settings.mlflow_uri)
    if path is None:
        return
    with lock_registry(path.parent):
        _client(settings).search_experiments(max_results=1)
    relocate_registry(settings)


def _client(settings: Settings) -> MlflowClient:
    _silence_mlflow()
    from mlflow import MlflowClient

    return MlflowClient(settings.mlflow_uri, settings.mlflow_uri)


def _silence_mlflow() -> None:
    """Disables progress bars, migration messages, git hints and usage reports, before MLflow is imported."""
    for name, value in {
        "GIT_PYTHON_REFRESH": "quiet",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
    }.items():
        os.environ.setdefault(name, value)
    for logger in ("alembic", "mlflow"):
        logging.getLogger(logger).setLevel(logging.WARNING)


@contextmanager
def _translate_errors(uri: str) -> Iterator[None]:
    """Translates failures of MLflow to errors whose messages never contain the password of the URI."""
    _silence_mlflow()
    from mlflow.exceptions import MlflowException

    password = urlsplit(uri).password
    try:
        yield
    except (MlflowException, OSError, ImportError) as error:
        cause = " ".join(str(error).split())[:300]
        if password:
            cause = cause.replace(password, "…")
        kind = SettingError if isinstance(error, ImportError) else ModelRegistryError
        raise kind(
            f"The model registry {mask_credentials(uri)} failed: {cause}. Check MLFLOW_TRACKING_URI and FRAUD_HOME."
        ) from error
    finally:
        remove_misnamed_folder(uri)
