"""Spark sessions: how one is configured, started and ended, and what its failures mean in words."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fraud_assets import errors
from fraud_assets.errors import EngineError, FraudAssetsError, JarsError
from fraud_assets.java import jars_of, java_program
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_PRODUCT = "Spark"
_JAR_SETTINGS = ("spark.jars", "spark.jars.packages")


def spark_config(settings: Settings) -> dict[str, str]:
    """Spark's settings for these: ours, then FRAUD_SPARK_CONF, which wins.

    Raises:
        SettingError: FRAUD_SPARK_JARS is not a folder of jars.
    """
    local = settings.spark_master.startswith("local")
    config = {
        "spark.app.name": "fraud_assets",
        "spark.master": settings.spark_master,
        "spark.driver.memory": settings.spark_memory,
        "spark.executor.memory": settings.spark_memory,
        "spark.sql.session.timeZone": "UTC",
        # Without it a window over a busy terminal takes the square of its transactions.
        "spark.sql.window.segmentTree.enabled": "true",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "65536",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={_log_config()}",
    }
    if local:
        # One process: its page and ports are nobody else's.
        config |= {
            "spark.ui.enabled": "false",
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.sql.shuffle.partitions": str(4 * (os.cpu_count() or 1)),
        }
    if local or settings.spark_master.startswith("spark://"):
        # On YARN and Kubernetes the executors have a Python of their own.
        config["spark.pyspark.python"] = sys.executable
    if not any(name in settings.spark_conf for name in _JAR_SETTINGS):
        # Only landing needs them, and says so where they cannot be had.
        with suppress(JarsError):
            config["spark.jars"] = ",".join(str(jar) for jar in sorted(kafka_jars(settings).glob("*.jar")))
    return config | settings.spark_conf


def kafka_jars(settings: Settings) -> Path:
    """Folder of the jars with which Spark reads Kafka: FRAUD_SPARK_JARS, else what Maven resolves.

    Raises:
        JarsError: they are not there and cannot be had.
    """
    if not settings.spark_jars:
        try:
            return jars_of("fraud_assets.engines.spark", "spark.pom.xml", "Spark's Kafka connector")
        except JarsError as error:
            raise JarsError(f"{error} Or point FRAUD_SPARK_JARS to a folder of them.") from error
    folder = Path(settings.spark_jars).expanduser().absolute()
    if not any(folder.glob("spark-sql-kafka-*.jar")):
        raise JarsError(
            f"FRAUD_SPARK_JARS is {settings.spark_jars!r}, where no spark-sql-kafka-….jar is. Fill it by `mvn -f "
            f"{resources.files('fraud_assets.engines.spark').joinpath('spark.pom.xml')} "
            "dependency:copy-dependencies -DoutputDirectory=<folder>`, or leave it empty."
        )
    return folder


@contextmanager
def spark_session(settings: Settings) -> Iterator[SparkSession]:
    """A session of these settings, ended with the block. What Spark logs is in FRAUD_HOME/spark/driver.log.

    Raises:
        EngineError: Spark does not start.
        JarsError: there is no Java.
    """
    session = started(settings)
    try:
        yield session
    finally:
        session.stop()


def started(
    settings: Settings,
    config: dict[str, str] | None = None,
    make: Callable[[dict[str, str]], SparkSession] | None = None,
) -> SparkSession:
    """Starts a session of `config` (default: `spark_config`), by `make` if given; see `spark_session`."""
    java_program(_PRODUCT)
    from pyspark import SparkConf, SparkContext
    from pyspark.errors import PySparkException
    from pyspark.java_gateway import launch_gateway
    from pyspark.sql import SparkSession

    log = _log(settings)
    config = config or spark_config(settings)
    if python := config.get("spark.pyspark.python"):
        # Only spark-submit reads that setting.
        os.environ.setdefault("PYSPARK_PYTHON", python)
    conf = SparkConf(loadDefaults=False).setAll(list(config.items()))
    try:
        if SparkContext._gateway is None:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as told:
                # The Java machine would write beside our own lines.
                gateway = launch_gateway(conf, {"stderr": told})
            SparkContext._ensure_initialized(gateway=gateway, conf=conf)
        return make(config) if make else SparkSession.builder.config(conf=conf).getOrCreate()
    except Exception as error:
        if not isinstance(error, PySparkException) and "py4j" not in type(error).__module__:
            raise
        raise EngineError(
            f"Spark did not start with FRAUD_SPARK_MASTER {settings.spark_master!r}: {_cause(str(error))}. Check that "
            f"the master runs and that FRAUD_SPARK_CONF is right; more is in {log}."
        ) from error


@contextmanager
def spark_faults(settings: Settings) -> Iterator[None]:
    """Turns what fails on Spark into the error that a task raised, or into an `EngineError` with its first cause."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        yield
    except (PySparkException, Py4JError) as error:
        raise _told(str(error), settings) from error


def _told(text: str, settings: Settings) -> FraudAssetsError:
    own = re.search(r"^fraud_assets\.errors\.(\w+): (.+)$", text, re.MULTILINE)
    if own:
        kind: Any = getattr(errors, own[1], EngineError)
        return kind(own[2])
    return EngineError(f"A job on Spark failed: {_cause(text)}. More is in {_log(settings)} and in Spark's web UI.")


def _cause(text: str) -> str:
    """The innermost cause that a chain of Java and Python exceptions tells of, in one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("at ")]
    causes = [line for line in lines if re.match(r"(Caused by: )?[\w.]+(Error|Exception): ", line)]
    return (causes or lines or ["no reason given"])[-1].removeprefix("Caused by: ")[:300].rstrip(".")


def _log(settings: Settings) -> Path:
    return settings.home_path / "spark" / "driver.log"


def _log_config() -> str:
    return str(resources.files("fraud_assets.engines.spark").joinpath("log4j2.properties"))
