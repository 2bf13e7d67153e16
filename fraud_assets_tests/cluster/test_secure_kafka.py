"""Login and encryption with Apache Kafka: every method works, and every mistake gives a one-line error with its fix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fraud_assets.engines.local.landing import land_topics
from fraud_assets.errors import BrokerError, BrokerRefusedError, SettingError
from fraud_assets.kafka.broker import find_broker, is_broker_configured
from fraud_assets.kafka.client import build_client_config
from fraud_assets.kafka.connection import load_connection
from fraud_assets.kafka.consumer import TopicReader
from fraud_assets.kafka.producer import Message, Producer
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings
from fraud_assets_tests.support.commands import assert_one_sentence, run
from fraud_assets_tests.support.producing import produce
from fraud_assets_tests.support.secure_kafka import (
    KEY_PASSWORD,
    PLAIN_PASSWORD,
    PLAIN_USER,
    SCRAM_PASSWORD,
    SCRAM_USER,
    SecureKafka,
    by_certificate,
    by_password,
)
from fraud_assets_tests.support.starting import topic_maker

pytestmark = pytest.mark.xdist_group("secure")

MakeSettings = Callable[..., Settings]


def scram(kafka: SecureKafka) -> dict[str, Any]:
    return {
        **by_password(kafka),
        "kafka_security_protocol": "SASL_SSL",
        "kafka_sasl_mechanism": "SCRAM-SHA-512",
        "kafka_sasl_username": SCRAM_USER,
        "kafka_sasl_password": SCRAM_PASSWORD,
    }


def properties_of_confluent_cloud(kafka: SecureKafka) -> str:
    return f"""
# Required connection configs for Kafka producer, consumer, and admin
bootstrap.servers={kafka.sasl}
security.protocol=SASL_SSL
sasl.mechanisms=PLAIN
sasl.username={PLAIN_USER}
sasl.password={PLAIN_PASSWORD}
ssl.ca.location={kafka.pem("ca")}

# Best practice for higher availability in librdkafka clients prior to 1.7
session.timeout.ms=45000
client.id=ccloud-python-client-0815
# Required connection configs for Confluent Cloud Schema Registry
schema.registry.url=https://psrc-0815.example.org
basic.auth.credentials.source=USER_INFO
basic.auth.user.info=SR-KEY:SR-SECRET
"""


def properties_of_java(kafka: SecureKafka) -> str:
    return f"""
bootstrap.servers={kafka.sasl.replace(":", chr(92) + ":")}
security.protocol: SASL_SSL
sasl.mechanism = SCRAM-SHA-512
sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required \\
    username="{SCRAM_USER}" \\
    password="{SCRAM_PASSWORD}";
ssl.truststore.type=PEM
ssl.truststore.location={kafka.pem("ca")}
client.dns.lookup=use_all_dns_ips
acks=1
enable.idempotence=false
auto.offset.reset=latest
group.id=somebody-elses
key.serializer=org.apache.kafka.common.serialization.StringSerializer
metrics.recording.level=INFO
sasl.login.connect.timeout.ms=5000
"""


def properties_of_java_with_certificate(kafka: SecureKafka) -> str:
    key_and_certificate = Path(kafka.pem("client")).parent / "both.pem"
    key_and_certificate.write_text(Path(kafka.pem("client-key")).read_text() + Path(kafka.pem("client")).read_text())
    return f"""
