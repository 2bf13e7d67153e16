"""Opens MLflow's client and translates its errors.

This module does not change MLflow's global state, which would leak MLFLOW_TRACKING_URI into the process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fraud_assets.errors import ModelRegistryError, SettingError
from fraud_assets.registry.home import remove_misnamed_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from fraud_assets.settings import Settings


def mask_credentials(uri: str) -> str:
    """Returns the URI of a registry without user name and password, for messages."""
    scheme, separator, rest = uri.partition("://")
    # The definitions show the location, so an address that cannot be parsed must not raise an error here.
    login, at, address = rest.rpartition("@")
    # The path of a file can contain the character, too.
    if not separator or not at or login.startswith("/"):
        return uri
    return f"{scheme}://…@{address.partition('?')[0]}"


def open_client(settings: Settings) -> MlflowClient:
    """Returns MLflow's client of the registry. Importing MLflow takes about 3 s.

    Raises:
        SQLAlchemyError: The registry is in a database server that does not answer or refuses the login.
    """
    silence_mlflow()
    from mlflow import MlflowClient

    _connect_to_database(settings.mlflow_uri)
    return MlflowClient(settings.mlflow_uri, settings.mlflow_uri)


def _connect_to_database(uri: str) -> None:
    """Connects once to a registry in a database server. MLflow itself would try ten times, which takes two minutes."""
    from mlflow.store.db.db_types import DATABASE_ENGINES, SQLITE
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    engine = urlsplit(uri).scheme.partition("+")[0]
    if engine in DATABASE_ENGINES and engine != SQLITE:
        with create_engine(uri, poolclass=NullPool).connect():
            pass


def silence_mlflow() -> None:
    """Disables progress bars, migration messages, git hints and usage reports, before MLflow is imported."""
    for name, value in {
        "GIT_PYTHON_REFRESH": "quiet",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        # libpq, the client library of PostgreSQL, otherwise waits for as long as the operating system does.
        "PGCONNECT_TIMEOUT": "10",
    }.items():
        os.environ.setdefault(name, value)
    for logger in ("alembic", "mlflow"):
        logging.getLogger(logger).setLevel(logging.WARNING)


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Translates failures of MLflow to errors whose messages never contain the password of the URI."""
    silence_mlflow()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    password = urlsplit(uri).password
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        cause = " ".join(str(error).split())[:300]
        if password:
            cause = cause.replace(password, "…")
        kind = SettingError if isinstance(error, ImportError) else ModelRegistryError
        raise kind(
            f"The model registry {mask_credentials(uri)} failed: {cause}. Check MLFLOW_TRACKING_URI and FRAUD_HOME."
        ) from error
    finally:
        remove_misnamed_folder(uri)
