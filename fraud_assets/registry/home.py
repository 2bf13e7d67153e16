"""The default registry, in SQLite under FRAUD_HOME, belongs to its home and moves with it.

MLflow stores the absolute location of every file. A home that was moved or copied thus names the folder of another
home. Readers map these locations to the present home; before the platform writes, it changes the stored ones.
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
"""Where MLflow's database stores locations: table and column."""
_ROOTS = "select distinct artifact_location from experiments"


def sqlite_path(uri: str) -> Path | None:
    """The database file of a SQLite registry, None for any other URI."""
    return Path(unquote(uri.removeprefix(_SQLITE).split("?", 1)[0])) if uri.startswith(_SQLITE) else None


def remove_misnamed_folder(uri: str) -> None:
    """Remove the empty folder that MLflow makes of a SQLite registry's encoded URI, which it does not decode."""
    path, misnamed = sqlite_path(uri), Path(uri.removeprefix(_SQLITE)).parent
    if path is not None and path.parent != misnamed:
        with suppress(OSError):  # not there, or not empty and so not MLflow's
            misnamed.rmdir()
            misnamed.parent.rmdir()


def read_rows(path: Path, query: str, *values: str) -> list[Any]:
    """Rows of a SQLite registry; none where it does not exist or MLflow is creating it at this moment.

    Raises:
        ModelRegistryError: the database cannot be read.
    """
    if not path.exists():
        return []
    with _connected(path, "ro") as connection:
        try:
            return connection.execute(query, values).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return []
            raise


def local_path(uri: str) -> Path | None:
    """The path that a location names, None where it is not a local one."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        return None
    return Path(unquote(parts.path) if parts.scheme else uri)


def locate_in_home(settings: Settings, uri: str, root: str) -> str:
    """The location of a run's artifacts, below the present home where it belongs to the default registry.

    Args:
        settings: of the registry and the home.
        uri: the run's location, as MLflow stored it.
        root: the location of the run's experiment, as MLflow stored it.
    """
    if _own_database(settings) is None or not _is_root(settings, root) or not uri.startswith(f"{root}/"):
        return uri
    return settings.mlflow_artifacts.as_uri() + uri[len(root) :]


def other_homes(settings: Settings) -> list[str]:
    """Artifact folders of other homes that the default registry still names; empty for any other registry.

    Raises:
        ModelRegistryError: the database cannot be read.
    """
    path = _own_database(settings)
    if path is None:
        return []
    return _other_roots(read_rows(path, _ROOTS), settings)


def relocate_registry(settings: Settings) -> list[str]:
    """Change the stored locations of the default registry to the present home, all in one transaction.

    Returns:
        The artifact folders that were named before; empty where nothing had to change.

    Raises:
        ModelRegistryError: the database cannot be read or written; nothing was changed.
    """
    path = _own_database(settings)
    if path is None or not other_homes(settings):
        return []
    with lock_registry(path.parent), _connected(path, "rw") as connection:
        connection.execute("begin immediate")
        roots = _other_roots(connection.execute(_ROOTS).fetchall(), settings)
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
    """Hold the lock of the registry's folder, which one process at a time has; the folder is made where missing.

    Raises:
        ModelRegistryError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".create.lock"):
            yield
    except OSError as error:
        raise ModelRegistryError(
            f"The model registry in {folder} cannot be written: {error}. Check the folder, or point FRAUD_HOME "
            "elsewhere."
        ) from error


@contextmanager
def _connected(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
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


def _own_database(settings: Settings) -> Path | None:
    """The database of the default registry, None where the settings name another one."""
    path = sqlite_path(settings.mlflow_uri)
    return path if path is not None and path.absolute() == settings.mlflow_database else None


def _is_root(settings: Settings, location: str) -> bool:
    """Whether a location is the artifact folder of a home, of this one or of another."""
    path = local_path(location)
    ending = settings.mlflow_artifacts.relative_to(settings.home_path).parts
    return path is not None and path.parts[-len(ending) :] == ending


def _other_roots(rows: Sequence[tuple[str | None]], settings: Settings) -> list[str]:
    present = settings.mlflow_artifacts
    return [root for (root,) in rows if root and _is_root(settings, root) and not _same(local_path(root), present)]


def _same(path: Path | None, other: Path) -> bool:
    """Whether both are the same folder, also by way of a link."""
    if path is None or path == other:
        return True
    return path.exists() and other.exists() and path.samefile(other)
