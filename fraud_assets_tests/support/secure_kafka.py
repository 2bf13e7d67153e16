"""One node of Apache Kafka with a listener for every login method, and its certificates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from fraud_assets.testing.apache_kafka import Cluster, apache_kafka

PLAIN_USER, PLAIN_PASSWORD = "alice", "alice-plain-4711"
SCRAM_USER, SCRAM_PASSWORD = "bob", "bob-scram-0815"
KEY_PASSWORD = "key-pass-2718"


@dataclass(frozen=True)
class SecureKafka:
    """The address for each login method, and the PEM files."""

    cluster: Cluster
    folder: Path

    @property
    def sasl(self) -> str:
        """The address that accepts PLAIN and SCRAM-SHA-512 over TLS."""
        return self.cluster.address("SASL")

    @property
    def mtls(self) -> str:
        """The address that accepts clients with a certificate of its authority."""
        return self.cluster.address("MTLS")

    @property
    def misnamed(self) -> str:
        """The address whose certificate is for another host."""
        return self.cluster.address("MISNAMED")

    @property
    def plain(self) -> str:
        """The address without encryption."""
        return self.cluster.bootstrap

    def pem(self, name: str) -> str:
        """The path of `ca`, `client`, `client-key` (with a password), `stranger` or `other-ca`."""
        return str(self.folder / f"{name}.pem")


@contextmanager
def secure_kafka(folder: Path) -> Iterator[SecureKafka]:
    """Runs the node until the block ends."""
    ours, others = trustme.CA(), trustme.CA()
    ours.cert_pem.write_to_path(folder / "ca.pem")
    others.cert_pem.write_to_path(folder / "other-ca.pem")
    _write(folder / "server.pem", ours.issue_cert("127.0.0.1"))
    _write(folder / "misnamed.pem", ours.issue_cert("kafka.example.org"))
    _write(folder / "stranger.pem", others.issue_cert("client@example.org"))
    client = ours.issue_cert("client@example.org")
    client.cert_chain_pems[0].write_to_path(folder / "client.pem")
    (folder / "client-key.pem").write_bytes(_key(client, BestAvailableEncryption(KEY_PASSWORD.encode())))
    plain = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{PLAIN_USER}="{PLAIN_PASSWORD}";'
    config: dict[str, object] = {
        "listener.name.mtls.ssl.client.auth": "required",
        "listener.name.sasl.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
        "listener.name.sasl.plain.sasl.jaas.config": plain,
        "listener.name.sasl.scram-sha-512.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        ),
    }
    for listener, store in {"sasl": "server", "mtls": "server", "misnamed": "misnamed"}.items():
        prefix = f"listener.name.{listener}.ssl"
        config |= {f"{prefix}.keystore.type": "PEM", f"{prefix}.keystore.location": folder / f"{store}.pem"}
        config |= {f"{prefix}.truststore.type": "PEM", f"{prefix}.truststore.location": folder / "ca.pem"}
    with apache_kafka(
        folder / "kafka",
        listeners={"SASL": "SASL_SSL", "MTLS": "SSL", "MISNAMED": "SSL"},
        scram={SCRAM_USER: SCRAM_PASSWORD},
        config=config,
    ) as cluster:
        yield SecureKafka(cluster, folder)


def _write(path: Path, certificate: trustme.LeafCert) -> None:
    chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    path.write_bytes(_key(certificate, NoEncryption()) + chain)


def _key(certificate: trustme.LeafCert, protection: NoEncryption | BestAvailableEncryption) -> bytes:
    """The key as PKCS 8, because Java reads no other form."""
    key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)


def by_password(kafka: SecureKafka) -> dict[str, Any]:
    """Overrides of settings for login with PLAIN."""
    return {
        "kafka_bootstrap_servers": kafka.sasl,
        "kafka_sasl_username": PLAIN_USER,
        "kafka_sasl_password": PLAIN_PASSWORD,
        "kafka_ssl_ca_location": kafka.pem("ca"),
    }


def by_certificate(kafka: SecureKafka) -> dict[str, Any]:
    """Overrides of settings for login with mutual TLS."""
    return {
        "kafka_bootstrap_servers": kafka.mtls,
        "kafka_ssl_ca_location": kafka.pem("ca"),
        "kafka_ssl_certificate_location": kafka.pem("client"),
        "kafka_ssl_key_location": kafka.pem("client-key"),
        "kafka_ssl_key_password": KEY_PASSWORD,
    }
