"""The connection in the words of Kafka's Java client, which Spark reads with.

Files are read here and go along as text: the machines that run Spark's executors do not have them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from fraud_assets.errors import SettingError
from fraud_assets.kafka.connection import Connection, connection
from fraud_assets.settings import Settings

UNSHOWN = "jaas|keystore|truststore"
"""Pattern of the properties whose values nobody may see."""

_LOGIN_MODULES = {
    "PLAIN": "org.apache.kafka.common.security.plain.PlainLoginModule",
    "SCRAM-SHA-256": "org.apache.kafka.common.security.scram.ScramLoginModule",
    "SCRAM-SHA-512": "org.apache.kafka.common.security.scram.ScramLoginModule",
}
_SAME_IN_BOTH = ("bootstrap.servers", "security.protocol", "client.rack", "client.dns.lookup")
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_KEY = re.compile(r"-----BEGIN ([A-Z ]*)PRIVATE KEY-----.+?-----END \1PRIVATE KEY-----", re.DOTALL)


def java_client(settings: Settings) -> dict[str, str]:
    """Properties of a Java consumer that reaches the broker as librdkafka's clients do, secrets among them.

    It sees committed transactions alone, and waits for an answer as long as they do.

    Raises:
        SettingError: the connection cannot be made out of the settings, or Spark does not know its way to log in.
    """
    reached = connection(settings)
    wait = str(max(int(settings.kafka_timeout_seconds * 1000), 1000))
    properties = {key: reached.config[key] for key in _SAME_IN_BOTH if reached.config.get(key)}
    properties |= {
        "isolation.level": "read_committed",
        "request.timeout.ms": wait,
        "default.api.timeout.ms": wait,
    }
    protocol = reached.config["security.protocol"]
    if protocol.startswith("SASL"):
        properties |= _login(reached)
    if protocol.endswith("SSL"):
        properties |= _trust(reached) | _identity(reached)
        if reached.config.get("ssl.endpoint.identification.algorithm") == "none":
            properties["ssl.endpoint.identification.algorithm"] = ""
    return properties


def _login(reached: Connection) -> dict[str, str]:
    mechanism = reached.config["sasl.mechanism"]
    module = _LOGIN_MODULES.get(mechanism)
    if module is None:
        raise SettingError(
            f"Setting {reached.name_of('sasl.mechanism')} is {mechanism!r}, by which Spark does not log in: set it to "
            f"one of {', '.join(_LOGIN_MODULES)}, or land with FRAUD_ENGINE=duckdb."
        )
    user, password = (_quoted(reached.config[key]) for key in ("sasl.username", "sasl.password"))
    return {
        "sasl.mechanism": mechanism,
        "sasl.jaas.config": f"{module} required username={user} password={password};",
    }


def _quoted(text: str) -> str:
    """A string as Java's log-in configuration reads it."""
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(plain, escaped)
    return f'"{text}"'


def _trust(reached: Connection) -> dict[str, str]:
    """The authorities that are trusted; none named means those that Java knows."""
    text = _text(reached, "ssl.ca")
    if not text:
        return {}
    return {"ssl.truststore.type": "PEM", "ssl.truststore.certificates": _certificates(reached, "ssl.ca", text)}


def _identity(reached: Connection) -> dict[str, str]:
    """The client's certificate and key, if it has one."""
    if reached.config.get("ssl.keystore.location"):
        key, chain = _of_pkcs12(reached)
    elif certificate := _text(reached, "ssl.certificate"):
        key = _key(reached, _text(reached, "ssl.key"))
        chain = _certificates(reached, "ssl.certificate", certificate)
    else:
        return {}
    return {"ssl.keystore.type": "PEM", "ssl.keystore.key": key, "ssl.keystore.certificate.chain": chain}


def _text(reached: Connection, subject: str) -> str:
    """The PEM text of a file, of all files of a folder, or of the setting itself; empty where none is named."""
    config: Mapping[str, str] = reached.config
    if text := config.get(f"{subject}.pem"):
        return text
    if not (location := config.get(f"{subject}.location")):
        return ""
    path = Path(location).expanduser()
    try:
        files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
        return "\n".join(file.read_text("utf-8", errors="replace") for file in files)
    except OSError as error:
        name = reached.name_of(f"{subject}.location")
        raise SettingError(f"Setting {name} is {location!r}: {error.strerror}. Name one that can be read.") from None


def _certificates(reached: Connection, subject: str, text: str) -> str:
    found = [match[0] for match in _CERTIFICATE.finditer(text)]
    if not found:
        raise SettingError(f"Setting {reached.name_of(f'{subject}.location')} holds no certificate in PEM: correct it.")
    return "\n".join(found)


def _key(reached: Connection, text: str) -> str:
    """The private key in PKCS 8, the only form that Java reads, and without its password."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    found = _KEY.search(text)
    password = reached.config.get("ssl.key.password", "")
    encrypted = found is not None and ("ENCRYPTED" in found[0])
    try:
        return _pkcs8(load_pem_private_key((found or [""])[0].encode(), password.encode() if encrypted else None))
    except (ValueError, TypeError):
        raise SettingError(
            f"Setting {reached.name_of('ssl.key.location')} holds no private key in PEM that "
            f"{reached.name_of('ssl.key.password')} opens: correct them."
        ) from None


def _of_pkcs12(reached: Connection) -> tuple[str, str]:
    """Key and certificate chain of a PKCS 12 store."""
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.hazmat.primitives.serialization.pkcs12 import load_key_and_certificates

    location, password = reached.config["ssl.keystore.location"], reached.config.get("ssl.keystore.password", "")
    try:
        key, certificate, others = load_key_and_certificates(
            Path(location).expanduser().read_bytes(), password.encode() or None
        )
    except (OSError, ValueError):
        key = certificate = None
    if key is None or certificate is None:
        raise SettingError(
            f"Setting {reached.name_of('ssl.keystore.location')} is {location!r}, which holds no key and certificate "
            "that its password opens: correct it."
        )
    chain = [entry.public_bytes(Encoding.PEM).decode() for entry in (certificate, *others)]
    return _pkcs8(key), "".join(chain)


def _pkcs8(key: object) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()  # type: ignore[attr-defined]
