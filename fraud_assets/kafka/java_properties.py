"""Translates the connection to properties of Kafka's Java client, which Spark uses.

Certificate and key files are read here and passed as text, because the machines that run Spark's executors do not have
the files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from fraud_assets.errors import SettingError
from fraud_assets.kafka.connection import Connection, load_connection
from fraud_assets.settings import Settings

UNSHOWN = "jaas|keystore|truststore"
"""Pattern of the properties whose values must not be shown."""

_LOGIN_MODULES = {
    "PLAIN": "org.apache.kafka.common.security.plain.PlainLoginModule",
    "SCRAM-SHA-256": "org.apache.kafka.common.security.scram.ScramLoginModule",
    "SCRAM-SHA-512": "org.apache.kafka.common.security.scram.ScramLoginModule",
}
_SAME_IN_BOTH = ("bootstrap.servers", "security.protocol", "client.rack", "client.dns.lookup")
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_KEY = re.compile(r"-----BEGIN ([A-Z ]*)PRIVATE KEY-----.+?-----END \1PRIVATE KEY-----", re.DOTALL)


def build_java_properties(settings: Settings) -> dict[str, str]:
    """Returns the properties, including secrets, of a Java consumer that reaches the broker as librdkafka's clients do.

    Like them, it reads committed transactions only and uses FRAUD_KAFKA_TIMEOUT_SECONDS as its time-out.

    Raises:
        SettingError: The settings of the connection are invalid, or Spark does not support the login mechanism.
    """
    configured = load_connection(settings)
    wait = str(max(int(settings.kafka_timeout_seconds * 1000), 1000))
    properties = {key: configured.config[key] for key in _SAME_IN_BOTH if configured.config.get(key)}
    properties |= {
        "isolation.level": "read_committed",
        "request.timeout.ms": wait,
        "default.api.timeout.ms": wait,
    }
    protocol = configured.config["security.protocol"]
    if protocol.startswith("SASL"):
        properties |= _login_properties(configured)
    if protocol.endswith("SSL"):
        properties |= _trust_store(configured) | _key_store(configured)
        if configured.config.get("ssl.endpoint.identification.algorithm") == "none":
            properties["ssl.endpoint.identification.algorithm"] = ""
    return properties


def _login_properties(configured: Connection) -> dict[str, str]:
    mechanism = configured.config["sasl.mechanism"]
    module = _LOGIN_MODULES.get(mechanism)
    if module is None:
        raise SettingError(
            f"Setting {configured.name_of('sasl.mechanism')} is {mechanism!r}, which Spark does not support: set it "
            f"to one of {', '.join(_LOGIN_MODULES)}, or land with FRAUD_ENGINE=duckdb."
        )
    user, password = (_quoted(configured.config[key]) for key in ("sasl.username", "sasl.password"))
    return {
        "sasl.mechanism": mechanism,
        "sasl.jaas.config": f"{module} required username={user} password={password};",
    }


def _quoted(text: str) -> str:
    """Returns the text as a string literal of Java's login configuration."""
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(plain, escaped)
    return f'"{text}"'


def _trust_store(configured: Connection) -> dict[str, str]:
    """Returns the trusted authorities; empty if none is set, so that Java uses its own."""
    text = _pem_text(configured, "ssl.ca")
    if not text:
        return {}
    return {"ssl.truststore.type": "PEM", "ssl.truststore.certificates": _certificates(configured, "ssl.ca", text)}


def _key_store(configured: Connection) -> dict[str, str]:
    """Returns the client's certificate and key; empty if none is set."""
    if configured.config.get("ssl.keystore.location"):
        key, chain = _read_pkcs12(configured)
    elif certificate := _pem_text(configured, "ssl.certificate"):
        key = _private_key(configured, _pem_text(configured, "ssl.key"))
        chain = _certificates(configured, "ssl.certificate", certificate)
    else:
        return {}
    return {"ssl.keystore.type": "PEM", "ssl.keystore.key": key, "ssl.keystore.certificate.chain": chain}


def _pem_text(configured: Connection, subject: str) -> str:
    """Returns the PEM text of the setting itself, of its file or of all files in its folder; empty if none is set."""
    config: Mapping[str, str] = configured.config
    if text := config.get(f"{subject}.pem"):
        return text
    if not (location := config.get(f"{subject}.location")):
        return ""
    path = Path(location).expanduser()
    try:
        files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
        return "\n".join(file.read_text("utf-8", errors="replace") for file in files)
    except OSError as error:
        name = configured.name_of(f"{subject}.location")
        raise SettingError(f"Setting {name} is {location!r}: {error.strerror}. Set it to a readable file.") from None


def _certificates(configured: Connection, subject: str, text: str) -> str:
    found = [match[0] for match in _CERTIFICATE.finditer(text)]
    if not found:
        raise SettingError(
            f"Setting {configured.name_of(f'{subject}.location')} holds no certificate in PEM format: correct it."
        )
    return "\n".join(found)


def _private_key(configured: Connection, text: str) -> str:
    """Returns the private key without its password, in PKCS 8, the only format that Java reads."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    found = _KEY.search(text)
    password = configured.config.get("ssl.key.password", "")
    encrypted = found is not None and ("ENCRYPTED" in found[0])
    try:
        return _pkcs8(load_pem_private_key((found or [""])[0].encode(), password.encode() if encrypted else None))
    except (ValueError, TypeError):
        raise SettingError(
            f"Setting {configured.name_of('ssl.key.location')} holds no private key in PEM format that "
            f"{configured.name_of('ssl.key.password')} can decrypt: correct them."
        ) from None


def _read_pkcs12(configured: Connection) -> tuple[str, str]:
    """Returns the key and the certificate chain of a PKCS 12 store."""
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.hazmat.primitives.serialization.pkcs12 import load_key_and_certificates

    location, password = configured.config["ssl.keystore.location"], configured.config.get("ssl.keystore.password", "")
    try:
        key, certificate, others = load_key_and_certificates(
            Path(location).expanduser().read_bytes(), password.encode() or None
        )
    except (OSError, ValueError):
        key = certificate = None
    if key is None or certificate is None:
        raise SettingError(
            f"Setting {configured.name_of('ssl.keystore.location')} is {location!r}, which holds no key and "
            "certificate that its password can decrypt: correct it."
        )
    chain = [entry.public_bytes(Encoding.PEM).decode() for entry in (certificate, *others)]
    return _pkcs8(key), "".join(chain)


def _pkcs8(key: object) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()  # type: ignore[attr-defined]
