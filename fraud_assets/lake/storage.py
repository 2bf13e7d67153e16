"""Object stores: delta-rs's options to reach one, and error messages for its failures."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from fraud_assets.errors import LakeError, LakeUnavailableError, SettingError
from fraud_assets.settings import Settings
from fraud_assets.system.paths import is_uri

_S3 = ("s3://", "s3a://")
_S3_OPTIONS = frozenset(
    {"endpoint_url", "region", "access_key_id", "secret_access_key", "session_token", "conditional_put"}
)
_OTHER_NAMES = {"endpoint": "endpoint_url", "default_region": "region", "token": "session_token"}
_TRUE = frozenset({"1", "true", "on", "yes", "y"})
_MOST_RETRIES = "1000"
"""High enough to have no effect: `retry_timeout` limits the retries."""


def is_remote(uri: str) -> bool:
    """Returns whether a lake's URI is an object store, not a folder."""
    return is_uri(uri)


def build_storage_options(settings: Settings, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns delta-rs's options for the lake of the settings; empty for a folder.

    Any unset option falls back to delta-rs's own lookup in the environment, the profile and the instance role.

    Args:
        settings: The lake's URI and options.
        more: Options that override all others, in any spelling that delta-rs accepts.

    Raises:
        SettingError: With these options, two commits at the same time could both appear to succeed.
    """
    uri = settings.lake
    if not is_remote(uri):
        return {}
    options = {"retry_timeout": f"{settings.lake_timeout_seconds:g}s", "max_retries": _MOST_RETRIES}
    if uri.startswith(_S3):
        # Set here, so that AWS_CONDITIONAL_PUT in the environment cannot disable it.
        options["aws_conditional_put"] = "etag"
        options |= {
            name: value
            for name, value in (
                ("aws_endpoint_url", settings.aws_endpoint_url),
                ("aws_region", settings.aws_region),
                ("aws_access_key_id", settings.aws_access_key_id),
                ("aws_secret_access_key", settings.aws_secret_access_key.get_secret_value()),
                ("aws_session_token", settings.aws_session_token.get_secret_value()),
            )
            if value
        }
    for name, value in {**settings.lake_options_by_name, **(more or {})}.items():
        options[_normalize_name(name)] = value
    if options.get("aws_endpoint_url", "").startswith("http://"):
        options.setdefault("allow_http", "true")
    if uri.startswith(_S3):
        _refuse_unsafe_options(options)
    return options


def _normalize_name(name: str) -> str:
    """Returns one spelling per S3 option: `AWS_REGION`, `region` and `aws_default_region` are the same option."""
    name = name.lower()
    bare = name.removeprefix("aws_")
    bare = _OTHER_NAMES.get(bare, bare)
    return f"aws_{bare}" if bare in _S3_OPTIONS else name


def _refuse_unsafe_options(options: Mapping[str, str]) -> None:
    """Raises `SettingError` for options that let two writers commit the same version of a table on S3.

    delta-rs also reads these options from the environment.
    """
    given = {name.lower(): value for name, value in os.environ.items() if name.startswith("AWS_S3_")} | dict(options)
    if options["aws_conditional_put"].strip().lower() != "etag":
        raise SettingError(
            f"FRAUD_LAKE_OPTIONS sets conditional_put to {options['aws_conditional_put']!r}: only `etag` keeps two "
            "writers from overwriting each other's commits. Remove the option."
        )
    for name in ("aws_s3_allow_unsafe_rename", "allow_unsafe_rename", "aws_allow_unsafe_rename"):
        if given.get(name, "").strip().lower() in _TRUE:
            raise SettingError(
                f"{name.upper()} is {given[name]!r}: with it, two writers can overwrite each other's commits. "
                "Unset it; conditional writes of S3 make commits safe."
            )
    for name in ("aws_s3_locking_provider", "s3_locking_provider", "locking_provider"):
        if given.get(name, "").strip():
            raise SettingError(
                f"{name.upper()} is {given[name]!r}: delta-rs no longer supports such locks, so the commits of "
                "a writer that relies on them could be overwritten. Unset it; all writers must use S3's conditional "
                "writes."
            )


_UNAVAILABLE = re.compile(
    r"error sending request|timed out|connection (refused|reset|closed)|dns error|error decoding response body|"
    r"incomplete message|request or response body error|unexpected eof|\b(429|5\d\d) |SlowDown|ServiceUnavailable|"
    r"InternalError",
    re.IGNORECASE,
)
_FAULTS: tuple[tuple[str, str], ...] = (
    (
        r"NoSuchBucket",
        "The bucket does not exist: create it, or correct FRAUD_LAKE_URI (and AWS_ENDPOINT_URL, if the bucket is in "
        "another store)",
    ),
    (
        r"169\.254\.|\bIMDS\b|metadata token|no providers in chain|Credentials(?:NotLoaded|Provider)|no credentials",
        "No credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a profile or "
        "role that delta-rs finds",
    ),
    (
        r"ExpiredToken|InvalidToken|TokenRefreshRequired",
        "The session has expired: renew AWS_SESSION_TOKEN with its AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
    (
        r"\b30[178] |PermanentRedirect|AuthorizationHeaderMalformed|IllegalLocationConstraint",
        "The bucket is in another region: correct AWS_REGION",
    ),
    (
        r"\b40[13] |InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied|necessary privileges|unauthenticated",
        "The store refuses these credentials: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and their rights to "
        "list, read, write and delete under FRAUD_LAKE_URI",
    ),
    (
        r"scheme is not allowed",
        "Unencrypted http is refused: set an https:// endpoint, or add allow_http=true to FRAUD_LAKE_OPTIONS",
    ),
    (
        r"\b501 |not ?implemented",
        "The store does not support this request. A lake requires conditional writes (If-None-Match): use another "
        "store",
    ),
)


def store_fault(uri: str, error: Exception) -> LakeError:
    """Returns the error for a failure of an object store."""
    cause = _find_cause(_plain_text(str(error)))
    return recognize_store_error(uri, error) or LakeError(
        f"Table {uri.rstrip('/')} failed: {cause}. Check FRAUD_LAKE_URI."
    )


def recognize_store_error(uri: str, error: Exception) -> LakeError | None:
    """Returns the error for a failure of the store, its credentials or the connection; None for another cause."""
    uri = uri.rstrip("/")
    text = _plain_text(str(error))
    cause = _find_cause(text)
    for pattern, remedy in _FAULTS:
        if re.search(pattern, text, re.IGNORECASE):
            return LakeError(f"Table {uri} failed: {cause}. {remedy}.")
    if _UNAVAILABLE.search(text):
        return LakeUnavailableError(
            f"Table {uri} failed: the object store{_name_host(text)} is unavailable ({cause}). Check that it runs, "
            "FRAUD_LAKE_URI and AWS_ENDPOINT_URL."
        )
    return None


def _plain_text(text: str) -> str:
    # delta-rs colors its chain of causes and appends stack frames of its own to some messages.
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split()).split(" 0: <unknown>")[0]


def _find_cause(text: str) -> str:
    """Returns the innermost cause. From an S3 answer it takes only the code, because bodies repeat keys and tokens."""
    code = re.search(r"<Code>(\w+)</Code>", text)
    status = re.search(r"\b([345]\d\d [A-Z][A-Za-z ]+?)(?= *[:↳<]|$)", text)
    if code:
        return f"{status[1]}, {code[1]}" if status else code[1]
    if status:
        return status[1]
    return re.sub(r"<[^>]*>", "", text.rsplit("↳", maxsplit=1)[-1]).strip(" .-")[:200]


def _name_host(text: str) -> str:
    host = re.search(r"https?://[^/\s?]+", text)
    return f" at {host[0]}" if host else ""