bootstrap.servers={kafka.mtls}
security.protocol=SSL
ssl.truststore.type=PEM
ssl.truststore.location={kafka.pem("ca")}
ssl.keystore.type=PEM
ssl.keystore.location={key_and_certificate}
ssl.key.password={KEY_PASSWORD}
"""


@pytest.mark.parametrize("method", [by_password, scram, by_certificate])
def test_every_login_method_produces_and_lands(
    method: Callable[[SecureKafka], dict[str, Any]], kafka: SecureKafka, make_settings: MakeSettings
) -> None:
    assert_lands(kafka, make_settings, **method(kafka))


@pytest.mark.parametrize(
    "properties", [properties_of_confluent_cloud, properties_of_java, properties_of_java_with_certificate]
)
def test_a_client_properties_file_produces_and_lands(
    properties: Callable[[SecureKafka], str], kafka: SecureKafka, make_settings: MakeSettings, tmp_path: Path
) -> None:
    (tmp_path / "client.properties").write_text(properties(kafka))
    assert_lands(kafka, make_settings, kafka_client_properties=str(tmp_path / "client.properties"))


def assert_lands(kafka: SecureKafka, make_settings: MakeSettings, **options: Any) -> None:
    make_topic = topic_maker(kafka.plain)
    settings = make_settings(**options, transactions_topic=make_topic(), labels_topic=make_topic())
    bodies = [b"%d" % number for number in range(100)]
    produce((Message(settings.transactions_topic, None, body) for body in bodies), find_broker(settings), settings)
    reports = land_topics(Lake.of(settings), settings)
    assert reports["raw_transactions"].rows == 100


MISTAKES: dict[str, tuple[Callable[[SecureKafka], dict[str, Any]], str]] = {
    "wrong password": (
        lambda kafka: {**by_password(kafka), "kafka_sasl_password": "wrong-4711"},
        r"login of 'alice' with PLAIN.*KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD",
    ),
    "wrong password, SCRAM": (
        lambda kafka: {**scram(kafka), "kafka_sasl_password": "wrong-4711"},
        r"login of 'bob' with SCRAM-SHA-512.*KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD",
    ),
    "mechanism that the broker does not take": (
        lambda kafka: {**scram(kafka), "kafka_sasl_mechanism": "SCRAM-SHA-256"},
        r"KAFKA_SASL_MECHANISM 'SCRAM-SHA-256'.*PLAIN,SCRAM-SHA-512",
    ),
    "unknown authority": (
        lambda kafka: {**by_password(kafka), "kafka_ssl_ca_location": kafka.pem("other-ca")},
        r"not signed by the authority in '.*other-ca\.pem'.*KAFKA_SSL_CA_LOCATION",
    ),
    "an authority that the system does not know": (
        lambda kafka: {**by_password(kafka), "kafka_ssl_ca_location": ""},
        r"an authority that this system trusts.*KAFKA_SSL_CA_LOCATION",
    ),
    "certificate for another name": (
        lambda kafka: {**by_certificate(kafka), "kafka_bootstrap_servers": kafka.misnamed},
        r"is for another name.*KAFKA_SSL_CA_LOCATION",
    ),
    "no encryption to a port that requires it": (
        lambda kafka: {"kafka_bootstrap_servers": kafka.sasl},
        r"closes the connection.*KAFKA_SECURITY_PROTOCOL is 'PLAINTEXT'.*SASL_SSL",
    ),
    "encryption without login": (
        lambda kafka: {"kafka_bootstrap_servers": kafka.sasl, "kafka_ssl_ca_location": kafka.pem("ca")},
        r"closes the connection.*KAFKA_SECURITY_PROTOCOL is 'SSL'.*SASL_SSL",
    ),
    "encryption to a port without encryption": (
        lambda kafka: {**by_password(kafka), "kafka_bootstrap_servers": kafka.plain},
        r"does not encrypt.*KAFKA_SECURITY_PROTOCOL is 'SASL_SSL'",
    ),
    "login to a port without login": (
        lambda kafka: {
            **by_password(kafka),
            "kafka_bootstrap_servers": kafka.plain,
            "kafka_security_protocol": "SASL_PLAINTEXT",
        },
        r"accepts no login.*KAFKA_SECURITY_PROTOCOL",
    ),
    "no client certificate": (
        lambda kafka: {"kafka_bootstrap_servers": kafka.mtls, "kafka_ssl_ca_location": kafka.pem("ca")},
        r"requires a client certificate.*received none.*KAFKA_SSL_CERTIFICATE_LOCATION",
    ),
    "client certificate of an unknown authority": (
        lambda kafka: {
            **by_certificate(kafka),
            "kafka_ssl_certificate_location": kafka.pem("stranger"),
            "kafka_ssl_key_location": kafka.pem("stranger"),
        },
        r"does not accept .*stranger\.pem.*KAFKA_SSL_KEY_LOCATION",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_refusal_of_the_broker_names_the_mistake(
    mistake: str, kafka: SecureKafka, make_settings: MakeSettings
) -> None:
    options, words = MISTAKES[mistake]
    # The timeout is longer than the test may take: a refusal is reported at once, not after the timeout.
    settings = make_settings(kafka_timeout_seconds=300, **options(kafka))
    broker = find_broker(settings)
    with pytest.raises(BrokerRefusedError, match=words) as refused_reader:
        TopicReader("t", settings, broker)
    with pytest.raises(BrokerRefusedError, match=words):
        Producer(broker, settings)
    assert "wrong-4711" not in str(refused_reader.value)
    assert "\n" not in str(refused_reader.value)


def test_every_command_reports_a_refusal_in_one_line(kafka: SecureKafka, tmp_path: Path) -> None:
    environment = {
        "KAFKA_BOOTSTRAP_SERVERS": kafka.sasl,
        "KAFKA_SASL_USERNAME": PLAIN_USER,
        "KAFKA_SASL_PASSWORD": "wrong-4711",
        "KAFKA_SSL_CA_LOCATION": kafka.pem("ca"),
    }
    for command in (("land", "--once"), ("land",), ("simulate", "--count", "10")):
        result = run(tmp_path, *command, **environment)
        assert_one_sentence(result, "KAFKA_SASL_PASSWORD", kafka.sasl)
        assert "wrong-4711" not in result.stdout + result.stderr


WRONG_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "user without password": ({"kafka_sasl_username": "alice"}, "KAFKA_SASL_PASSWORD is empty"),
    "protocol without user": (
        {"kafka_security_protocol": "SASL_SSL"},
        "KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD are empty",
    ),
    "file that is not there": (
        {"kafka_ssl_ca_location": "/no/ca.pem"},
        "KAFKA_SSL_CA_LOCATION is '/no/ca.pem', which does not exist",
    ),
    "certificate without key": (
        {"kafka_ssl_certificate_location": __file__},
        "KAFKA_SSL_CERTIFICATE_LOCATION is set, but KAFKA_SSL_KEY_LOCATION is not",
    ),
    "no certificate in the file": ({"kafka_ssl_ca_location": __file__}, "KAFKA_SSL_CA_LOCATION cannot be used"),
}


@pytest.mark.parametrize("mistake", WRONG_SETTINGS)
def test_settings_that_cannot_work_are_refused(mistake: str, make_settings: MakeSettings) -> None:
    options, words = WRONG_SETTINGS[mistake]
    settings = make_settings(kafka_bootstrap_servers="127.0.0.1:1", **options)
    with pytest.raises(SettingError, match=words):
        build_client_config(find_broker(settings), settings)


def test_a_wrong_key_password_and_a_wrong_key_are_refused(kafka: SecureKafka, make_settings: MakeSettings) -> None:
    settings = make_settings(**{**by_certificate(kafka), "kafka_ssl_key_password": "wrong-4711"})
    with pytest.raises(SettingError, match="KAFKA_SSL_KEY_LOCATION cannot be used") as refused:
        build_client_config(find_broker(settings), settings)
    assert "wrong-4711" not in str(refused.value)
    settings = make_settings(**{**by_certificate(kafka), "kafka_ssl_key_location": kafka.pem("stranger")})
    with pytest.raises(SettingError, match="does not belong to the certificate of KAFKA_SSL_CERTIFICATE_LOCATION"):
        build_client_config(find_broker(settings), settings)


WRONG_FILES = {
    "sasl.usernam=alice": "sasl.usernam in .* is unknown",
    "security.protocol=TLS": "security.protocol in .* cannot be used",
    "sasl.username=alice": "sasl.password is empty|KAFKA_SASL_PASSWORD is empty",
    "ssl.truststore.location=/etc/store.jks": "Java store.*KAFKA_SSL_CA_LOCATION",
    "ssl.keystore.location=/etc/store.jks": "Java store.*KAFKA_SSL_CERTIFICATE_LOCATION",
    "sasl.jaas.config=org.example.OwnLoginModule required;": "KAFKA_SASL_USERNAME",
}


@pytest.mark.parametrize("line", WRONG_FILES)
def test_a_properties_file_that_cannot_work_is_refused(line: str, make_settings: MakeSettings, tmp_path: Path) -> None:
    path = tmp_path / "client.properties"
    path.write_text(f"bootstrap.servers=127.0.0.1:1\n{line}\n")
    settings = make_settings(kafka_client_properties=str(path))
    with pytest.raises(SettingError, match=WRONG_FILES[line]):
        build_client_config(find_broker(settings), settings)


def test_a_missing_file_and_a_file_without_a_broker_are_refused(make_settings: MakeSettings, tmp_path: Path) -> None:
    path = tmp_path / "client.properties"
    settings = make_settings(kafka_client_properties=str(path))
    assert is_broker_configured(settings)
    with pytest.raises(SettingError, match=r"KAFKA_CLIENT_PROPERTIES.*No such file"):
        find_broker(settings)
    path.write_text("client.id=x\n")
    with pytest.raises(SettingError, match=r"no bootstrap\.servers"):
        find_broker(settings)


def test_environment_variables_override_the_file(make_settings: MakeSettings, tmp_path: Path) -> None:
    path = tmp_path / "client.properties"
    path.write_text(
        "bootstrap.servers=file:1\nsecurity.protocol=SASL_SSL\nsasl.username=u\nsasl.password=p\nretries=7\n"
    )
    settings = make_settings(
        kafka_client_properties=str(path), kafka_bootstrap_servers="variable:1", kafka_sasl_password="q"
    )
    broker = find_broker(settings)
    assert broker.bootstrap == "variable:1"
    config = build_client_config(broker, settings)
    assert (config["sasl.username"], config["sasl.password"], config["retries"]) == ("u", "q", "7")


def test_a_connection_error_names_the_file(make_settings: MakeSettings, tmp_path: Path) -> None:
    path = tmp_path / "client.properties"
    path.write_text("bootstrap.servers=127.0.0.1:1\n")
    settings = make_settings(kafka_client_properties=str(path), kafka_timeout_seconds=1)
    with pytest.raises(BrokerError, match=r"Connection refused.*bootstrap\.servers in .*client\.properties"):
        Producer(find_broker(settings), settings)


def test_secrets_are_not_shown(kafka: SecureKafka, make_settings: MakeSettings, tmp_path: Path) -> None:
    path = tmp_path / "client.properties"
    path.write_text(properties_of_confluent_cloud(kafka))
    settings = make_settings(kafka_client_properties=str(path), kafka_ssl_key_password="key-4711")
    shown = repr(settings) + settings.model_dump_json() + repr(load_connection(settings)) + repr(find_broker(settings))
    assert PLAIN_PASSWORD not in shown
    assert "key-4711" not in shown
