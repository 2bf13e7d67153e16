"""Object stores: the options with which delta-rs reaches one, and what its failures mean in words."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from fraud_assets.errors import LakeError, SettingError
from fraud_assets.settings import Settings
from fraud_assets.system.paths import is_uri

_S3 = ("s3://", "s3a://")
_S3_OPTIONS = frozenset(
    {"endpoint_url", "region", "access_key_id", "secret_access_key", "session_token", "conditional_put"}
)
_OTHER_NAMES = {"endpoint": "endpoint_url", "default_region": "region", "token": "session_token"}
_TRUE = frozenset({"1", "true", "on", "yes", "y"})
_MOST_RETRIES = "1000"
"""In effect none: the time is what counts."""


def is_remote(uri: str) -> bool:
    """Whether a lake's URI is an object store rather than a folder."""
    return is_uri(uri)


def storage_options(settings: Settings, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """delta-rs's options for the lake of the settings; `more` wins over all others, in any spelling delta-rs takes.

    What is not set is left to delta-rs, which asks environment, profile and instance role. Empty for a folder.

    Raises:
        SettingError: with these options, two commits at the same moment could both seem to succeed.
    """
    uri = settings.lake
    if not is_remote(uri):
        return {}
    options = {"retry_timeout": f"{settings.lake_timeout_seconds:g}s", "max_retries": _MOST_RETRIES}
    if uri.startswith(_S3):
        # Said here, so that AWS_CONDITIONAL_PUT in the environment cannot turn it off.
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
        options[_one_name(name)] = value
    if options.get("aws_endpoint_url", "").startswith("http://"):
        options.setdefault("allow_http", "true")
    if uri.startswith(_S3):
        _refuse_unsafe(options)
    return options


def _one_name(name: str) -> str:
    """One spelling for each of our S3 options: `AWS_REGION`, `region` and `aws_default_region` are the same."""
    name = name.lower()
    bare = name.removeprefix("aws_")
    bare = _OTHER_NAMES.get(bare, bare)
    return f"aws_{bare}" if bare in _S3_OPTIONS else name


def _refuse_unsafe(options: Mapping[str, str]) -> None:
    """What lets two writers commit the same version of a table on S3. delta-rs reads its environment too."""
    said = {name.lower(): value for name, value in os.environ.items() if name.startswith("AWS_S3_")} | dict(options)
    if options["aws_conditional_put"].strip().lower() != "etag":
        raise SettingError(
            f"FRAUD_LAKE_OPTIONS sets conditional_put to {options['aws_conditional_put']!r}: only `etag` keeps two "
            "writers from committing over each other, so leave it out."
        )
    for name in ("aws_s3_allow_unsafe_rename", "allow_unsafe_rename", "aws_allow_unsafe_rename"):
        if said.get(name, "").strip().lower() in _TRUE:
            raise SettingError(
                f"{name.upper()} is {said[name]!r}: it gives up what keeps two writers from committing over each "
                "other. Unset it; conditional writes of S3 make commits safe."
            )
    for name in ("aws_s3_locking_provider", "s3_locking_provider", "locking_provider"):
        if said.get(name, "").strip():
            raise SettingError(
                f"{name.upper()} is {said[name]!r}: delta-rs no longer takes part in such locks, so a writer that "
                "relies on them could be committed over. Unset it, and let all writers use conditional writes of S3."
            )


_AWAY = re.compile(
    r"error sending request|timed out|connection (refused|reset|closed)|dns error|error decoding response body|"
    r"incomplete message|request or response body error|unexpected eof|\b(429|5\d\d) |SlowDown|ServiceUnavailable|"
    r"InternalError",
    re.IGNORECASE,
)
_FAULTS: tuple[tuple[str, str], ...] = (
    (
        r"NoSuchBucket",
        "That bucket does not exist: create it, or correct FRAUD_LAKE_URI (and AWS_ENDPOINT_URL, if it is another "
        "store's)",
    ),
    (
        r"169\.254\.|\bIMDS\b|metadata token|no providers in chain|Credentials(?:NotLoaded|Provider)|no credentials",
        "No credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a profile or "
        "role that delta-rs finds",
    ),
    (
        r"ExpiredToken|InvalidToken|TokenRefreshRequired",
        "The session has ended: renew AWS_SESSION_TOKEN with its AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
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
        "Plain http is refused: name an https:// endpoint, or add allow_http=true to FRAUD_LAKE_OPTIONS",
    ),
    (
        r"\b501 |not ?implemented",
        "The store cannot do that, and without conditional writes (If-None-Match) it cannot hold a lake: use another",
    ),
)


def store_fault(uri: str, error: Exception) -> LakeError:
    """The one sentence for a failure of an object store."""
    cause = _cause(_plain(str(error)))
    return known_store_fault(uri, error) or LakeError(f"Table {uri.rstrip('/')} failed: {cause}. Check FRAUD_LAKE_URI.")


def known_store_fault(uri: str, error: Exception) -> LakeError | None:
    """The sentence for a failure whose cause is the store, its credentials or the way to it; None for another."""
    uri = uri.rstrip("/")
    text = _plain(str(error))
    cause = _cause(text)
    for pattern, remedy in _FAULTS:
        if re.search(pattern, text, re.IGNORECASE):
            return LakeError(f"Table {uri} failed: {cause}. {remedy}.")
    if _AWAY.search(text):
        return LakeError(
            f"Table {uri} failed: the object store{_place(text)} does not answer as it should ({cause}). Check that it "
            "runs, and FRAUD_LAKE_URI and AWS_ENDPOINT_URL."
        )
    return None


def _plain(text: str) -> str:
    # delta-rs colours its chain of causes and appends the frames of its own stack to some messages.
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split()).split(" 0: <unknown>")[0]


def _cause(text: str) -> str:
    """The innermost cause. Of an answer only S3's code is told: bodies repeat keys and tokens."""
    code = re.search(r"<Code>(\w+)</Code>", text)
    status = re.search(r"\b([345]\d\d [A-Z][A-Za-z ]+?)(?= *[:↳<]|$)", text)
    if code:
        return f"{status[1]}, {code[1]}" if status else code[1]
    if status:
        return status[1]
    return re.sub(r"<[^>]*>", "", text.rsplit("↳", maxsplit=1)[-1]).strip(" .-")[:200]


def _place(text: str) -> str:
    host = re.search(r"https?://[^/\s?]+", text)
    return f" at {host[0]}" if host else ""
