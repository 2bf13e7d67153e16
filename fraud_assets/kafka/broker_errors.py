"""Why a broker does not let us in, in one sentence: librdkafka tells it apart from the call that fails."""

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
_HANG_UPS = 2
# Other trouble, such as a connection that a busy broker drops, may be followed by its reason.
_NOBODY = re.compile(r"refused|resolve|unreachable|no route|timed out", re.IGNORECASE)


class _Client(Protocol):
    def list_topics(self, topic: str | None = None, timeout: float = -1) -> object: ...

    def poll(self, timeout: float) -> object: ...


@dataclass
class ConnectionErrorListener:
    """Takes what librdkafka tells of a client's connections; give it as `error_cb`."""

    broker: Broker
    connection: Connection
    _refusal: str = ""
    _trouble: str = ""
    _hang_ups: int = field(default=0, repr=False)

    def __call__(self, error: KafkaError) -> None:
        """Notes one event."""
        from confluent_kafka import KafkaError as Codes

        if error.code() == Codes._ALL_BROKERS_DOWN:
            self._hang_ups += 1
            return
        text = re.sub(r" \(after \d+ms.*\)$", "", error.str())
        text = self.connection.without_secrets(re.sub(r"^\w*:?/?/?[^ ]+/(bootstrap|\d+): ", "", text))
        self._trouble = text
        self._refusal = self._refusal or self._sentence(error.code(), text)

    def raise_refusal(self) -> None:
        """Raises `BrokerRefusedError` where the broker has said that it does not let us in."""
        if self._refusal:
            raise BrokerRefusedError(self._refusal)

    def cause(self, otherwise: str) -> str:
        """The last trouble that was told, e.g. `Connection refused`."""
        return self._trouble or otherwise

    def wait(self, client: _Client, seconds: float) -> bool:
        """Whether the broker answers within the time; at once False where nobody is there.

        Raises:
            BrokerRefusedError: it does not let us in.
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
            # Nobody there: told as trouble, and all brokers down. A hang-up is told as the latter alone.
            if self._hang_ups and _NOBODY.search(self._trouble):
                return False
            if self._hang_ups >= _HANG_UPS and not self._trouble:
                raise BrokerRefusedError(self._hang_up_sentence())
            if monotonic() >= deadline:
                return False

    def _sentence(self, code: int, text: str) -> str:
        from confluent_kafka import KafkaError as Codes

        name, at = self.connection.name_of, self.broker.name[0].upper() + self.broker.name[1:]
        protocol = self.connection.config["security.protocol"]
        if code == Codes._AUTHENTICATION:
            return self._login_sentence(text, at)
        if "PLAINTEXT broker" in text or "wrong version number" in text or "packet length too long" in text:
            plain = "SASL_PLAINTEXT" if "SASL" in protocol else "PLAINTEXT"
            return (
                f"{at} does not encrypt, and {name('security.protocol')} is {protocol!r}: "
                f"set KAFKA_BOOTSTRAP_SERVERS to its encrypted port, or KAFKA_SECURITY_PROTOCOL to {plain}."
            )
        if "alert" in text and ("certificate" in text or "unknown ca" in text):
            key = "ssl.certificate.location"
            shown = self.connection.config.get(key)
            state = f"does not accept the one of {name(key)} ({shown})" if shown else "was shown none"
            return (
                f"{at} wants a client certificate that it knows, and {state}: "
                "set KAFKA_SSL_CERTIFICATE_LOCATION and KAFKA_SSL_KEY_LOCATION to the PEM files that it gave you."
            )
        if code == Codes._SSL and "verif" in text:
            authority = self.connection.config.get("ssl.ca.location")
            known = f"the authority in {authority!r}" if authority else "an authority that this system knows"
            return (
                f"The certificate of {self.broker.name} is not signed by {known} for that name, or has run out: "
                f"set {name('ssl.ca.location')} to the PEM file of the authority, and use the name in the certificate."
            )
        return (
            f"{at} could not be talked to safely: {text}. Check the KAFKA_SSL_ settings." if code == Codes._SSL else ""
        )

    def _login_sentence(self, text: str, at: str) -> str:
        name, config = self.connection.name_of, self.connection.config
        offered = re.search(r"supported mechanisms: ?(.*)$", text)
        if "mechanism" in text and offered and offered[1]:
            return (
                f"{at} does not take {name('sasl.mechanism')} {config.get('sasl.mechanism')!r}: "
                f"set KAFKA_SASL_MECHANISM to one of {offered[1]}."
            )
        if "handshake failed" in text:
            return (
                f"{at} takes no log-in there, and {name('security.protocol')} is {config['security.protocol']!r}: "
                "use its port for SASL, or set KAFKA_SECURITY_PROTOCOL to PLAINTEXT or SSL."
            )
        return (
            f"{at} refuses the log-in of {config.get('sasl.username', '')!r} by {config.get('sasl.mechanism')}: "
            f"check {name('sasl.username')} and {name('sasl.password')}."
        )

    def _hang_up_sentence(self) -> str:
        at = self.broker.name[0].upper() + self.broker.name[1:]
        name, protocol = self.connection.name_of("security.protocol"), self.connection.config["security.protocol"]
        wants = "SASL_SSL, with KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD"
        wants = wants if "SSL" in protocol else f"SSL or {wants}"
        return (
            f"{at} hangs up on us, and {name} is {protocol!r}: it probably wants more, "
            f"so set KAFKA_SECURITY_PROTOCOL to {wants}."
        )
