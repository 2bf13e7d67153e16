"""Produces over HTTPS, through Confluent's REST API (v3 records), for networks that let nothing else out.

Records go in requests of many, one request at a time, so that they stay in order; each comes back with a report of
its own. What the API puts off (429, 5xx, a broken connection) is sent again, so a record may arrive twice, as after
any producer's restart; by its id it counts once.
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
from fraud_assets.kafka.serializer import serializers
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    import httpx

REQUEST_RECORDS = 1_000
"""Records of one request, at most."""

REQUEST_BYTES = 1_000_000
"""Bytes of the bodies of one request, about at most."""

LINGER_SECONDS = 0.2
"""A record waits for others only while the last request is younger than that."""

PATIENCE_SECONDS = 60.0
"""How long records are sent again while none gets through."""

_LONGEST_PAUSE_SECONDS = 30.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass
class RestProducer:
    """A connection to send with, used like `kafka.producer.Producer`: a `with` block whose end waits for delivery.

    Args:
        settings: CONFLUENT_API, API_KEY and CLUSTER_ID, topics and time-outs.
        sleep: waits between two tries.

    Raises:
        SettingError: the API's settings are missing or cannot be used; from the constructor.
        BrokerError: a record was refused, or could not be delivered; from `send` and `flush`.
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
        self._serializers = serializers(self.settings)
        self._client = _http_client(self.settings, self._credentials)

    def send(self, message: Message) -> None:
        """Queue one message; sends what is queued when it is much, or when the last request is a while ago."""
        if serialize := self._serializers.get(message.topic):
            message = message._replace(value=serialize(message.value))
        self._waiting.append(message)
        self._bytes += len(message.value)
        full = len(self._waiting) >= REQUEST_RECORDS or self._bytes >= REQUEST_BYTES
        if full or time.monotonic() - self._sent >= LINGER_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Wait until everything queued is delivered."""
        while self._waiting:
            # One topic a request; what is in between stays in order within its topic.
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
            # After a failure of ours, what is queued would only fail again.
            if kind is None or not issubclass(kind, FraudAssetsError):
                self.flush()
        finally:
            self._client.close()

    def _deliver(self, topic: str, batch: Sequence[Message]) -> None:
        """Sends records until each is acknowledged."""
        waited, tries = 0.0, 0
        while batch:
            left, asked, reason = self._post(topic, batch)
            if len(left) < len(batch):
                waited, tries = 0.0, 0
            batch = left
            if not batch:
                return
            pause = max(asked, min(0.5 * 2**tries, _LONGEST_PAUSE_SECONDS))
            if waited + pause > PATIENCE_SECONDS:
                raise BrokerError(
                    f"{self._subject()} takes no messages ({reason}): {len(batch):,} to topic {topic!r} were not "
                    "delivered. Try again later; what arrives twice is kept once, by its id."
                )
            self.sleep(pause)
            waited, tries = waited + pause, tries + 1

    def _post(self, topic: str, batch: Sequence[Message]) -> tuple[Sequence[Message], float, str]:
        """One request: the records that are to be sent again, after how many seconds at least, and why."""
        import httpx

        url = self._url.replace("{topic}", quote(topic, safe=""))
        try:
            answer = self._client.post(url, content=_records(batch), headers={"Content-Type": "application/json"})
        except httpx.TransportError as error:
            reason = self._blotted(str(error) or type(error).__name__)
            if "CERTIFICATE_VERIFY_FAILED" in reason:
                raise BrokerError(
                    f"The certificate of {self._subject()} is signed by no authority that is known here: "
                    "point SSL_CERT_FILE to the PEM file of the authority, your company's perhaps."
                ) from None
            # It may have arrived all the same; sending again is safe, losing is not.
            return batch, 0.0, reason
        if answer.status_code == 413 and len(batch) > 1:
            # Too much for one request; in two each may fit.
            half = len(batch) // 2
            self._deliver(topic, batch[:half])
            self._deliver(topic, batch[half:])
            return [], 0.0, ""
        reports = _objects(answer.text)
        if answer.status_code == 200 and (reports or not answer.text.strip()):
            return self._sort(topic, batch, reports)
        if _passes(answer.status_code):
            return batch, _asked_pause(answer), f"HTTP {answer.status_code}"
        if answer.status_code < 400:
            raise BrokerError(
                f"{self._subject()} does not answer as a Kafka REST API (HTTP {answer.status_code}): correct the "
                "address, or let it through your proxy."
            )
        raise self._refused(answer.status_code, reports[0].get("message", "") if reports else "", topic, batch[0])

    def _sort(
        self, topic: str, batch: Sequence[Message], reports: Sequence[dict[str, Any]]
    ) -> tuple[Sequence[Message], float, str]:
        """Counts what was delivered; gives what is to be sent again."""
        again: list[Message] = []
        pause, reason = 0.0, "the answer ended early"
        refused: BrokerError | None = None
        for message, report in zip_longest(batch, reports[: len(batch)]):
            code = _status(report.get("error_code")) if report else None
            if code == 200:
                self.delivered += 1
            elif report is None or code is None or _passes(code):
                again.append(message)
                if report is not None:
                    pause = max(pause, float(report.get("wait_for_ms") or 0) / 1000)
                    reason = f"error code {report.get('error_code')}"
            elif refused is None:
                refused = self._refused(code, str(report.get("message") or ""), topic, message)
        if refused is not None:
            raise refused
        return again, min(pause, _LONGEST_PAUSE_SECONDS), reason

    def _refused(self, code: int, text: str, topic: str, message: Message) -> BrokerError:
        said = f" ({self._blotted(text)[:200]})" if text else ""
        subject = self._subject()
        cluster = f"CLUSTER_ID {self.settings.confluent_cluster_id!r}"
        sentences = {
            401: f"{subject} does not accept API_KEY{said}: set it to key:secret of a key for that cluster.",
            403: f"{subject} does not let API_KEY write to topic {topic!r}{said}: give it that right.",
            404: f"{subject} knows no topic {topic!r} in {cluster}{said}: create it, or correct the setting.",
            413: (
                f"{subject} does not take a message of {len(message.value):,} bytes for topic {topic!r}{said}: "
                "send it by Kafka, or leave it out."
            ),
        }
        return BrokerError(
            sentences.get(
                code, f"{subject} refused a message to topic {topic!r} with error {code}{said}: correct that."
            )
        )

    def _subject(self) -> str:
        return f"CONFLUENT_API {self.settings.confluent_api!r}"

    def _blotted(self, text: str) -> str:
        key = self.settings.confluent_api_key.get_secret_value()
        for secret in filter(None, (key, *(self._credentials or ())[1:])):
            text = text.replace(secret, "***")
        return text


def _records_url(settings: Settings) -> str:
    """Where records go, with `{topic}` to fill in."""
    api = settings.confluent_api.rstrip("/")
    parts = urlsplit(api)
    if "@" in parts.netloc:
        raise SettingError("Setting CONFLUENT_API holds credentials: put them into API_KEY as key:secret.")
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise SettingError(f"Setting CONFLUENT_API is {api!r}: write it as https://host:port of the REST endpoint.")
    if parts.scheme == "http" and settings.confluent_api_key.get_secret_value() and parts.hostname not in _LOOPBACK:
        raise SettingError(f"Setting CONFLUENT_API is {api!r}: API_KEY would go out in clear, so write https://.")
    if not settings.confluent_cluster_id:
        raise SettingError("Setting CLUSTER_ID is empty and CONFLUENT_API needs it: set it to the cluster, as lkc-….")
    base = api if api.endswith("/v3") else f"{api}/kafka/v3"
    return f"{base}/clusters/{quote(settings.confluent_cluster_id, safe='')}/topics/{{topic}}/records"


def _credentials(settings: Settings) -> tuple[str, str] | None:
    """Key and secret of API_KEY, which holds them plainly or in base64; None where it is empty."""
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
        raise SettingError("Setting API_KEY cannot be used: write it as key:secret, or as the base64 of that.")
    return key, secret


def _http_client(settings: Settings, credentials: tuple[str, str] | None) -> httpx.Client:
    import httpx

    wait = httpx.Timeout(max(settings.kafka_timeout_seconds, 30), connect=settings.kafka_timeout_seconds)
    return httpx.Client(auth=credentials, timeout=wait, headers={"Accept": "application/json"})


def _records(batch: Sequence[Message]) -> Iterator[bytes]:
    """Records as concatenated JSON, in binary so that every byte arrives as it is; sent in chunks."""
    for message in batch:
        record: dict[str, Any] = {"value": _binary(message.value)}
        if message.key is not None:
            record["key"] = _binary(message.key)
        yield json.dumps(record).encode() + b"\n"


def _binary(content: bytes) -> dict[str, str]:
    return {"type": "BINARY", "data": base64.b64encode(content).decode()}


def _objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects of an answer; one that was cut off, and what is none, is left out."""
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
    """The HTTP status that an error code belongs to: 404 of 404 and of 40403."""
    text = str(code)
    return int(text[:3]) if text.isdigit() and len(text) in (3, 5) else 500


def _passes(code: int) -> bool:
    """Whether an error is one of the moment."""
    return code in (408, 429) or code >= 500


def _asked_pause(answer: httpx.Response) -> float:
    """Seconds that the API asks to wait."""
    asked = answer.headers.get("Retry-After", "")
    return min(float(asked), _LONGEST_PAUSE_SECONDS) if asked.isdigit() else 0.0
