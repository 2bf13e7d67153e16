"""Exceptions with a message that a user or operator can act on.

A message names the setting or file, its value and the fix. The command line prints the message without a stack trace
and exits with `exit_code`. Assets raise it as a Dagster `Failure`.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from fraud_assets.printable import escape_unprintable


class FraudAssetsError(Exception):
    """Base class of all errors that a user or operator can act on."""

    exit_code = 1


class SettingError(FraudAssetsError):
    """A setting has a value that cannot work."""

    exit_code = 2


class FeatureFileError(FraudAssetsError):
    """A feature file cannot be used."""

    exit_code = 2


class BrokerError(FraudAssetsError):
    """The broker or a topic cannot be reached or read."""


class MessagesLostError(BrokerError):
    """The broker deleted messages before they landed."""


class UnreadableError(BrokerError):
    """The broker holds messages that the client cannot read."""


class TopicRecreatedError(BrokerError):
    """The topic was deleted and recreated while it was read."""


class SchemaRegistryError(BrokerError):
    """The schema registry cannot be read or written. Landing treats this as an outage: it retries and skips nothing."""


class BrokerRefusedError(BrokerError):
    """The broker refuses the connection: wrong credentials, an unknown certificate authority or another protocol."""


class LakeError(FraudAssetsError):
    """A table cannot be read or written."""


class LakeUnavailableError(LakeError):
    """The object store of the lake does not respond or reports a failure of its own. A later attempt may succeed."""


class DamagedFileError(LakeError):
    """A file of a table is missing, truncated or empty. The message names the file and how to restore the table."""


class CommitConflictError(LakeError):
    """Another writer committed first. The caller reads the committed offsets again and starts over."""


class UnknownMessageError(FraudAssetsError):
    """No quarantined message has the given position, or more than one has."""


class NotEnoughDataError(FraudAssetsError):
    """Training or evaluation needs more rows than the lake holds."""


class NoChampionError(FraudAssetsError):
    """No model version has the champion alias yet."""


class LostRegistryError(NoChampionError):
    """No model version has the champion alias, but the lake holds predictions of an earlier champion."""


class ModelRegistryError(FraudAssetsError):
    """The model registry or the files of a model cannot be read or written."""


class FeatureVersionError(FraudAssetsError):
    """The champion was trained on features of another version."""


class JarsError(FraudAssetsError):
    """Required jars are missing and cannot be resolved."""


class EngineError(FraudAssetsError):
    """Spark cannot be started, or a Spark job failed."""


class SparkEndedError(EngineError):
    """The Spark session has ended. Only a new process can start another one."""


class DiskError(FraudAssetsError):
    """A file or folder of the platform cannot be read or written."""


_DISK_ERRORS = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOTDIR, errno.ELOOP,
        errno.ESTALE, errno.EBUSY,
    }
)  # fmt: skip
_TOO_MANY_FILES = frozenset({errno.EMFILE, errno.ENFILE})
_TEMPORARY = _TOO_MANY_FILES | {errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ESTALE}


def is_temporary(error: OSError) -> bool:
    """Returns whether the machine caused the error and not the file. The same call may then succeed later."""
    return error.errno in _TEMPORARY


def convert_disk_error(error: OSError) -> DiskError | None:
    """Converts an `OSError` of a full, read-only or inaccessible disk, or of too many open files, to a `DiskError`.

    Returns:
        The `DiskError`, or None if the error has another cause.
    """
    if error.errno in _TOO_MANY_FILES:
        return DiskError(
            f"The process cannot open another file or connection ({error.strerror}). Close some of them, or raise the "
            "limit of open files (`ulimit -n`, or LimitNOFILE of a systemd service)."
        )
    if error.errno not in _DISK_ERRORS:
        return None
    path = escape_unprintable(error.filename) if error.filename else "A file of the platform"
    return DiskError(
        f"{path} cannot be used: {error.strerror}. Free space on that disk or make it writable, or point FRAUD_HOME to "
        "another folder."
    )


def find_open_file_fault() -> DiskError | None:
    """Returns a `DiskError` if this process cannot open a file now, else None.

    Libraries report this condition with misleading messages, so callers test for it directly.
    """
    try:
        with Path(os.devnull).open("rb"):
            return None
    except OSError as error:
        return convert_disk_error(error)
