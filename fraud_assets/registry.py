"""The model registry: MLflow, with a cheap way to the champion.

Training writes through MLflow's client. Scoring and the sensor ask for the champion every few seconds: for
the default SQLite registry that reads three rows and one file, and imports neither MLflow (6 s) nor
scikit-learn. Nothing here touches MLflow's global state, which would leak MLFLOW_TRACKING_URI into the process.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from importlib.metadata import version as installed
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from fraud_assets.core.schema import FEATURE_VERSION, MODEL_INPUTS
from fraud_assets.errors import FraudAssetsError, NoChampionError, SettingError

if TYPE_CHECKING:
    import pyarrow as pa
    import treelite
    from mlflow import MlflowClient

    from fraud_assets.settings import Settings

ALIAS = "champion"
MODEL_FOLDER = "treelite"
MODEL_FILE = "model.tl"
FACTS_FILE = "model.json"
_REQUIREMENTS = ("scikit-learn", "skops", "numpy", "pandas")
_SQLITE = "sqlite:///"
_LOCK_SECONDS = 30.0


class RegistryError(FraudAssetsError):
    """The registry cannot be read or written."""


class FeatureVersionError(FraudAssetsError):
    """The champion was trained on features of another meaning."""


@dataclass(frozen=True)
class Champion:
    """The model version that scores: `version` of FRAUD_MODEL_NAME, in its treelite form."""

    version: int
    model: treelite.Model
    feature_version: str


@dataclass(frozen=True)
class TrainingFacts:
    """What a model was trained on: `rows` of the `window_rows` (None: all) of a half-open window.

    `example` is a few feature rows; `seed` that of the sample and of the forest.
    """

    rows: int
    window_start: datetime
    window_end: datetime
    trees: int
    seed: int
    example: pa.Table
    metrics: Mapping[str, float] = field(default_factory=dict)
    window_rows: int | None = None


# --- The champion, cheaply -------------------------------------------------------------------------------------


def champion_version(settings: Settings) -> int:
    """Version number of the champion; the model is not loaded.

    Raises:
        NoChampionError: no version carries the alias yet.
        RegistryError: the registry cannot be read.
    """
    return _resolve(settings)[0]


def champion(settings: Settings) -> Champion:
    """The champion of this moment. A version never changes, so its model is loaded once a process.

    Raises:
        NoChampionError: no version carries the alias yet.
        FeatureVersionError: it was trained on another feature version.
        RegistryError: the registry or the model's files cannot be read.
    """
    version, run_id, artifacts = _resolve(settings)
    model, feature_version, features = _load(settings.mlflow_uri, run_id, artifacts)
    if feature_version != FEATURE_VERSION or features != MODEL_INPUTS:
        raise FeatureVersionError(
            f"Version {version} of model {settings.model_name} was trained on feature version {feature_version}, the "
            f"features are of version {FEATURE_VERSION}: train a new champion "
            "(dagster asset materialize -m fraud_assets.definitions --select isolation_forest,alert_thresholds)."
        )
    return Champion(version, model, feature_version)


def _resolve(settings: Settings) -> tuple[int, str, str]:
    """Version, run and artifact URI of the champion; the URI is empty where the client is to look it up."""
    path = sqlite_path(settings.mlflow_uri)
    found = _resolve_by_client(settings) if path is None else _resolve_by_sqlite(path, settings.model_name)
    if found is None:
        raise NoChampionError(
            f"No version of model {settings.model_name} has the alias {ALIAS} yet: it is trained once the lake holds "
            f"{settings.train_min_rows:,} transactions (FRAUD_TRAIN_MIN_ROWS), or when isolation_forest is run."
        )
    return found


def sqlite_path(uri: str) -> Path | None:
    """The database file of a SQLite registry, None for any other URI."""
    return Path(unquote(uri.removeprefix(_SQLITE).split("?", 1)[0])) if uri.startswith(_SQLITE) else None


def _resolve_by_sqlite(path: Path, name: str) -> tuple[int, str, str] | None:
    if not path.exists():
        return None
    try:
        uri = f"file:{quote(str(path.absolute()))}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=_LOCK_SECONDS)) as connection:
            rows = connection.execute(
                """
                select a.version, v.run_id, r.artifact_uri from registered_model_aliases a
                join model_versions v on v.name = a.name and v.version = a.version
                left join runs r on r.run_uuid = v.run_id
                where a.name = ? and a.alias = ?
                """,
                (name, ALIAS),
            ).fetchall()
    except sqlite3.Error as error:
        if "no such table" in str(error):
            return None  # MLflow is creating the database at this moment
        raise RegistryError(
            f"The model registry {path} cannot be read: {error}. Check the file, or FRAUD_HOME and MLFLOW_TRACKING_URI."
        ) from error
    if not rows:
        return None
    version, run_id, artifacts = rows[0]
    return int(version), run_id or "", artifacts or ""


def _resolve_by_client(settings: Settings) -> tuple[int, str, str] | None:
    from mlflow.exceptions import MlflowException

    with _words(settings):
        try:
            found = _client(settings).get_model_version_by_alias(settings.model_name, ALIAS)
        except MlflowException as error:
            # A registry says INVALID_PARAMETER_VALUE where the model exists and the alias does not.
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
    return int(found.version), found.run_id or "", ""


@lru_cache(maxsize=4)
def _load(uri: str, run_id: str, artifacts: str) -> tuple[treelite.Model, str, tuple[str, ...]]:
    """Model, feature version and inputs of a run; the run's id is unique, so that nothing stale is given."""
    import treelite

    scheme = urlsplit(artifacts).scheme
    if artifacts and scheme in ("", "file"):
        folder = Path(unquote(urlsplit(artifacts).path) if scheme else artifacts) / MODEL_FOLDER
        return _read(folder, treelite)
    with TemporaryDirectory() as temporary, _words_of(uri):
        _quiet()
        from mlflow import MlflowClient

        return _read(Path(MlflowClient(uri, uri).download_artifacts(run_id, MODEL_FOLDER, temporary)), treelite)


