"""Spark sessions: how one is configured, started and ended, and what its failures mean in words."""

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
from fraud_assets.kafka.java_client import UNSHOWN
from fraud_assets.settings import Settings
from fraud_assets.system.java import jars_are_resolved, java_program, resolve_jars

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
"""52 is the exit code of an executor without memory."""
_GONE = "Answer from Java side is empty"
_NO_ANSWER = r"An error occurred while calling \w+\.\w+$"
"""Of py4j, where Java gave no reason, for it was gone by then."""
_ENDED = (
    rf"SparkContext was shut down|stopped SparkContext|SparkContext\.dagScheduler\(\)|{_GONE}|{_NO_ANSWER}|in the JVM$"
)
_FAILURE = r"(?:: |Caused by: )?([\w.$]+(?:Error|Exception): .*)"


def spark_config(settings: Settings) -> dict[str, str]:
    """Spark's settings for these: ours, then FRAUD_SPARK_CONF, which wins.

    Without the Kafka connector's jars where they cannot be had; see `require_connector`.
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
        # For a customer's few it takes four times as long.
        "spark.sql.window.segmentTree.minPartitionRows": "10000",
        # Windows and Python cost more by the byte than what Spark's 64 MB are meant for.
        "spark.sql.adaptive.advisoryPartitionSizeInBytes": "8m",
        # Else the steps on rows that are kept take 200 tasks each, and a Python task 50 ms, however few the rows are.
        "spark.sql.optimizer.canChangeCachedPlanOutputPartitioning": "true",
        # Kept rows go to disk in pieces of some megabytes, and Java's writer holds on to so many of them.
        "spark.serializer.objectStreamReset": "1",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "65536",
        "spark.python.daemon.module": "fraud_assets.engines.spark.daemon",
        "spark.ui.showConsoleProgress": "false",
        # Of a source's options in plans, logs and the web UI.
        "spark.sql.redaction.options.regex": f"(?i)url|password|secret|{UNSHOWN}",
        "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={_log_config()}",
    }
    if local or re.match(_ON_LOOPBACK, settings.spark_master):
        # Nothing of it is for other machines.
        config |= {"spark.driver.host": _LOOPBACK, "spark.driver.bindAddress": _LOOPBACK}
    if local:
        config |= {
            "spark.ui.enabled": "false",
            "spark.sql.shuffle.partitions": str(2 * (os.cpu_count() or 1)),
        }
    if local or settings.spark_master.startswith("spark://"):
        # On YARN and Kubernetes the executors have a Python of their own.
        config["spark.pyspark.python"] = sys.executable
    if not _names_jars(settings):
        # Only landing needs them, and says so.
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
            return resolve_jars(*_CONNECTOR, "Spark's Kafka connector")
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


def require_connector(settings: Settings) -> None:
    """Sees to it that a session of these settings can read Kafka.

    Raises:
        JarsError: the jars are not there and cannot be had, and FRAUD_SPARK_CONF names no others.
    """
    if not _names_jars(settings):
        kafka_jars(settings)


def connector_is_resolved(settings: Settings) -> bool:
    """Whether `require_connector` finds it without Maven.

    Raises:
        JarsError: FRAUD_SPARK_JARS names a folder without it.
    """
    if _names_jars(settings):
        return True
    return bool(kafka_jars(settings)) if settings.spark_jars else jars_are_resolved(*_CONNECTOR)


def _names_jars(settings: Settings) -> bool:
    return any(name in settings.spark_conf for name in _JAR_SETTINGS)


@contextmanager
def spark_session(settings: Settings) -> Iterator[SparkSession]:
    """A session of these settings, ended with the block. What Spark logs is in FRAUD_HOME/spark/driver.log.

    Raises:
        EngineError: Spark does not start.
        JarsError: there is no Java.
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
    if config.get("spark.driver.bindAddress") == _LOOPBACK:
        # The web UI listens at every address without it.
        os.environ.setdefault("SPARK_LOCAL_IP", _LOOPBACK)
    require_master(config.get("spark.master", ""), _MASTER_SECONDS)
    conf = SparkConf(loadDefaults=False).setAll(list(config.items()))
    try:
        if SparkContext._gateway is None:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as told:
                # The Java machine would write beside our own lines.
                gateway = launch_gateway(conf, {"stdout": told, "stderr": told})
            SparkContext._ensure_initialized(gateway=gateway, conf=conf)
        session = make(config) if make else SparkSession.builder.config(conf=conf).getOrCreate()
        _quieten(session)
        return session
    except Exception as error:
        if not isinstance(error, PySparkException) and "py4j" not in type(error).__module__:
            raise
        raise EngineError(
            f"Spark did not start with FRAUD_SPARK_MASTER {settings.spark_master!r}: {_cause(str(error))}. Check that "
            f"the master runs and that FRAUD_SPARK_CONF is right; more is in {log}."
        ) from error


