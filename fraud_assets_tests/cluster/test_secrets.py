"""No secret is in the platform's output, errors, `repr`, events or files under FRAUD_HOME."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import dagster as dg
import pytest
from pydantic import SecretStr

from fraud_assets.definitions import defs
from fraud_assets.kafka.broker import find_broker
from fraud_assets.kafka.connection import load_connection
from fraud_assets.kafka.producer import Message
from fraud_assets.operations.setup_home import DAGSTER_YAML
from fraud_assets.settings import Settings, environment_name, load_settings
from fraud_assets_tests.support.commands import run
from fraud_assets_tests.support.producing import produce
from fraud_assets_tests.support.rest_server import CLUSTER, KEY, SECRET, rest_server
from fraud_assets_tests.support.secure_kafka import KEY_PASSWORD, PLAIN_PASSWORD, PLAIN_USER, SecureKafka
from fraud_assets_tests.support.starting import topic_maker

pytestmark = pytest.mark.xdist_group("secure")

WRONG = "wrong-0xC0FFEE-secret"


def secrets_of_settings() -> dict[str, str]:
    """A distinct value for every secret setting, by environment variable."""
    fields = [name for name, field in Settings.model_fields.items() if field.annotation is SecretStr]
    return {environment_name(name): f"secret-of-{name.replace('_', '-')}-0xDECAF00D" for name in fields}


def secret_variables() -> dict[str, str]:
    """Environment variables with these values, in a form that each setting accepts; one requires `key=value`."""
    variables = {name: f"token={value}" for name, value in secrets_of_settings().items()}
    url = f"postgresql+psycopg2://dagster:{secrets_of_settings()['DAGSTER_POSTGRES_URL']}@127.0.0.1/dagster"
    return variables | {"DAGSTER_POSTGRES_URL": url}


def find_secrets(text: str, source: str, secrets: list[str]) -> list[str]:
    """Lists the secrets that the text contains, as plain text or in base64."""
    found = [secret for secret in secrets if secret in text]
    found += [secret for secret in secrets if base64.b64encode(secret.encode()).decode().rstrip("=") in text]
    return [f"{secret} in {source}" for secret in found]


def find_secrets_in_files(folder: Path, secrets: list[str]) -> list[str]:
    """Lists the secrets that the files under a folder contain."""
    found: list[str] = []
    for path in folder.rglob("*"):
        if path.is_file():
            found += find_secrets(path.read_bytes().decode("latin-1"), str(path), secrets)
    return found


def materialize(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> bool:
    """Materializes the landing assets and returns whether they succeed; the instance keeps the run and its events."""
    with monkeypatch.context() as environment:
        for name, value in variables.items():
            environment.setenv(name, value)
        job = defs.resolve_implicit_global_asset_job_def()
        keys = [dg.AssetKey("raw_transactions"), dg.AssetKey("fraud_labels")]
        return job.execute_in_process(instance=instance, asset_selection=keys, raise_on_error=False).success


def test_every_secret_setting_is_a_secret_str() -> None:
    """The name of a setting shows whether it is a secret."""
    for name, field in Settings.model_fields.items():
        is_secret_name = any(word in name for word in ("password", "secret", "_key", "token", "user_info"))
        if is_secret_name and not name.endswith(("_location", "_key_id")):
            assert field.annotation is SecretStr, name


def test_settings_do_not_show_secrets(monkeypatch: pytest.MonkeyPatch, make_settings) -> None:
    variables = secret_variables()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = load_settings(_env_file=None, kafka_bootstrap_servers="127.0.0.1:1", kafka_sasl_username="alice")
    connection = load_connection(settings)
    assert connection.config["sasl.password"] == variables["KAFKA_SASL_PASSWORD"]
    shown = [repr(settings), str(settings), settings.model_dump_json(), repr(settings.model_dump()), repr(connection)]
    assert find_secrets("\n".join(shown), "repr", list(secrets_of_settings().values())) == []


def test_no_output_or_file_contains_a_secret(
    kafka: SecureKafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    (home / "dagster").mkdir(parents=True)
    (home / "dagster" / "dagster.yaml").write_text(DAGSTER_YAML)
    make_topic = topic_maker(kafka.plain)
    topics = {"FRAUD_TRANSACTIONS_TOPIC": make_topic(), "FRAUD_LABELS_TOPIC": make_topic()}
    right = {
        **secret_variables(),
        **topics,
        "KAFKA_BOOTSTRAP_SERVERS": kafka.sasl,
        "KAFKA_SASL_USERNAME": PLAIN_USER,
        "KAFKA_SASL_PASSWORD": PLAIN_PASSWORD,
        "KAFKA_SSL_CA_LOCATION": kafka.pem("ca"),
        "KAFKA_SSL_CERTIFICATE_LOCATION": kafka.pem("client"),
        "KAFKA_SSL_KEY_LOCATION": kafka.pem("client-key"),
        "KAFKA_SSL_KEY_PASSWORD": KEY_PASSWORD,
    }
    wrong = {**right, "KAFKA_SASL_PASSWORD": WRONG}
    properties = tmp_path / "client.properties"
    properties.write_text(
        f"bootstrap.servers={kafka.sasl}\nsecurity.protocol=SASL_SSL\nsasl.mechanism=PLAIN\n"
        "sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required "
        f'username="{PLAIN_USER}" password="{WRONG}";\n'
        f"ssl.truststore.type=PEM\nssl.truststore.location={kafka.pem('ca')}\n"
    )
    from_file = {**secret_variables(), **topics, "KAFKA_CLIENT_PROPERTIES": str(properties), "KAFKA_SASL_PASSWORD": ""}
    with rest_server(kafka.plain) as server:
        over_rest = {**right, "CONFLUENT_API": server.url, "CLUSTER_ID": CLUSTER, "API_KEY": f"{KEY}:{SECRET}"}
        results = [
            run(home, "simulate", "--count", "20", "--via", "rest", **over_rest),
            run(home, "simulate", "--count", "5", "--via", "rest", **{**over_rest, "API_KEY": f"{KEY}:{WRONG}"}),
            run(home, "land", "--once", "--json", **right),
            run(home, "land", "--once", **wrong),
            run(home, "land", "--once", **from_file),
        ]
    assert [result.returncode == 0 for result in results] == [True, False, True, False, False]
    assert json.loads(results[2].stdout)["raw_transactions"]["rows"] == 20
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        assert materialize(instance, monkeypatch, {**right, "FRAUD_HOME": str(home)})
        assert not materialize(instance, monkeypatch, {**wrong, "FRAUD_HOME": str(home)})
    printed = capfd.readouterr()
    secrets = [*secrets_of_settings().values(), PLAIN_PASSWORD, KEY_PASSWORD, SECRET, WRONG, f"{KEY}:{SECRET}"]
    found = find_secrets_in_files(home, secrets) + find_secrets(
        printed.out + printed.err, "the log of the runs", secrets
    )
    for result in results:
        found += find_secrets(result.stdout + result.stderr, " ".join(result.args[1:]), secrets)
    assert found == []
    # The search works: it finds the user's name in the events of the failed run.
    assert find_secrets_in_files(home / "dagster", [f"login of '{PLAIN_USER}'"]) != []


def test_the_search_finds_plain_and_encoded_secrets(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\x00" + base64.b64encode(WRONG.encode()))
    (tmp_path / "b").write_bytes(b"\xff" + WRONG.encode())
    assert len(find_secrets_in_files(tmp_path, [WRONG])) == 2


def test_a_delivery_error_does_not_show_the_password(kafka: SecureKafka, make_settings) -> None:
    settings = make_settings(
        kafka_bootstrap_servers=kafka.sasl,
        kafka_sasl_username=PLAIN_USER,
        kafka_sasl_password=PLAIN_PASSWORD,
        kafka_ssl_ca_location=kafka.pem("ca"),
    )
    with pytest.raises(Exception, match="no-such-topic") as refused:
        produce([Message("no-such-topic", None, b"1")], find_broker(settings), settings)
    assert PLAIN_PASSWORD not in repr(refused.value)
