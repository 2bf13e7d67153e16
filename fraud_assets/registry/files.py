"""Writes the files of a registered model in its treelite form, and reads them after a check of their integrity."""

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

_FIX = f"Restore it from a backup, give the alias champion to another version, or train a new champion ({TRAIN})."


@dataclass(frozen=True)
class ModelRecord:
    """The facts about a model that its run recorded as parameters, which MLflow never changes.

    Attributes:
        sha256: SHA-256 of the serialized model.
        feature_version: Version of the features.
        features: Names of the model inputs, in order.
    """

    sha256: str
    feature_version: str
    features: tuple[str, ...]

    @classmethod
    def of(cls, params: Mapping[str, str]) -> ModelRecord:
        """Creates the record from the run's parameters. A missing parameter is empty."""
        features = params.get("features", "")
        return cls(
            params.get("model_sha256", ""), params.get("feature_version", ""), tuple(filter(None, features.split(",")))
        )


def digest(serialized: bytes) -> str:
    """Returns the SHA-256 of a serialized model, in hexadecimal digits."""
    return sha256(serialized).hexdigest()


def write_model(folder: Path, serialized: bytes, facts: Mapping[str, Any]) -> None:
    """Writes the serialized treelite model and facts about it to a new folder."""
    folder.mkdir()
    (folder / MODEL_FILE).write_bytes(serialized)
    described = {**facts, "model_sha256": digest(serialized), "treelite": installed("treelite")}
    (folder / FACTS_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def read_model(folder: Path, recorded: ModelRecord) -> treelite.Model:
    """Reads a model, after a check that its files are exactly those that were registered.

    The bytes are checked before treelite reads them, because treelite scores wrongly or hangs on damaged bytes.

    Args:
        folder: The folder of the model's files.
        recorded: The facts that the registry recorded.

    Raises:
        ModelRegistryError: A file is missing or differs from the record, or nothing was recorded.
    """
    import treelite

    path, facts_path = folder / MODEL_FILE, folder / FACTS_FILE
    try:
        serialized = path.read_bytes()
        facts = json.loads(facts_path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelRegistryError(f"The champion's files in {folder} cannot be read: {error}. {_FIX}") from error
    if not recorded.sha256:
        raise ModelRegistryError(
            f"The registry has no SHA-256 of {path} (run parameter model_sha256), so the file cannot be checked. "
            f"Give the alias champion to a version that this release registered, or train a new champion ({TRAIN})."
        )
    if digest(serialized) != recorded.sha256:
        raise ModelRegistryError(
            f"{path} is damaged or was changed: its SHA-256 is {digest(serialized)}, but the registry recorded "
            f"{recorded.sha256}. {_FIX}"
        )
    named = facts if isinstance(facts, dict) else {}
    if (named.get("model_sha256"), named.get("feature_version"), named.get("features")) != (
        recorded.sha256, recorded.feature_version, list(recorded.features)
    ):  # fmt: skip
        raise ModelRegistryError(
            f"{facts_path} is damaged or was changed: its model_sha256, feature_version or features differ from the "
            f"registry's record. {_FIX}"
        )
    try:
        return treelite.Model.deserialize_bytes(serialized)
    except treelite.TreeliteError as error:
        raise ModelRegistryError(f"treelite {installed('treelite')} cannot load {path}: {error}. {_FIX}") from error
