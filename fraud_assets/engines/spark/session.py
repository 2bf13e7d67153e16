"""Configures, starts and ends Spark sessions, and translates their failures to errors of the platform."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from fraud_assets import errors
from fraud_assets.errors import EngineError, FraudAssetsError, JarsError
from fraud_assets.kafka.java_properties import UNSHOWN
from fraud_assets.settings import Settings
from fraud_assets.system.java import are_jars_resolved, find_java, resolve_jars

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_PRODUCT = "Spark"
_JAR_SETTINGS = ("spark.jars", "spark.jars.packages")
_LOOPBACK = "127.0.0.1"
_ON_LOOPBACK = r"spark://(127\.\d+\.\d+\.\d+|localhost):"
_CONNECTOR = ("fraud_assets.engines.spark", "spark.pom.xml")
_MASTER_SECONDS = 10
_WORKER_SECONDS = 10
_NO_MEMORY = r"OutOfMemoryError|\bcode:? 52\b"
"""An executor that runs out of memory exits with code 52."""
_GONE = "Answer from Java side is empty"
_NO_ANSWER = r"An error occurred while calling \w+\.\w+$"
"""py4j's message without a reason, because the Java process had already ended."""
_ENDED = (
    rf"SparkContext was shut down|stopped SparkContext|SparkContext\.dagScheduler\(\)|{_GONE}|{_NO_ANSWER}|in the JVM$"
)
_FAILURE = r"(?:: |Caused by: )?([\w.$]+(?:Error|Exception): .*)"


def build_spark_config(settings: Settings) -> dict[str, str]:
    """Returns the configuration of Spark: the platform's own settings, overridden by FRAUD_SPARK_CONF.

    If the jars of the Kafka connector cannot be resolved, they are left out; see `require_connector`.
    """
    local = settings.spark_master.startswith("local")
    config = {
        "spark.app.name": "fraud_assets",
        "spark.master": settings.spark_master,
        "spark.driver.memory": settings.spark_memory,
        "spark.executor.memory": settings.spark_memory,
        "spark.sql.session.timeZone": "UTC",
        # Without the segment tree, the time of a window over a busy terminal is quadratic in its transactions.
        "spark.sql.window.segmentTree.enabled": "true",
        # For the few transactions of a customer, the segment tree takes four times as long.
        "spark.sql.window.segmentTree.minPartitionRows": "10000",
        # Windows and Python cost more per byte than the operations that Spark's default of 64 MB is meant for.
        "spark.sql.adaptive.advisoryPartitionSizeInBytes": "8m",
        # Otherwise each step on persisted rows runs 200 tasks, and a Python task takes 50 ms even for a few rows.
        "spark.sql.optimizer.canChangeCachedPlanOutputPartitioning": "true",
        # Persisted rows are written to disk in blocks of some megabytes, and by default Java's writer keeps references
        # to many of them.
        "spark.serializer.objectStreamReset": "1",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "65536",
        "spark.python.daemon.module": "fraud_assets.engines.spark.daemon",
        "spark.ui.showConsoleProgress": "false",
        # Spark hides these options of a source in plans, logs and the web UI.
        "spark.sql.redaction.options.regex": f"(?i)url|password|secret|{UNSHOWN}",
        "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={_log_config()}",
    }
    if local or re.match(_ON_LOOPBACK, settings.spark_master):
        # Other machines do not need to reach the driver.
        config |= {"spark.driver.host": _LOOPBACK, "spark.driver.bindAddress": _LOOPBACK}
    if local:
        config |= {
            "spark.ui.enabled": "false",
            "spark.sql.shuffle.partitions": str(2 * (os.cpu_count() or 1)),
        }
    if local or settings.spark_master.startswith("spark://"):
        # On YARN and Kubernetes the executors have their own Python.
        config["spark.pyspark.python"] = sys.executable
    if not _names_jars(settings):
        # Only landing needs the jars, and it reports that they are missing.
        with suppress(JarsError):
            config["spark.jars"] = ",".join(str(jar) for jar in sorted(find_kafka_jars(settings).glob("*.jar")))
    return config | settings.spark_conf


def find_kafka_jars(settings: Settings) -> Path:
    """Returns the folder with the jars of Spark's Kafka connector: FRAUD_SPARK_JARS, else the jars from Maven.

    Raises:
        JarsError: The jars are missing and cannot be resolved.
    """
    if not settings.spark_jars:
        try:
            return resolve_jars(*_CONNECTOR, "Spark's Kafka connector")
        except JarsError as error:
            raise JarsError(f"{error} Or point FRAUD_SPARK_JARS to a folder with the jars.") from error
    folder = Path(settings.spark_jars).expanduser().absolute()
    if not any(folder.glob("spark-sql-kafka-*.jar")):
        raise JarsError(
            f"FRAUD_SPARK_JARS is {settings.spark_jars!r}, which contains no spark-sql-kafka-….jar. Fill the folder "
            f"with `mvn -f {resources.files('fraud_assets.engines.spark').joinpath('spark.pom.xml')} "
            "dependency:copy-dependencies -DoutputDirectory=<folder>`, or leave the setting empty."
        )
    return folder


