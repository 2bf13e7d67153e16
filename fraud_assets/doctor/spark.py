"""Checks Apache Spark if FRAUD_ENGINE selects it: Java, the master, and the jars of the Kafka connector."""

from __future__ import annotations

from importlib.metadata import version

from fraud_assets.doctor.finding import Finding, fail_from_error, ok, warn
from fraud_assets.errors import FraudAssetsError
from fraud_assets.settings import Settings

_ANSWER_SECONDS = 4.0


def check_spark(settings: Settings) -> list[Finding]:
    """Checks Java, the master and the connector; reports nothing for another engine.

    Starts no session, because a session would request workers.
    """
    if settings.engine != "spark":
        return []
    from fraud_assets.engines.spark.session import is_connector_resolved, require_master
    from fraud_assets.kafka.broker import uses_external_broker
    from fraud_assets.system.java import find_java

    find_java("Spark")
    require_master(settings.spark_master, _ANSWER_SECONDS)
    findings = [ok("spark", f"Spark {version('pyspark')}, master {settings.spark_master}")]
    if not uses_external_broker(settings):
        return findings
    try:
        is_resolved = is_connector_resolved(settings)
    except FraudAssetsError as error:
        return [*findings, fail_from_error("spark connector", error)]
    if is_resolved:
        return [*findings, ok("spark connector", "the jars with which Spark reads Kafka are installed")]
    fix = "Allow a minute for that. If Maven reaches no repository, set FRAUD_SPARK_JARS to a folder with the jars."
    return [*findings, warn("spark connector", "the first landing on Spark downloads its jars with Maven", fix)]
