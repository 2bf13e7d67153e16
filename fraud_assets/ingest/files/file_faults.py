"""Decides for each fault whether a dropped file is refused, stays in the drop folder, or stops landing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fraud_assets.errors import FraudAssetsError, convert_disk_error, is_temporary
from fraud_assets.ingest.files.contents import UnusableFileError
from fraud_assets.ingest.files.drop_folder import escape_name
from fraud_assets.ingest.files.file_report import FileReport


class FileStaysError(Exception):
    """A file can neither land nor be moved now and stays in the drop folder. The message gives the reason.

    Attributes:
        landed: the report of a file that landed but could not be moved.
    """

    def __init__(self, reason: str, landed: FileReport | None = None) -> None:
        super().__init__(reason)
        self.landed = landed


@contextmanager
def classify_reading_faults(path: Path) -> Iterator[None]:
    """Converts the errors that occur while a file is read.

    Raises:
        UnusableFileError: the file itself is faulty, so it is refused.
        FileStaysError: the fault is temporary, or a setting is too low, so the file stays.
        FileNotFoundError: the file is gone.
    """
    try:
        yield
    except (UnusableFileError, FileNotFoundError):
        raise
    except FraudAssetsError as error:
        if not path.exists():
            raise FileNotFoundError(path) from error
        raise FileStaysError(f"{escape_name(path)} stays in the drop folder. {error}") from error
    except OSError as error:
        if is_temporary(error):
            raise FileStaysError(
                f"{escape_name(path)} stays in the drop folder. {convert_disk_error(error) or error}"
            ) from error
        raise UnusableFileError(f"It cannot be read ({error.strerror or error}).") from error
    except MemoryError as error:
        raise FileStaysError(
            f"{escape_name(path)} stays in the drop folder, because there is too little memory to read it."
        ) from error
    # A bug of the platform or of a library must not prevent the next files from landing.
    except Exception as error:
        safe_reason = f"It cannot be read because of an unexpected error ({type(error).__name__})."
        raise UnusableFileError(f"{safe_reason[:-2]}: {error}).", safe_reason) from error


@contextmanager
def classify_landing_faults(path: Path) -> Iterator[None]:
    """Converts the errors that occur while an examined file lands.

    Raises:
        FraudAssetsError: the lake is faulty, which affects all files.
        FileStaysError: the file can no longer be read, so it stays.
        FileNotFoundError: the file is gone.
    """
    try:
        yield
    except (FraudAssetsError, FileNotFoundError):
        raise
    # The message of the error could quote the file, which FRAUD_PSEUDONYMISE forbids.
    except Exception as error:
        cause = convert_disk_error(error) if isinstance(error, OSError) else None
        raise FileStaysError(
            f"{escape_name(path)} stays in the drop folder. "
            f"{cause or f'It can no longer be read ({type(error).__name__}).'} "
            "Its rows that have landed stay in the lake and will not land again."
        ) from error


@contextmanager
def classify_moving_faults(path: Path, folder: Path, landed: FileReport | None = None) -> Iterator[None]:
    """Converts the errors that occur while a file is moved to a folder.

    Raises:
        FileStaysError: the file cannot be moved, so it stays; the error carries `landed`.
        FileNotFoundError: the file is gone.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FileStaysError(
            f"{path} cannot be moved to {folder} ({error.strerror or error}). Make both folders writable. Rows of the "
            "file that have landed stay in the lake and will not land again.",
            landed,
        ) from error
