"""Builds librdkafka's settings of the connection from environment variables and a `client.properties` file.

Environment variables override the file. The file may use the names of librdkafka or of Kafka's Java clients; Confluent
Cloud provides both. Java's own settings are translated if they matter to the connection, and ignored otherwise.
Settings that affect delivery and positions belong to the platform and are not read from the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fraud_assets.errors import FraudAssetsError, SettingError, convert_disk_error, find_open_file_fault, is_temporary
from fraud_assets.settings import Settings, environment_name

Client = TypeVar("Client")

# Field of `Settings` by librdkafka's name.
_FIELDS = {
    "bootstrap.servers": "kafka_bootstrap_servers",
    "security.protocol": "kafka_security_protocol",
    "sasl.mechanism": "kafka_sasl_mechanism",
    "sasl.username": "kafka_sasl_username",
    "sasl.password": "kafka_sasl_password",
    "ssl.ca.location": "kafka_ssl_ca_location",
    "ssl.certificate.location": "kafka_ssl_certificate_location",
    "ssl.key.location": "kafka_ssl_key_location",
    "ssl.key.password": "kafka_ssl_key_password",
}
_FILES = ("ssl.ca.location", "ssl.certificate.location", "ssl.key.location", "ssl.keystore.location")
_SECRET = re.compile(r"password|secret|\.key\.pem|private\.key|user\.info")
_OTHER_NAMES = {"sasl.mechanisms": "sasl.mechanism", "metadata.broker.list": "bootstrap.servers"}

_OURS = re.compile(
    r"group\.|session\.timeout|heartbeat\.|max\.poll\.|partition\.assignment|enable\.(auto|idempotence|partition)|auto\."
    r"|isolation\.|acks$|request\.required|transactional|allow\.auto|log_level$|schema\.registry|basic\.auth"
)
_JAVA_ONLY = re.compile(
    r"sasl\.(jaas|login|kerberos|client\.callback|oauthbearer)|security\.providers"
    r"|ssl\.(truststore|keystore|protocol|enabled|provider|keymanager|trustmanager|secure|engine|cipher)"
)
_JAVA_STORE = re.compile(r"sasl\.jaas|ssl\.(truststore|keystore)\.")
_CONNECTION = re.compile(r"(sasl|ssl|security|bootstrap)\.")


@dataclass(frozen=True)
class Connection:
    """librdkafka's settings of the connection, with the source of each.

    Attributes:
        config: Values by librdkafka's names; contains secrets.
        named: Source of each setting, for error messages, e.g. `KAFKA_SASL_PASSWORD`.
    """

    config: Mapping[str, str] = field(repr=False)
    named: Mapping[str, str]

    @property
    def bootstrap(self) -> str:
        """`host:port,…`; empty if none is set."""
        return self.config.get("bootstrap.servers", "")

    def name_of(self, key: str) -> str:
        """Returns the name under which a setting is set, or can be set."""
        return self.named.get(key) or (environment_name(_FIELDS[key]) if key in _FIELDS else key)

    def without_secrets(self, text: str) -> str:
        """Returns the text with every secret of the connection masked."""
        for key, value in self.config.items():
            if _SECRET.search(key) and value:
                text = text.replace(value, "***")
        return text

    def client(self, kind: Callable[[dict[str, Any]], Client], config: Mapping[str, Any]) -> Client:
        """Creates a librdkafka client.

        Args:
            kind: Class of the client.
            config: Its settings.

        Raises:
            SettingError: librdkafka refuses a setting, e.g. a certificate that cannot be read.
            DiskError: This process cannot open any more files.
        """
        from confluent_kafka import KafkaException

        try:
            return kind(dict(config))
        except KafkaException as error:
            raise self._setting_error(error.args[0].str()) from None

    def _setting_error(self, reason: str) -> FraudAssetsError:
        # If the process has no free file descriptor, the certificate is not the cause.
        exhausted = find_open_file_fault()
        if exhausted:
            return exhausted
        reason = self.without_secrets(reason.rpartition("client: ")[2])
        key = next((name for name in sorted(self.config, key=len, reverse=True) if name in reason), "")
        subject = (
            f"Setting {self.name_of(key)} cannot be used" if key else "The settings of the Kafka client are invalid"
        )
        if "key values mismatch" in reason:
            reason = f"the key does not belong to the certificate of {self.name_of('ssl.certificate.location')}"
        return SettingError(f"{subject}: {reason}. Correct it, and see KAFKA_… in docs/settings.md.")


EMBEDDED = Connection({"security.protocol": "PLAINTEXT"}, {})
"""The connection to the embedded broker."""


def load_connection(settings: Settings) -> Connection:
    """Returns the connection to the external broker.

    Raises:
        SettingError: The properties file or a certificate cannot be read, or a setting of the login is missing.
    """
    config: dict[str, str] = {}
    named: dict[str, str] = {}
    explicit = {key: value for key, name in _FIELDS.items() if (value := _setting_text(getattr(settings, name)))}
    if settings.kafka_client_properties:
        config = _read_properties(Path(settings.kafka_client_properties).expanduser(), explicit)
        named = {key: f"{key} in {settings.kafka_client_properties}" for key in config}
    config |= explicit
    named |= {key: environment_name(_FIELDS[key]) for key in explicit}
    complete = Connection(config, named)
    _fill_in_defaults(complete, config)
    return complete


def select_known_settings(connection: Connection) -> dict[str, str]:
    """Returns the settings that librdkafka knows, without those that only Java clients know.

    Raises:
        SettingError: A setting of the connection is unknown, e.g. mistyped, or invalid.
    """
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    # Without an address, the client opens no connection.
    config = {key: value for key, value in connection.config.items() if key != "bootstrap.servers"}
    while config:
        try:
            AdminClient({**config, "log_level": 0})
            break
        except KafkaException as error:
            unknown = re.search(r'No such configuration property: "([^"]+)"', error.args[0].str())
            if unknown is None or unknown[1] not in config:
                raise connection._setting_error(error.args[0].str()) from None
        key = unknown[1]
        if _CONNECTION.match(key) and not _JAVA_ONLY.match(key):
            raise SettingError(f"Setting {connection.name_of(key)} is unknown to all Kafka clients: correct its name.")
        del config[key]
    return config


def _setting_text(value: Any) -> str:
    return value.get_secret_value() if hasattr(value, "get_secret_value") else value


def _fill_in_defaults(connection: Connection, config: dict[str, str]) -> None:
    """Derives missing settings from the others, never with a weaker protocol than the settings imply.

    Args:
        connection: The connection, for the names of its settings.
        config: Its settings; changed in place.
    """
    config["security.protocol"] = config.get("security.protocol", "").upper() or _infer_protocol(config)
    for key in _FILES:
        path = config.get(key)
        if path and not Path(path).exists():
            raise SettingError(
                f"Setting {connection.name_of(key)} is {path!r}, which does not exist. Set it to an existing file."
            )
    if config["security.protocol"].startswith("SASL"):
        mechanism = config.setdefault("sasl.mechanism", "PLAIN")
        missing = [key for key in ("sasl.username", "sasl.password") if not config.get(key)]
        if missing and (mechanism == "PLAIN" or mechanism.startswith("SCRAM")):
            names = " and ".join(connection.name_of(key) for key in missing)
            raise SettingError(
                f"Setting {connection.name_of('security.protocol')} is {config['security.protocol']!r}, but {names} "
                f"{'is' if len(missing) == 1 else 'are'} empty: set the user name and the password of the login."
            )
    if bool(config.get("ssl.certificate.location")) != bool(config.get("ssl.key.location")):
        both = ("ssl.certificate.location", "ssl.key.location")
        present, absent = both if config.get(both[0]) else reversed(both)
        raise SettingError(
            f"Setting {connection.name_of(present)} is set, but {connection.name_of(absent)} is not: set both."
        )


def _infer_protocol(config: Mapping[str, str]) -> str:
    if config.get("sasl.username"):
        return "SASL_SSL"
    return "SSL" if any(key.startswith("ssl.") and "location" in key for key in config) else "PLAINTEXT"


def _read_properties(path: Path, explicit: Mapping[str, str]) -> dict[str, str]:
    """Returns librdkafka's settings from a properties file."""
    import javaproperties

    where = f"Setting KAFKA_CLIENT_PROPERTIES is {str(path)!r}"
    try:
        with path.open(encoding="utf-8") as file:
            read = javaproperties.load(file)
    except OSError as error:
        if is_temporary(error):
            raise convert_disk_error(error) or error from None
        raise SettingError(f"{where}: {error.strerror}. Set it to the file from your broker's operator.") from None
    except ValueError:
        raise SettingError(f"{where}: it is not a properties file in UTF-8. Write it as lines of key=value.") from None
    values = {_OTHER_NAMES.get(key, key): value.strip() for key, value in read.items()}
    # Values that are names of Java classes are left out.
    config = {
        key: value
        for key, value in values.items()
        if value and not _OURS.match(key) and not value.startswith(("org.apache.kafka.", "io.confluent."))
    }
    jaas = values.get("sasl.jaas.config")
    if jaas and not {"sasl.username", "sasl.password"} <= explicit.keys():
        config |= _read_jaas(jaas, str(path))
    config = {key: value for key, value in config.items() if not _JAVA_STORE.match(key)}
    config |= _read_java_stores(values, str(path), explicit)
    if values.get("ssl.endpoint.identification.algorithm") == "":
        config["ssl.endpoint.identification.algorithm"] = "none"
    if not config.get("bootstrap.servers") and "bootstrap.servers" not in explicit:
        raise SettingError(f"{where}, but the file has no bootstrap.servers: add it, or set KAFKA_BOOTSTRAP_SERVERS.")
    return config


