"""Settings of the Kafka connection and the topics."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr

from fraud_assets.settings.source import GroupSettings


class KafkaSettings(GroupSettings):
    """Settings of the Kafka connection and the topics."""

    kafka_bootstrap_servers: str = Field(
        "",
        alias="KAFKA_BOOTSTRAP_SERVERS",
        description="Kafka brokers, as `host:port,…`. If empty, the embedded broker of `fraud-assets broker` is used.",
    )
    kafka_client_properties: str = Field(
        "",
        alias="KAFKA_CLIENT_PROPERTIES",
        description="`client.properties` file, for example from Confluent Cloud. The other settings take precedence "
        "over it.",
    )
    kafka_security_protocol: Literal["", "PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "",
        alias="KAFKA_SECURITY_PROTOCOL",
        description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL. If empty, it is SASL_SSL if a user name is set, SSL "
        "if a certificate or certificate authority is set, and otherwise PLAINTEXT.",
    )
    kafka_sasl_mechanism: Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "",
        alias="KAFKA_SASL_MECHANISM",
        description="SASL mechanism: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512. If empty, PLAIN is used.",
    )
    kafka_sasl_username: str = Field(
        "", alias="KAFKA_SASL_USERNAME", description="SASL user name, or the key of an API key."
    )
    kafka_sasl_password: SecretStr = Field(
        SecretStr(""), alias="KAFKA_SASL_PASSWORD", description="SASL password, or the secret of an API key."
    )
    kafka_ssl_ca_location: str = Field(
        "",
        alias="KAFKA_SSL_CA_LOCATION",
        description="PEM file of the certificate authority that signed the brokers' certificates. If empty, the "
        "authorities of the system are trusted.",
    )
    kafka_ssl_certificate_location: str = Field(
        "", alias="KAFKA_SSL_CERTIFICATE_LOCATION", description="PEM file of the client certificate, for mutual TLS."
    )
    kafka_ssl_key_location: str = Field(
        "", alias="KAFKA_SSL_KEY_LOCATION", description="PEM file of the client's private key."
    )
    kafka_ssl_key_password: SecretStr = Field(
        SecretStr(""),
        alias="KAFKA_SSL_KEY_PASSWORD",
        description="Password of the client's private key, if it is encrypted.",
    )
    confluent_api: str = Field(
        "",
        alias="CONFLUENT_API",
        description="Base URL of a Kafka REST API (v3). If it is set, `simulate` and `replay` send through it. Use it "
        "if the network allows only HTTPS.",
    )
    confluent_api_key: SecretStr = Field(
        SecretStr(""), alias="API_KEY", description="Key of the REST API, as `key:secret` or its base64 encoding."
    )
    confluent_cluster_id: str = Field(
        "", alias="CLUSTER_ID", description="Cluster id for the REST API, for example `lkc-…`."
    )
    transactions_topic: str = Field("transactions", description="Topic of the transactions.")
    labels_topic: str = Field("fraud-labels", description="Topic of the fraud labels.")
    kafka_timeout_seconds: float = Field(
        10.0, gt=0, description="Maximum seconds to wait for a response from the broker."
    )
