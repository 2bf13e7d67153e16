"""Apache Spark, where FRAUD_ENGINE names it: Java, a master that answers, and what it reads Kafka with."""

from __future__ import annotations

from importlib.metadata import version

from fraud_assets.doctor.finding import Finding, ok, refused, warn
from fraud_assets.errors import FraudAssetsError
from fraud_assets.settings import Settings

_ANSWER_SECONDS = 4.0


def check_spark(settings: Settings) -> list[Finding]:
    """Nothing where Spark has no part; starts no session, so that workers are not asked for."""
    if settings.engine != "spark":
        return []
    from fraud_assets.engines.spark.session import connector_is_resolved, require_master
    from fraud_assets.kafka.broker import uses_external_broker
    from fraud_assets.system.java import java_program

    java_program("Spark")
    require_master(settings.spark_master, _ANSWER_SECONDS)
    findings = [ok("spark", f"Spark {version('pyspark')}, master {settings.spark_master}")]
    if not uses_external_broker(settings):
        return findings
    try:
        is_there = connector_is_resolved(settings)
    except FraudAssetsError as error:
        return [*findings, refused("spark connector", error)]
    if is_there:
        return [*findings, ok("spark connector", "the jars with which Spark reads Kafka are there")]
    fix = "Give it a minute, or name a folder of them by FRAUD_SPARK_JARS where Maven reaches no repository."
    return [*findings, warn("spark connector", "the first landing on Spark has Maven fetch its jars", fix)]