def _read_jaas(text: str, path: str) -> dict[str, str]:
    """Returns the user name and password of a Java login module."""
    found = {name: double or single for name, double, single in re.findall(r"""(\w+)=(?:"([^"]*)"|'([^']*)')""", text)}
    if not {"username", "password"} <= found.keys():
        raise SettingError(
            f'sasl.jaas.config in {path} has no username="…" and password="…": '
            "set KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD."
        )
    return {"sasl.username": found["username"], "sasl.password": found["password"]}


def _read_java_stores(values: Mapping[str, str], path: str, explicit: Mapping[str, str]) -> dict[str, str]:
    """Returns the settings for Java's trust store and key store.

    Both support PEM, only the key store supports PKCS12, and neither supports JKS.
    """
    config: dict[str, str] = {}
    already_set = explicit.keys() | values.keys()
    trust, key = values.get("ssl.truststore.location"), values.get("ssl.keystore.location")
    if trust and "ssl.ca.location" not in already_set:
        if values.get("ssl.truststore.type", "").upper() != "PEM":
            raise _java_store_error("ssl.truststore.location", trust, path, "KAFKA_SSL_CA_LOCATION")
        config["ssl.ca.location"] = trust
    if key and "ssl.certificate.location" not in already_set:
        kind = values.get("ssl.keystore.type", "").upper()
        if kind == "PEM":
            config |= {"ssl.certificate.location": key, "ssl.key.location": key}
        elif kind == "PKCS12" or key.endswith((".p12", ".pfx")):
            config |= {"ssl.keystore.location": key, "ssl.keystore.password": values.get("ssl.keystore.password", "")}
        else:
            remedy = "KAFKA_SSL_CERTIFICATE_LOCATION and KAFKA_SSL_KEY_LOCATION"
            raise _java_store_error("ssl.keystore.location", key, path, remedy)
    texts = {
        "ssl.truststore.certificates": "ssl.ca.pem",
        "ssl.keystore.certificate.chain": "ssl.certificate.pem",
        "ssl.keystore.key": "ssl.key.pem",
    }
    return config | {ours: values[java] for java, ours in texts.items() if values.get(java)}


def _java_store_error(key: str, value: str, path: str, remedy: str) -> SettingError:
    return SettingError(
        f"{key} in {path} is {value!r}, a Java store that only Java can read: export it as PEM (`keytool`, `openssl`) "
        f"and set {remedy}."
    )
