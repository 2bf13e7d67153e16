"""Produces over HTTPS, through Confluent's REST API (v3 records), for networks that allow only HTTPS.

Each request carries many records, and requests are sent one at a time to keep the order. The API reports on each
record. After a temporary failure (429, 5xx, a broken connection) records are sent again. A record may therefore arrive
twice, as after the restart of any producer. It counts once, by its id.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from fraud_assets.errors import BrokerError, FraudAssetsError, SettingError
from fraud_assets.kafka.producer import Message
from fraud_assets.kafka.serializer import create_serializers
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    import httpx

REQUEST_RECORDS = 1_000
"""Maximum number of records in a request."""

REQUEST_BYTES = 1_000_000
"""Approximate maximum of the bytes of bodies in a request."""

LINGER_SECONDS = 0.2
"""Maximum seconds after the last request for which a record waits for others."""

PATIENCE_SECONDS = 60.0
"""Maximum seconds for which records are retried while none is delivered."""

_LONGEST_PAUSE_SECONDS = 30.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass
class RestProducer:
    """A producer's connection. Use it in a `with` block: the end of the block waits for delivery.

    Args:
        settings: CONFLUENT_API, API_KEY and CLUSTER_ID, topics and time-outs.
        sleep: Waits between two tries.

    Attributes:
        delivered: Number of delivered messages.

    Raises:
        SettingError: The API's settings are missing or invalid (constructor).
        BrokerError: A record was refused or could not be delivered (`send` and `flush`).
    """

    settings: Settings
    sleep: Callable[[float], None] = time.sleep
    delivered: int = 0
    _waiting: list[Message] = field(default_factory=list, repr=False)
    _bytes: int = 0
    _sent: float = 0.0

    def __post_init__(self) -> None:
        self._url = _records_url(self.settings)
        self._credentials = _credentials(self.settings)
        self._serializers = create_serializers(self.settings)
        self._client = _http_client(self.settings, self._credentials)

    def send(self, message: Message) -> None:
        """Queues one message; sends the queue if it is full or LINGER_SECONDS have passed since the last request."""
        if serialize := self._serializers.get(message.topic):
            message = message._replace(value=serialize(message.value))
        self._waiting.append(message)
        self._bytes += len(message.value)
        full = len(self._waiting) >= REQUEST_RECORDS or self._bytes >= REQUEST_BYTES
        if full or time.monotonic() - self._sent >= LINGER_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Waits until all queued messages are delivered."""
        while self._waiting:
            # A request has one topic. Messages stay in order within their topic.
            topic = self._waiting[0].topic
            batch = [message for message in self._waiting if message.topic == topic]
            self._waiting = [message for message in self._waiting if message.topic != topic]
            self._deliver(topic, batch)
        self._bytes = 0
        self._sent = time.monotonic()

    def __enter__(self) -> RestProducer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # After one of our own errors, the queued messages would fail again.
            if kind is None or not issubclass(kind, FraudAssetsError):
                self.flush()
        finally:
            self._client.close()

    def _deliver(self, topic: str, batch: Sequence[Message]) -> None:
        """Sends records until all are acknowledged."""
        waited, tries = 0.0, 0
        while batch:
            undelivered, requested_pause, reason = self._post(topic, batch)
            if len(undelivered) < len(batch):
                waited, tries = 0.0, 0
            batch = undelivered
            if not batch:
                return
            pause = max(requested_pause, min(0.5 * 2**tries, _LONGEST_PAUSE_SECONDS))
            if waited + pause > PATIENCE_SECONDS:
                raise BrokerError(
                    f"{self._subject()} accepts no messages ({reason}). Undelivered messages to topic {topic!r}: "
                    f"{len(batch):,}. Try again later; a message that arrives twice counts once, by its id."
                )
            self.sleep(pause)
            waited, tries = waited + pause, tries + 1

    def _post(self, topic: str, batch: Sequence[Message]) -> tuple[Sequence[Message], float, str]:
        """Sends one request.

        Returns:
            The records to send again, the minimum pause before that in seconds, and the reason.
        """
        import httpx

        url = self._url.replace("{topic}", quote(topic, safe=""))
        try:
            answer = self._client.post(url, content=_records(batch), headers={"Content-Type": "application/json"})
        except httpx.TransportError as error:
            reason = self._mask_secrets(str(error) or type(error).__name__)
            if "CERTIFICATE_VERIFY_FAILED" in reason:
                raise BrokerError(
                    f"The certificate of {self._subject()} is not signed by an authority that this system trusts: "
                    "set SSL_CERT_FILE to the PEM file of the authority, for example your company's."
                ) from None
            # The records may have arrived. Sending them twice is safe; losing them is not.
            return batch, 0.0, reason
        if answer.status_code == 413 and len(batch) > 1:
            # The request is too large; each half may fit.
            half = len(batch) // 2
            self._deliver(topic, batch[:half])
            self._deliver(topic, batch[half:])
            return [], 0.0, ""
        reports = _objects(answer.text)
        if answer.status_code == 200 and (reports or not answer.text.strip()):
            return self._count_delivered(topic, batch, reports)
        if _is_temporary(answer.status_code):
            return batch, _requested_pause(answer), f"HTTP {answer.status_code}"
        if answer.status_code < 400:
            raise BrokerError(
                f"{self._subject()} does not answer like a Kafka REST API (HTTP {answer.status_code}): correct the "
                "address, or allow it in your proxy."
            )
        raise self._refusal(answer.status_code, reports[0].get("message", "") if reports else "", topic, batch[0])

    def _count_delivered(
        self, topic: str, batch: Sequence[Message], reports: Sequence[dict[str, Any]]
    ) -> tuple[Sequence[Message], float, str]:
        """Counts the delivered records; returns the same as `_post`.

        Raises:
            BrokerError: The API refuses a record.
        """
        undelivered: list[Message] = []
        pause, reason = 0.0, "the answer ended early"
        refused: BrokerError | None = None
        for message, report in zip_longest(batch, reports[: len(batch)]):
            code = _status(report.get("error_code")) if report else None
            if code == 200:
                self.delivered += 1
            elif report is None or code is None or _is_temporary(code):
                undelivered.append(message)
                if report is not None:
                    pause = max(pause, float(report.get("wait_for_ms") or 0) / 1000)
                    reason = f"error code {report.get('error_code')}"
            elif refused is None:
                refused = self._refusal(code, str(report.get("message") or ""), topic, message)
        if refused is not None:
            raise refused
        return undelivered, min(pause, _LONGEST_PAUSE_SECONDS), reason

    def _refusal(self, code: int, text: str, topic: str, message: Message) -> BrokerError:
        detail = f" ({self._mask_secrets(text)[:200]})" if text else ""
        subject = self._subject()
        cluster = f"CLUSTER_ID {self.settings.confluent_cluster_id!r}"
        sentences = {
            401: f"{subject} does not accept API_KEY{detail}: set it to key:secret of a key of that cluster.",
            403: f"{subject} does not allow API_KEY to write to topic {topic!r}{detail}: grant that right.",
            404: f"{subject} has no topic {topic!r} in {cluster}{detail}: create it, or correct the setting.",
            413: (
                f"{subject} does not accept a message of {len(message.value):,} bytes for topic {topic!r}{detail}: "
                "send it through Kafka, or leave it out."
            ),
        }
        return BrokerError(
            sentences.get(
                code, f"{subject} refused a message to topic {topic!r} with error {code}{detail}: correct the cause."
            )
        )

    def _subject(self) -> str:
        return f"CONFLUENT_API {self.settings.confluent_api!r}"

    def _mask_secrets(self, text: str) -> str:
        key = self.settings.confluent_api_key.get_secret_value()
        for secret in filter(None, (key, *(self._credentials or ())[1:])):
            text = text.replace(secret, "***")
        return text