def require_connector(settings: Settings) -> None:
    """Ensures that a session with these settings can read Kafka.

    Raises:
        JarsError: The jars are missing and cannot be resolved, and FRAUD_SPARK_CONF names no others.
    """
    if not _names_jars(settings):
        find_kafka_jars(settings)


def is_connector_resolved(settings: Settings) -> bool:
    """Returns whether `require_connector` succeeds without running Maven.

    Raises:
        JarsError: FRAUD_SPARK_JARS names a folder without the connector.
    """
    if _names_jars(settings):
        return True
    return bool(find_kafka_jars(settings)) if settings.spark_jars else are_jars_resolved(*_CONNECTOR)


def _names_jars(settings: Settings) -> bool:
    return any(name in settings.spark_conf for name in _JAR_SETTINGS)


@contextmanager
def spark_session(settings: Settings) -> Iterator[SparkSession]:
    """Starts a session and ends it with the block. Spark logs to FRAUD_HOME/spark/driver.log.

    Raises:
        EngineError: Spark does not start.
        JarsError: Java is missing.
    """
    session = start_session(settings)
    try:
        yield session
    finally:
        stop_session(session)


def start_session(
    settings: Settings,
    config: dict[str, str] | None = None,
    make: Callable[[dict[str, str]], SparkSession] | None = None,
) -> SparkSession:
    """Starts a session; see `spark_session`.

    Args:
        settings: The settings of Spark and of the home folder.
        config: The configuration of Spark; default: `build_spark_config`.
        make: Creates the session from the configuration; default: Spark's own builder.

    Raises:
        EngineError: Spark does not start.
        JarsError: Java is missing.
    """
    find_java(_PRODUCT)
    from pyspark import SparkConf, SparkContext
    from pyspark.errors import PySparkException
    from pyspark.java_gateway import launch_gateway
    from pyspark.sql import SparkSession

    log = _log_path(settings)
    config = config or build_spark_config(settings)
    if python := config.get("spark.pyspark.python"):
        # Only spark-submit reads this setting, so it is passed as a variable.
        os.environ.setdefault("PYSPARK_PYTHON", python)
    if config.get("spark.driver.bindAddress") == _LOOPBACK:
        # Without this variable, the web UI listens on all addresses.
        os.environ.setdefault("SPARK_LOCAL_IP", _LOOPBACK)
    require_master(config.get("spark.master", ""), _MASTER_SECONDS)
    conf = SparkConf(loadDefaults=False).setAll(list(config.items()))
    try:
        if SparkContext._gateway is None:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                # Otherwise the Java process writes between the platform's own log lines.
                gateway = launch_gateway(conf, {"stdout": output, "stderr": output})
            SparkContext._ensure_initialized(gateway=gateway, conf=conf)
        session = make(config) if make else SparkSession.builder.config(conf=conf).getOrCreate()
        _silence_py4j(session)
        return session
    except Exception as error:
        if not isinstance(error, PySparkException) and "py4j" not in type(error).__module__:
            raise
        raise EngineError(
            f"Spark did not start with FRAUD_SPARK_MASTER {settings.spark_master!r}: {_cause(str(error))}. Check that "
            f"the master runs and that FRAUD_SPARK_CONF is correct; for details see {log}."
        ) from error


def require_master(master: str, timeout: float) -> None:
    """Waits until a standalone master accepts connections. Other masters cannot be checked before the start.

    Spark itself would retry for a minute, and no setting shortens this.

    Args:
        master: The value of FRAUD_SPARK_MASTER.
        timeout: Maximum seconds to wait.

    Raises:
        EngineError: The master does not respond, or its address has no port.
    """
    if not master.startswith("spark://"):
        return
    deadline = monotonic() + timeout
    while True:
        for address in master.removeprefix("spark://").split(","):
            host, _, port = address.rpartition(":")
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=timeout).close()
                return
            except ValueError:
                raise EngineError(
                    f"FRAUD_SPARK_MASTER {master!r} names no port. Write it as spark://host:7077."
                ) from None
            except OSError as error:
                reason = error.strerror or error
        if monotonic() > deadline:
            raise EngineError(
                f"No Spark master responds at FRAUD_SPARK_MASTER {master!r}: {reason}. Start it, or correct the "
                "setting."
            )
        sleep(0.2)


