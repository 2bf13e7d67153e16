"""Errors that a person can act upon, each with one sentence.

A message names the setting or file, its value and the fix. The command line prints it without a stack trace and exits
with `exit_code`; assets raise it as a Dagster `Failure`.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from fraud_assets.printable import printable


class FraudAssetsError(Exception):
    """Base of all errors that a person can act upon."""

    exit_code = 1


class SettingError(FraudAssetsError):
    """A setting has a value that cannot work."""

    exit_code = 2


class BrokerError(FraudAssetsError):
    """The broker or a topic cannot be reached or read."""


class MessagesLostError(BrokerError):
    """The broker no longer has messages that were not landed yet."""


class UnreadableError(BrokerError):
    """The broker has messages of a partition that the client cannot read."""


class TopicRecreatedError(BrokerError):
    """The topic was deleted and created again while it was read."""


class SchemaRegistryError(BrokerError):
    """The schema registry cannot be read or written. Landing treats it as an outage: it retries and skips nothing."""


class BrokerRefusedError(BrokerError):
    """The broker refuses the connection: wrong credentials, an unknown authority or another protocol."""


class LakeError(FraudAssetsError):
    """A table cannot be read or written."""


class DamagedFileError(LakeError):
    """A file of a table is missing, cut or empty; the message names it and the way back."""


class CommitConflictError(LakeError):
    """Another writer committed first. Read the committed offsets again and start over."""


class UnknownMessageError(FraudAssetsError):
    """No quarantined message has the position, or more than one has."""


class NotEnoughDataError(FraudAssetsError):
    """Training or evaluation needs more rows than the lake holds."""


class NoChampionError(FraudAssetsError):
    """No model version carries the champion alias yet."""


class LostRegistryError(NoChampionError):
    """No version carries the champion alias, but a champion has scored this lake."""


class ModelRegistryError(FraudAssetsError):
    """The model registry, or the files of a model, cannot be read or written."""


class FeatureVersionError(FraudAssetsError):
    """The champion was trained on features of another version."""


class JarsError(FraudAssetsError):
    """Jars that are needed are not there and cannot be had."""


class EngineError(FraudAssetsError):
    """Spark cannot be started, or a job on it failed."""


class SparkEndedError(EngineError):
    """The Spark session has ended; only a new process gets another."""


class DiskError(FraudAssetsError):
    """A file or folder of the platform cannot be read or written."""


_DISK_FAULTS = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOTDIR, errno.ELOOP,
        errno.ESTALE, errno.EBUSY,
    }
)  # fmt: skip
_TOO_MANY_FILES = frozenset({errno.EMFILE, errno.ENFILE})
_PASSING = _TOO_MANY_FILES | {errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ESTALE}


def is_temporary(error: OSError) -> bool:
    """Whether the fault is one of the machine at this moment, and not of the file: the same call may work later."""
    return error.errno in _PASSING


def disk_fault(error: OSError) -> DiskError | None:
    """The sentence for a disk that is full, read-only or closed to us, and for a process with too many open files.

    Returns:
        The error with that sentence; None where it is something else.
    """
    if error.errno in _TOO_MANY_FILES:
        return DiskError(
            f"No further file or connection can be opened ({error.strerror}). Close some, or raise the limit of open "
            "files (`ulimit -n`, or LimitNOFILE of a systemd service)."
        )
    if error.errno not in _DISK_FAULTS:
        return None
    place = printable(error.filename) if error.filename else "A file of the platform"
    return DiskError(
        f"{place} cannot be used: {error.strerror}. Free or unlock that disk, or point FRAUD_HOME to another folder."
    )


def too_many_open_files() -> DiskError | None:
    """The sentence where this process cannot open a single file now, which libraries tell in misleading words."""
    try:
        with Path(os.devnull).open("rb"):
            return None
    except OSError as error:
        return disk_fault(error)
