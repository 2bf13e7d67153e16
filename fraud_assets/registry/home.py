"""Keeps the default registry (SQLite under FRAUD_HOME) usable if its home folder is moved or copied.

MLflow stores the absolute location of every file, so the database of a moved or copied home names folders of the
previous home. Readers map these locations to the current home. Before the platform writes, it updates the stored
locations.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from fraud_assets.errors import ModelRegistryError
from fraud_assets.settings import Settings

_LOCK_SECONDS = 30.0
_SQLITE = "sqlite:///"
_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns in which MLflow's database stores locations."""
_ROOTS = "select distinct artifact_location from experiments"


def find_sqlite_path(uri: str) -> Path | None:
    """Returns the database file of a SQLite registry, or None for any other URI."""
    return Path(unquote(uri.removeprefix(_SQLITE).split("?", 1)[0])) if uri.startswith(_SQLITE) else None


def remove_misnamed_folder(uri: str) -> None:
    """Removes the empty folder that MLflow creates because it does not decode the URI of a SQLite registry."""
    path, misnamed = find_sqlite_path(uri), Path(uri.removeprefix(_SQLITE)).parent
    if path is not None and path.parent != misnamed:
        with suppress(OSError):  # The folder does not exist, or it is not empty and so not MLflow's.
            misnamed.rmdir()
            misnamed.parent.rmdir()


def read_rows(path: Path, query: str, *values: str) -> list[Any]:
    """Queries a SQLite registry. Returns no rows if the registry does not exist or MLflow is still creating it.

    Raises:
        ModelRegistryError: The database cannot be read.
    """
    if not path.exists():
        return []
    with _connect(path, "ro") as connection:
        try:
            return connection.execute(query, values).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return []
            raise


def find_local_path(uri: str) -> Path | None:
    """Returns the path of a location, or None if the location is not local."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        return None
    return Path(unquote(parts.path) if parts.scheme else uri)


def locate_in_home(settings: Settings, uri: str, root: str) -> str:
    """Maps the location of a run's artifacts to the current home, if the run belongs to the default registry.

    Args:
        settings: The settings of the registry and the home.
        uri: The location of the run, as MLflow stored it.
        root: The location of the run's experiment, as MLflow stored it.

    Returns:
        The location in the current home, or `uri` for another registry.
    """
    if _default_database(settings) is None or not _is_root(settings, root) or not uri.startswith(f"{root}/"):
        return uri
    return settings.mlflow_artifacts.as_uri() + uri[len(root) :]


def find_other_homes(settings: Settings) -> list[str]:
    """Returns the artifact folders of other homes that the default registry still names; empty for another registry.

    Raises:
        ModelRegistryError: The database cannot be read.
    """
    path = _default_database(settings)
    if path is None:
        return []
    return _select_other_roots(read_rows(path, _ROOTS), settings)


def relocate_registry(settings: Settings) -> list[str]:
    """Updates the stored locations of the default registry to the current home, in one transaction.

    Returns:
        The previous artifact folders; empty if nothing had to change.

    Raises:
        ModelRegistryError: The database cannot be read or written. Nothing was changed.
    """
    path = _default_database(settings)
    if path is None or not find_other_homes(settings):
        return []
    with lock_registry(path.parent), _connect(path, "rw") as connection:
        connection.execute("begin immediate")
        roots = _select_other_roots(connection.execute(_ROOTS).fetchall(), settings)
        new = settings.mlflow_artifacts.as_uri()
        for table, column in _LOCATIONS:
            if not connection.execute("select 1 from pragma_table_info(?) where name = ?", (table, column)).fetchall():
                continue
            for old in roots:
                connection.execute(
                    f"update {table} set {column} = ? || substr({column}, ?) "
                    f"where {column} = ? or substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                )
        connection.execute("commit")
    return roots


@contextmanager
def lock_registry(folder: Path) -> Iterator[None]:
    """Holds the lock of the registry's folder, so that one process at a time changes it. Creates a missing folder.

    Raises:
        ModelRegistryError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".create.lock"):
            yield
    except OSError as error:
        raise ModelRegistryError(
            f"The model registry in {folder} cannot be written: {error}. Check the folder, or point FRAUD_HOME to "
            "another one."
        ) from error


@contextmanager
def _connect(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    try:
        uri = f"{path.absolute().as_uri()}?mode={mode}"
        with closing(sqlite3.connect(uri, uri=True, timeout=_LOCK_SECONDS, isolation_level=None)) as connection:
            yield connection
    except sqlite3.Error as error:
        verb = "read" if mode == "ro" else "written"
        raise ModelRegistryError(
            f"The model registry {path} cannot be {verb}: {error}. Check the file, or FRAUD_HOME and "
            "MLFLOW_TRACKING_URI."
        ) from error


def _default_database(settings: Settings) -> Path | None:
    """Returns the database of the default registry, or None if the settings name another one."""
    path = find_sqlite_path(settings.mlflow_uri)
    return path if path is not None and path.absolute() == settings.mlflow_database else None


def _is_root(settings: Settings, location: str) -> bool:
    """Returns whether a location is the artifact folder of this or another home."""
    path = find_local_path(location)
    ending = settings.mlflow_artifacts.relative_to(settings.home_path).parts
    return path is not None and path.parts[-len(ending) :] == ending


def _select_other_roots(rows: Sequence[tuple[str | None]], settings: Settings) -> list[str]:
    present = settings.mlflow_artifacts
    return [
        root for (root,) in rows if root and _is_root(settings, root) and not _is_same(find_local_path(root), present)
    ]


def _is_same(path: Path | None, other: Path) -> bool:
    """Returns whether both paths lead to the same folder, for example through a link."""
    if path is None or path == other:
        return True
    return path.exists() and other.exists() and path.samefile(other)
