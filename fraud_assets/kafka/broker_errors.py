"""Explains why a broker refuses a connection. librdkafka reports the reason separately from the call that fails."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from fraud_assets.errors import BrokerRefusedError
from fraud_assets.kafka.broker import Broker
from fraud_assets.kafka.connection import Connection

if TYPE_CHECKING:
    from confluent_kafka import KafkaError

_SLICE_SECONDS = 0.1
_CLOSED_CONNECTIONS = 2
# Errors of an address at which no broker listens. After other errors, such as a connection that a busy broker drops,
# the reason may still follow.
_NO_BROKER = re.compile(r"refused|resolve|unreachable|no route|timed out", re.IGNORECASE)


class _Client(Protocol):
    def list_topics(self, topic: str | None = None, timeout: float = -1) -> object: ...

    def poll(self, timeout: float) -> object: ...


@dataclass
class ConnectionErrorListener:
    """Receives the connection errors of a librdkafka client; pass it as `error_cb`."""

    broker: Broker
    connection: Connection
    _refusal: str = ""
    _last_error: str = ""
    _closed_connections: int = field(default=0, repr=False)

    def __call__(self, error: KafkaError) -> None:
        """Records one error."""
        from confluent_kafka import KafkaError as Codes

        if error.code() == Codes._ALL_BROKERS_DOWN:
            self._closed_connections += 1
            return
        text = re.sub(r" \(after \d+ms.*\)$", "", error.str())
        text = self.connection.without_secrets(re.sub(r"^\w*:?/?/?[^ ]+/(bootstrap|\d+): ", "", text))
        self._last_error = text
        self._refusal = self._refusal or self._explain_refusal(error.code(), text)

    def raise_refusal(self) -> None:
        """Raises `BrokerRefusedError` if the broker has refused the connection."""
        if self._refusal:
            raise BrokerRefusedError(self._refusal)

    def cause(self, default: str) -> str:
        """Returns the last error, e.g. `Connection refused`; `default` if there was none."""
        return self._last_error or default

    def wait(self, client: _Client, seconds: float) -> bool:
        """Returns whether the broker answers within the time; returns False at once if no broker listens.

        Raises:
            BrokerRefusedError: The broker refuses the connection.
        """
        from confluent_kafka import KafkaException

        deadline = monotonic() + seconds
        while True:
            try:
                client.list_topics(timeout=max(min(_SLICE_SECONDS, deadline - monotonic()), 0.01))
            except KafkaException:
                client.poll(0)
            else:
                return True
            self.raise_refusal()
            # If no broker listens, librdkafka reports an error and then "all brokers down". If the broker closes the
            # connection, it reports "all brokers down" only.
            if self._closed_connections and _NO_BROKER.search(self._last_error):
                return False
            if self._closed_connections >= _CLOSED_CONNECTIONS and not self._last_error:
                raise BrokerRefusedError(self._explain_closed_connection())
            if monotonic() >= deadline:
                return False

    def _explain_refusal(self, code: int, text: str) -> str:
        """Returns the error message for a refusal; an empty string if the error is no refusal."""
        from confluent_kafka import KafkaError as Codes

        name, title = self.connection.name_of, self.broker.title
        protocol = self.connection.config["security.protocol"]
        if code == Codes._AUTHENTICATION:
            return self._explain_login_failure(text)
        if "PLAINTEXT broker" in text or "wrong version number" in text or "packet length too long" in text:
            plain = "SASL_PLAINTEXT" if "SASL" in protocol else "PLAINTEXT"
            return (
                f"{title} does not encrypt, but {name('security.protocol')} is {protocol!r}: "
                f"set KAFKA_BOOTSTRAP_SERVERS to its encrypted port, or KAFKA_SECURITY_PROTOCOL to {plain}."
            )
        if "alert" in text and ("certificate" in text or "unknown ca" in text):
            key = "ssl.certificate.location"
            shown = self.connection.config.get(key)
            problem = f"does not accept the certificate in {name(key)} ({shown})" if shown else "received none"
            return (
                f"{title} requires a client certificate that it trusts, but {problem}: "
                "set KAFKA_SSL_CERTIFICATE_LOCATION and KAFKA_SSL_KEY_LOCATION to the PEM files of that certificate."
            )
        if code == Codes._SSL and "verif" in text:
            authority = self.connection.config.get("ssl.ca.location")
            trusted = f"the authority in {authority!r}" if authority else "an authority that this system trusts"
            return (
                f"The certificate of {self.broker.name} has expired, is for another name, or is not signed by "
                f"{trusted}: set {name('ssl.ca.location')} to the PEM file of the authority, and use the name in the "
                "certificate."
            )
        return (
            f"{title} could not set up encryption: {text}. Check the KAFKA_SSL_ settings." if code == Codes._SSL else ""
        )

    def _explain_login_failure(self, text: str) -> str:
        name, config, title = self.connection.name_of, self.connection.config, self.broker.title
        offered = re.search(r"supported mechanisms: ?(.*)$", text)
        if "mechanism" in text and offered and offered[1]:
            return (
                f"{title} does not support {name('sasl.mechanism')} {config.get('sasl.mechanism')!r}: "
                f"set KAFKA_SASL_MECHANISM to one of {offered[1]}."
            )
        if "handshake failed" in text:
            return (
                f"{title} accepts no login on this port, but {name('security.protocol')} is "
                f"{config['security.protocol']!r}: use its port for SASL, or set KAFKA_SECURITY_PROTOCOL to PLAINTEXT "
                "or SSL."
            )
        return (
            f"{title} refuses the login of {config.get('sasl.username', '')!r} with {config.get('sasl.mechanism')}: "
            f"check {name('sasl.username')} and {name('sasl.password')}."
        )

    def _explain_closed_connection(self) -> str:
        name, protocol = self.connection.name_of("security.protocol"), self.connection.config["security.protocol"]
        stronger = "SASL_SSL, with KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD"
        stronger = stronger if "SSL" in protocol else f"SSL or {stronger}"
        return (
            f"{self.broker.title} closes the connection. {name} is {protocol!r}, and the broker probably requires a "
            f"stronger protocol: set KAFKA_SECURITY_PROTOCOL to {stronger}."
        )