def require_master(master: str, patience: float) -> None:
    """Waits until a standalone master answers, so many seconds; of other masters nothing is known before the start.

    Spark itself would ask for a minute, and has no setting for it.

    Raises:
        EngineError: it does not answer, or its address is none.
    """
    if not master.startswith("spark://"):
        return
    deadline = monotonic() + patience
    while True:
        for place in master.removeprefix("spark://").split(","):
            host, _, port = place.rpartition(":")
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=patience).close()
                return
            except ValueError:
                raise EngineError(
                    f"FRAUD_SPARK_MASTER {master!r} names no port. Write it as spark://host:7077."
                ) from None
            except OSError as error:
                reason = error.strerror or error
        if monotonic() > deadline:
            raise EngineError(
                f"No Spark master answers at FRAUD_SPARK_MASTER {master!r}: {reason}. Start it, or correct the setting."
            )
        sleep(0.2)


def describe_session(session: SparkSession) -> Iterator[str]:
    """Sentences on a session that was started: where its work is to be seen, and whether there are workers for it."""
    context = session.sparkContext
    place = f", its web UI is at {context.uiWebUrl}" if context.uiWebUrl else ""
    yield f"Spark {session.version} works at {context.master} as {context.applicationId}{place}."
    on_demand = context.getConf().get("spark.dynamicAllocation.enabled", "false") == "true"
    if not context.master.startswith("spark://") or on_demand:
        return
    deadline = monotonic() + _WORKER_SECONDS
    # The driver counts as one.
    while context._jsc.sc().getExecutorMemoryStatus().size() < 2:
        if monotonic() > deadline:
            memory = context.getConf().get("spark.executor.memory")
            yield (
                f"No worker of {context.master} has taken the work yet, and it waits until one does: start workers, or "
                f"ask for less than {memory} for each (FRAUD_SPARK_MEMORY)."
            )
            return
        sleep(0.1)


def _quieten(session: SparkSession) -> None:
    """Keeps stack traces of a lost Java machine from the terminal: `spark_faults` puts it in words."""
    # py4j has no logger of its own for them.
    logging.getLogger().addFilter(_not_of_py4j)
    server = getattr(session.sparkContext, "_accumulatorServer", None)
    if server is not None:
        others = server.handle_error

        def handle_error(request: object, address: object) -> None:
            if not isinstance(sys.exc_info()[1], EOFError):
                others(request, address)

        server.handle_error = handle_error


def _not_of_py4j(record: logging.LogRecord) -> bool:
    return Path(record.pathname).parent.name != "py4j"


def session_has_ended(session: SparkSession) -> bool:
    """Whether the session was stopped, or its Java machine is gone."""
    from py4j.protocol import Py4JError

    try:
        return bool(session.sparkContext._jsc.sc().isStopped())
    except (Py4JError, OSError, AttributeError):
        return True


def stop_session(session: SparkSession) -> None:
    """Ends the session, also one whose Java machine is gone."""
    from py4j.protocol import Py4JError

    with suppress(Py4JError, OSError), warnings.catch_warnings():
        # Whoever uses the session learns of it by `spark_faults`.
        warnings.filterwarnings("ignore", "Unable to cleanly shutdown Spark JVM", RuntimeWarning)
        session.stop()


@contextmanager
def spark_faults(settings: Settings) -> Iterator[None]:
    """Turns what fails on Spark into the error that a task raised, or into an `EngineError` with its first cause."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        yield
    # The last where its Java machine is gone.
    except (PySparkException, Py4JError, ConnectionRefusedError) as error:
        raise _told(_words(error), settings) from error


def _words(error: Exception) -> str:
    from py4j.protocol import Py4JError

    try:
        return _GONE if isinstance(error, OSError) else str(error)
    # What it says is asked of the Java machine.
    except (Py4JError, OSError):
        return _GONE


def _told(text: str, settings: Settings) -> FraudAssetsError:
    own = re.search(r"^fraud_assets\.errors\.(\w+): (.+)$", text, re.MULTILINE)
    if own:
        kind: Any = getattr(errors, own[1], EngineError)
        return kind(own[2])
    given, log = f"FRAUD_SPARK_MEMORY is {settings.spark_memory!r}", _log(settings)
    if re.search(_NO_MEMORY, text):
        return EngineError(
            f"Spark ran out of memory: {given}. Give it more, or lower FRAUD_SPARK_BATCH_ROWS; more is in {log}."
        )
    if re.search(_ENDED, text):
        return EngineError(
            f"Spark ended in the middle of a job, as it does without memory: {given}. Give it more, or lower "
            f"FRAUD_SPARK_BATCH_ROWS; why it ended is in {log}."
        )
    return EngineError(f"A job on Spark failed: {_cause(text)}. More is in {log} and in Spark's web UI.")


def _cause(text: str) -> str:
    """The last cause that a chain of Java and Python exceptions tells of, in one line."""
    told = [line.strip() for line in text.splitlines()]
    lines = [line for line in told if line and not line.startswith("at ") and line != "Driver stacktrace:"]
    causes = [found[1] for line in lines if (found := re.match(_FAILURE, line))]
    return (causes or lines or ["no reason given"])[-1][:300].rstrip(".")


def _log(settings: Settings) -> Path:
    return settings.home_path / "spark" / "driver.log"


def _log_config() -> str:
    return str(resources.files("fraud_assets.engines.spark").joinpath("log4j2.properties"))