def _read(folder: Path, treelite: Any) -> tuple[treelite.Model, str, tuple[str, ...]]:
    try:
        facts = json.loads((folder / FACTS_FILE).read_text())
        model = treelite.Model.deserialize(str(folder / MODEL_FILE))
        return model, facts["feature_version"], tuple(facts["features"])
    except (OSError, ValueError, KeyError, treelite.TreeliteError) as error:
        raise RegistryError(
            f"The champion's files in {folder} cannot be read: {error}. Give the alias {ALIAS} to a version that the "
            "platform registered, or train a new one."
        ) from error


# --- Registering, through MLflow -------------------------------------------------------------------------------


def register(forest: Any, facts: TrainingFacts, settings: Settings) -> int:
    """Track a training run, store its model in both forms and register it; gives the new version.

    The scikit-learn form (skops, no pickle) is for people: `mlflow.sklearn.load_model("models:/…@champion")`; its
    `-score_samples` are the platform's scores. The treelite form is what scores. The alias does not move.

    Raises:
        RegistryError: the registry cannot be written; nothing is registered then.
    """
    with _words(settings):
        _create_database(settings)
        client = _client(settings)
        run = client.create_run(_experiment(client, settings), run_name=f"{settings.model_name}-{facts.rows}")
        run_id = run.info.run_id
        try:
            source, model_id = _log(client, run.info.experiment_id, run_id, forest, facts, settings)
            _registered_model(client, settings.model_name)
            version = client.create_model_version(settings.model_name, source, run_id, model_id=model_id)
        except BaseException:
            client.set_terminated(run_id, "FAILED")
            raise
        client.set_terminated(run_id, "FINISHED")
    return int(version.version)


def set_champion(version: int, settings: Settings) -> None:
    """Give the alias to a version; whatever scores from now on uses it.

    Raises:
        RegistryError: the registry cannot be written.
    """
    with _words(settings):
        _client(settings).set_registered_model_alias(settings.model_name, ALIAS, str(version))


