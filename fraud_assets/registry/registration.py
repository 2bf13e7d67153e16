"""Registers trained models in MLflow, with everything that is needed to repeat and to explain the training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version as installed
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fraud_assets.core.schema import FEATURE_VERSION, MODEL_INPUTS
from fraud_assets.core.scoring import ModelVersion
from fraud_assets.registry.client import open_client, translate_errors
from fraud_assets.registry.files import MODEL_FOLDER, digest, write_model
from fraud_assets.registry.home import find_sqlite_path, lock_registry, relocate_registry
from fraud_assets.registry.models import ALIAS

if TYPE_CHECKING:
    import pyarrow as pa
    from mlflow import MlflowClient

    from fraud_assets.settings import Settings

KIND_TAG = "mlflow.experimentKind"
MACHINE_LEARNING = "custom_model_development"
"""The kind of an experiment that trains models. The UI of MLflow 3.17 first uses the page that the browser stored."""

_REQUIREMENTS = ("scikit-learn", "skops", "numpy", "pandas")


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
        table_uri: Location of the features; empty if unknown.
        table_version: Version of the features.
        dagster_run_id: Dagster run that trains; empty if there is none.
    """

    rows: int
    window_start: datetime
    window_end: datetime
    trees: int
    seed: int
    example: pa.Table
    metrics: Mapping[str, float] = field(default_factory=dict)
    window_rows: int | None = None
    table_uri: str = ""
    table_version: int = 0
    dagster_run_id: str = ""


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
    with translate_errors(settings.mlflow_uri):
        _create_database(settings)
        client = open_client(settings)
        days = f"{facts.window_start:%Y-%m-%d} to {facts.window_end:%Y-%m-%d}"
        run = client.create_run(_experiment(client, settings), run_name=days, tags=_make_tags(facts))
        run_id = run.info.run_id
        try:
            source, model_id = _log_run(client, run.info.experiment_id, run_id, forest, facts, settings)
            _registered_model(client, settings.model_name)
            version = client.create_model_version(
                settings.model_name,
                source,
                run_id,
                model_id=model_id,
                description=f"Isolation Forest of {facts.trees} trees on {facts.rows:,} transactions, {days}.",
            )
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
    with translate_errors(settings.mlflow_uri):
        open_client(settings).set_registered_model_alias(settings.model_name, ALIAS, str(version))


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
    _log_dataset(client, run_id, facts)
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


def _make_tags(facts: TrainingFacts) -> dict[str, str]:
    """Returns the tags of a training run: the code that trained, and the Dagster run if there is one."""
    tags = {"fraud_assets.version": installed("fraud_assets"), "fraud_assets.feature_version": FEATURE_VERSION}
    return tags | ({"dagster.run_id": facts.dagster_run_id} if facts.dagster_run_id else {})


def _log_dataset(client: MlflowClient, run_id: str, facts: TrainingFacts) -> None:
    """Logs the table version and the window of the training data as the dataset of the run."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    if not facts.table_uri:
        return
    source = {"uri": facts.table_uri, "version": facts.table_version}
    window = {"window_start": facts.window_start.isoformat(), "window_end": facts.window_end.isoformat()}
    dataset = Dataset(
        name="transaction_features",
        digest=str(facts.table_version),
        source_type="delta_table",
        source=json.dumps(source),
        profile=json.dumps({"num_rows": facts.rows, **window}),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


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
    if not settings.mlflow_uri.startswith(("http://", "https://")):
        # A server knows where its artifacts belong. With a database, MLflow would write into the current folder.
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
        open_client(settings).search_experiments(max_results=1)
    relocate_registry(settings)


def record_threshold(model: ModelVersion, threshold: float, budget_per_day: float, settings: Settings) -> None:
    """Records a new threshold of a model in the registry: as a metric of its run and as tags of its version.

    The table `alert_thresholds` decides; the registry only shows the history.

    Raises:
        ModelRegistryError: The registry cannot be written.
    """
    with translate_errors(settings.mlflow_uri):
        client = open_client(settings)
        client.log_metric(model.run_id, "threshold", threshold)
        for name, value in (("threshold", threshold), ("alert_budget_per_day", budget_per_day)):
            client.set_model_version_tag(settings.model_name, str(model.version), name, f"{value:g}")