def _records_url(settings: Settings) -> str:
    """Returns the address of the records endpoint, with `{topic}` as a placeholder."""
    api = settings.confluent_api.rstrip("/")
    parts = urlsplit(api)
    if "@" in parts.netloc:
        raise SettingError("Setting CONFLUENT_API contains credentials: move them to API_KEY as key:secret.")
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise SettingError(f"Setting CONFLUENT_API is {api!r}: write it as https://host:port of the REST endpoint.")
    if parts.scheme == "http" and settings.confluent_api_key.get_secret_value() and parts.hostname not in _LOOPBACK:
        raise SettingError(f"Setting CONFLUENT_API is {api!r}: API_KEY would be sent unencrypted, so write https://.")
    if not settings.confluent_cluster_id:
        raise SettingError(
            "Setting CLUSTER_ID is empty, but CONFLUENT_API requires it: set it to the cluster id, for example lkc-…."
        )
    base = api if api.endswith("/v3") else f"{api}/kafka/v3"
    return f"{base}/clusters/{quote(settings.confluent_cluster_id, safe='')}/topics/{{topic}}/records"


def _credentials(settings: Settings) -> tuple[str, str] | None:
    """Returns key and secret from API_KEY, which holds them as plain text or in base64; None if it is empty."""
    text = settings.confluent_api_key.get_secret_value().strip().removeprefix("Basic ")
    if not text:
        return None
    if ":" not in text:
        try:
            text = base64.b64decode(text, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            text = ""
    key, colon, secret = text.partition(":")
    if not (key and colon and secret):
        raise SettingError("Setting API_KEY is invalid: write it as key:secret, or as its base64 encoding.")
    return key, secret


def _http_client(settings: Settings, credentials: tuple[str, str] | None) -> httpx.Client:
    import httpx

    wait = httpx.Timeout(max(settings.kafka_timeout_seconds, 30), connect=settings.kafka_timeout_seconds)
    return httpx.Client(auth=credentials, timeout=wait, headers={"Accept": "application/json"})


def _records(batch: Sequence[Message]) -> Iterator[bytes]:
    """Yields records as concatenated JSON; base64 keeps every byte of key and body."""
    for message in batch:
        record: dict[str, Any] = {"value": _binary(message.value)}
        if message.key is not None:
            record["key"] = _binary(message.key)
        yield json.dumps(record).encode() + b"\n"


def _binary(content: bytes) -> dict[str, str]:
    return {"type": "BINARY", "data": base64.b64encode(content).decode()}


def _objects(text: str) -> list[dict[str, Any]]:
    """Returns the JSON objects of an answer, without a truncated one and without other values."""
    decoder = json.JSONDecoder()
    found: list[dict[str, Any]] = []
    position = 0
    while True:
        while position < len(text) and text[position].isspace():
            position += 1
        try:
            entry, position = decoder.raw_decode(text, position)
        except ValueError:
            return found
        found += [entry] if isinstance(entry, dict) else []


def _status(code: object) -> int:
    """Returns the HTTP status of an error code: 404 for 404 and for 40403."""
    text = str(code)
    return int(text[:3]) if text.isdigit() and len(text) in (3, 5) else 500


def _is_temporary(code: int) -> bool:
    """Returns whether an HTTP status means a temporary error."""
    return code in (408, 429) or code >= 500


def _requested_pause(answer: httpx.Response) -> float:
    """Returns the pause in seconds that the API requests."""
    seconds = answer.headers.get("Retry-After", "")
    return min(float(seconds), _LONGEST_PAUSE_SECONDS) if seconds.isdigit() else 0.0
