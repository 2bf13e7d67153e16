"""The files of a registered model in its treelite form, and the check that they are what was registered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fraud_assets.errors import ModelRegistryError

if TYPE_CHECKING:
    import treelite

MODEL_FOLDER = "treelite"
MODEL_FILE = "model.tl"
FACTS_FILE = "model.json"
TRAIN = "dagster asset materialize -m fraud_assets.definitions --select isolation_forest,alert_thresholds"
"""The command that trains a new champion."""

_WAY_BACK = f"Restore it from a backup, give the alias champion to another version, or train a new champion ({TRAIN})."


@dataclass(frozen=True)
class ModelRecord:
    """What the registry's run recorded of a model, as run parameters, which MLflow never changes."""

    sha256: str
    feature_version: str
    features: tuple[str, ...]

    @classmethod
    def of(cls, params: Mapping[str, str]) -> ModelRecord:
        """From the run's parameters; one that is missing is empty."""
        features = params.get("features", "")
        return cls(
            params.get("model_sha256", ""), params.get("feature_version", ""), tuple(filter(None, features.split(",")))
        )


def digest(serialized: bytes) -> str:
    """SHA-256 of a serialized model, in hexadecimal digits."""
    return sha256(serialized).hexdigest()


def write_model(folder: Path, serialized: bytes, facts: Mapping[str, Any]) -> None:
    """Write the serialized treelite model and its facts into a new folder."""
    folder.mkdir()
    (folder / MODEL_FILE).write_bytes(serialized)
    described = {**facts, "model_sha256": digest(serialized), "treelite": installed("treelite")}
    (folder / FACTS_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def read_model(folder: Path, recorded: ModelRecord) -> treelite.Model:
    """Read a model whose files are exactly those that were registered.

    The bytes are checked before treelite sees them: treelite scores wrongly or hangs on damaged ones.

    Raises:
        ModelRegistryError: a file is missing or differs from what the registry recorded, or nothing was recorded.
    """
    import treelite

    path, facts_path = folder / MODEL_FILE, folder / FACTS_FILE
    try:
        serialized = path.read_bytes()
        facts = json.loads(facts_path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelRegistryError(f"The champion's files in {folder} cannot be read: {error}. {_WAY_BACK}") from error
    if not recorded.sha256:
        raise ModelRegistryError(
            f"The registry has no SHA-256 of {path} (run parameter model_sha256), so that the file cannot be checked. "
            f"Give the alias champion to a version that this release registered, or train a new champion ({TRAIN})."
        )
    if digest(serialized) != recorded.sha256:
        raise ModelRegistryError(
            f"{path} is damaged or was changed: its SHA-256 is {digest(serialized)}, the registry recorded "
            f"{recorded.sha256}. {_WAY_BACK}"
        )
    named = facts if isinstance(facts, dict) else {}
    if (named.get("model_sha256"), named.get("feature_version"), named.get("features")) != (
        recorded.sha256, recorded.feature_version, list(recorded.features)
    ):  # fmt: skip
        raise ModelRegistryError(
            f"{facts_path} is damaged or was changed: its model_sha256, feature_version or features differ from what "
            f"the registry recorded. {_WAY_BACK}"
        )
    try:
        return treelite.Model.deserialize_bytes(serialized)
    except treelite.TreeliteError as error:
        raise ModelRegistryError(
            f"treelite {installed('treelite')} cannot load {path}: {error}. {_WAY_BACK}"
        ) from error