def describe_session(session: SparkSession) -> Iterator[str]:
    """Yields sentences about a started session: its web UI, and whether it has workers."""
    context = session.sparkContext
    web_ui = f"; its web UI is at {context.uiWebUrl}" if context.uiWebUrl else ""
    yield f"Spark {session.version} runs on {context.master} as {context.applicationId}{web_ui}."
    on_demand = context.getConf().get("spark.dynamicAllocation.enabled", "false") == "true"
    if not context.master.startswith("spark://") or on_demand:
        return
    deadline = monotonic() + _WORKER_SECONDS
    # The driver counts as one executor.
    while context._jsc.sc().getExecutorMemoryStatus().size() < 2:
        if monotonic() > deadline:
            memory = context.getConf().get("spark.executor.memory")
            yield (
                f"No worker of {context.master} has accepted the application yet, so the application waits. Start "
                f"workers, or request less than {memory} of memory per worker (FRAUD_SPARK_MEMORY)."
            )
            return
        sleep(0.1)


def _silence_py4j(session: SparkSession) -> None:
    """Suppresses stack traces about a lost Java process; `convert_spark_errors` reports the loss as an error."""
    # py4j does not log them to a logger of its own.
    logging.getLogger().addFilter(_is_not_from_py4j)
    server = getattr(session.sparkContext, "_accumulatorServer", None)
    if server is not None:
        original = server.handle_error

        def handle_error(request: object, address: object) -> None:
            if not isinstance(sys.exc_info()[1], EOFError):
                original(request, address)

        server.handle_error = handle_error


def _is_not_from_py4j(record: logging.LogRecord) -> bool:
    return Path(record.pathname).parent.name != "py4j"


def has_session_ended(session: SparkSession) -> bool:
    """Returns whether the session was stopped or its Java process has ended."""
    from py4j.protocol import Py4JError

    try:
        return bool(session.sparkContext._jsc.sc().isStopped())
    except (Py4JError, OSError, AttributeError):
        return True


def stop_session(session: SparkSession) -> None:
    """Ends the session, even if its Java process has already ended."""
    from py4j.protocol import Py4JError

    with suppress(Py4JError, OSError), warnings.catch_warnings():
        # `convert_spark_errors` reports a lost Java process to the users of the session.
        warnings.filterwarnings("ignore", "Unable to cleanly shutdown Spark JVM", RuntimeWarning)
        session.stop()


@contextmanager
def convert_spark_errors(settings: Settings) -> Iterator[None]:
    """Translates a failure of Spark to the error that a task raised, or to an `EngineError` with the cause."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        yield
    # ConnectionRefusedError is raised if the Java process has ended.
    except (PySparkException, Py4JError, ConnectionRefusedError) as error:
        raise _translate(_text_of(error), settings) from error


def _text_of(error: Exception) -> str:
    from py4j.protocol import Py4JError

    try:
        return _GONE if isinstance(error, OSError) else str(error)
    # py4j asks the Java process for the text of its exception.
    except (Py4JError, OSError):
        return _GONE


def _translate(text: str, settings: Settings) -> FraudAssetsError:
    """Returns the error of the platform for the text of a Spark failure."""
    own = re.search(r"^fraud_assets\.errors\.(\w+): (.+)$", text, re.MULTILINE)
    if own:
        kind: Any = getattr(errors, own[1], EngineError)
        return kind(own[2])
    memory, log = f"FRAUD_SPARK_MEMORY is {settings.spark_memory!r}", _log_path(settings)
    if re.search(_NO_MEMORY, text):
        return EngineError(
            f"Spark ran out of memory: {memory}. Raise it, or lower FRAUD_SPARK_BATCH_ROWS; for details see {log}."
        )
    if re.search(_ENDED, text):
        return EngineError(
            f"Spark ended in the middle of a job, probably because it ran out of memory: {memory}. Raise it, or lower "
            f"FRAUD_SPARK_BATCH_ROWS; for details see {log}."
        )
    return EngineError(f"A job on Spark failed: {_cause(text)}. For details see {log} and Spark's web UI.")


def _cause(text: str) -> str:
    """Returns the last cause in a chain of Java and Python exceptions, on one line."""
    stripped = [line.strip() for line in text.splitlines()]
    lines = [line for line in stripped if line and not line.startswith("at ") and line != "Driver stacktrace:"]
    causes = [found[1] for line in lines if (found := re.match(_FAILURE, line))]
    return (causes or lines or ["no reason given"])[-1][:300].rstrip(".")


def _log_path(settings: Settings) -> Path:
    return settings.home_path / "spark" / "driver.log"


def _log_config() -> str:
    return str(resources.files("fraud_assets.engines.spark").joinpath("log4j2.properties"))
