"""How to reach Kafka, and the topics."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr

from fraud_assets.settings.source import GroupSettings


class KafkaSettings(GroupSettings):
    """How to reach Kafka, and the topics."""

    kafka_bootstrap_servers: str = Field(
        "",
        alias="KAFKA_BOOTSTRAP_SERVERS",
        description="Brokers as `host:port,…`; empty means the embedded broker of `fraud-assets broker`.",
    )
    kafka_client_properties: str = Field(
        "",
        alias="KAFKA_CLIENT_PROPERTIES",
        description="File of client settings, as Confluent Cloud hands it out; variables win over it.",
    )
    kafka_security_protocol: Literal["", "PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "",
        alias="KAFKA_SECURITY_PROTOCOL",
        description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL. "
        "Empty means SASL_SSL where a user name is set, SSL where a CA or a certificate is, else PLAINTEXT.",
    )
    kafka_sasl_mechanism: Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "",
        alias="KAFKA_SASL_MECHANISM",
        description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; empty means PLAIN.",
    )
    kafka_sasl_username: str = Field(
        "", alias="KAFKA_SASL_USERNAME", description="User name, or the key of an API key."
    )
    kafka_sasl_password: SecretStr = Field(
        SecretStr(""), alias="KAFKA_SASL_PASSWORD", description="Its password, or the secret of an API key."
    )
    kafka_ssl_ca_location: str = Field(
        "",
        alias="KAFKA_SSL_CA_LOCATION",
        description="PEM file of the authority that signed the brokers' certificates; empty means the system's.",
    )
    kafka_ssl_certificate_location: str = Field(
        "", alias="KAFKA_SSL_CERTIFICATE_LOCATION", description="PEM file of the client's certificate (mutual TLS)."
    )
    kafka_ssl_key_location: str = Field(
        "", alias="KAFKA_SSL_KEY_LOCATION", description="PEM file of the client's private key."
    )
    kafka_ssl_key_password: SecretStr = Field(
        SecretStr(""), alias="KAFKA_SSL_KEY_PASSWORD", description="Password of that key, if it has one."
    )
    confluent_api: str = Field(
        "",
        alias="CONFLUENT_API",
        description="Base URL of a Kafka REST API (v3), for `simulate` and `replay` where only HTTPS goes out.",
    )
    confluent_api_key: SecretStr = Field(
        SecretStr(""), alias="API_KEY", description="Key of that API as `key:secret`, or the base64 of that."
    )
    confluent_cluster_id: str = Field("", alias="CLUSTER_ID", description="Cluster of that API, as `lkc-…`.")
    transactions_topic: str = Field("transactions", description="Topic of the transactions.")
    labels_topic: str = Field("fraud-labels", description="Topic of the late fraud labels.")
    kafka_timeout_seconds: float = Field(10.0, gt=0, description="How long to wait for an answer of the broker.")