def _log(
    client: MlflowClient, experiment_id: str, run_id: str, forest: Any, facts: TrainingFacts, settings: Settings
) -> tuple[str, str]:
    """Parameters, metrics and both forms of the model; gives the model's location and MLflow's id of it."""
    import mlflow.sklearn
    from mlflow.entities import LoggedModelOutput, Metric, Param
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema

    from fraud_assets.core.training import treelite_form

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
    texts = {key: str(value) for key, value in params.items()}
    now = int(datetime.now().astimezone().timestamp() * 1000)
    metrics = [Metric(key, float(value), now, 0) for key, value in facts.metrics.items()]
    client.log_batch(run_id, params=[Param(key, value) for key, value in texts.items()], metrics=metrics)
    logged = client.create_logged_model(
        experiment_id, name=settings.model_name, source_run_id=run_id, params=texts, model_type="IsolationForest"
    )
    # The tables' own types: MLflow refuses integers where a signature says float.
    example = facts.example.select(MODEL_INPUTS).to_pandas()
    columns = [ColSpec("long" if kind == "int64" else "double", name) for name, kind in example.dtypes.items()]
    with TemporaryDirectory() as temporary:
        sklearn_folder, treelite_folder = Path(temporary) / "sklearn", Path(temporary) / MODEL_FOLDER
        mlflow.sklearn.save_model(
            forest,
            str(sklearn_folder),
            mlflow_model=Model(run_id=run_id, model_id=logged.model_id),
            serialization_format="skops",
            skops_trusted_types=["sklearn.tree._tree.Tree"],
            signature=ModelSignature(Schema(columns), Schema([ColSpec("long", "prediction")])),
            input_example=example,
            # Explicit: MLflow's own inference imports the model in a new process and picks up test tools.
            pip_requirements=[f"{name}=={installed(name)}" for name in _REQUIREMENTS],
        )
        client.log_model_artifacts(logged.model_id, str(sklearn_folder))
        treelite_folder.mkdir()
        treelite_form(forest).serialize(str(treelite_folder / MODEL_FILE))
        described = {**params, "features": list(MODEL_INPUTS), "treelite": installed("treelite")}
        (treelite_folder / FACTS_FILE).write_text(json.dumps(described, indent=2) + "\n")
        client.log_artifacts(run_id, str(treelite_folder), MODEL_FOLDER)
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return logged.artifact_location, logged.model_id


def _experiment(client: MlflowClient, settings: Settings) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(settings.model_name)
    if found is not None:
        return found.experiment_id
    location = None
    if sqlite_path(settings.mlflow_uri) is not None:
        # Without it MLflow writes `mlruns/` into whatever the current folder is.
        settings.mlflow_artifacts.mkdir(parents=True, exist_ok=True)
        location = settings.mlflow_artifacts.as_uri()
    try:
        return client.create_experiment(settings.model_name, artifact_location=location)
    except MlflowException:
        found = client.get_experiment_by_name(settings.model_name)  # another training created it meanwhile
        if found is None:
            raise
        return found.experiment_id


def _registered_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description="Card-fraud detector; a higher score is more suspicious.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _create_database(settings: Settings) -> None:
    """Folder and tables of a SQLite registry, created by one process at a time: MLflow's migrations cannot race."""
    path = sqlite_path(settings.mlflow_uri)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / ".create.lock").open("w") as lock:
            try:
                import fcntl
            except ImportError:  # Windows
                pass
            else:
                fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed
            _client(settings).search_experiments(max_results=1)
    except OSError as error:
        raise RegistryError(
            f"The model registry in {path.parent} cannot be written: {error}. Check the folder, or point FRAUD_HOME "
            "elsewhere."
        ) from error


def _client(settings: Settings) -> MlflowClient:
    _quiet()
    from mlflow import MlflowClient

    return MlflowClient(settings.mlflow_uri, settings.mlflow_uri)


def _quiet() -> None:
    """No progress bars, migration notes, git hints or usage reports; set before MLflow is imported."""
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


def _words(settings: Settings) -> Any:
    return _words_of(settings.mlflow_uri)


@contextmanager
def _words_of(uri: str) -> Iterator[None]:
    """Failures of MLflow in one sentence, which never shows a password in the URI."""
    _quiet()
    from mlflow.exceptions import MlflowException

    shown = urlsplit(uri)
    place = uri if not shown.username and not shown.password else f"{shown.scheme}://…@{shown.hostname}{shown.path}"
    try:
        yield
    except (MlflowException, OSError, ImportError) as error:
        cause = " ".join(str(error).split())[:300]
        if shown.password:
            cause = cause.replace(shown.password, "…")
        kind = SettingError if isinstance(error, ImportError) else RegistryError
        raise kind(f"The model registry {place} failed: {cause}. Check MLFLOW_TRACKING_URI and FRAUD_HOME.") from error
