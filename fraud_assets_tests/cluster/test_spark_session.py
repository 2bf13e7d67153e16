"""Spark sessions: their configuration, their quiet terminal, and their error messages."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from py4j.protocol import Py4JError

from fraud_assets.engines.spark.session import (
    _cause,
    build_spark_config,
    convert_spark_errors,
    find_kafka_jars,
    require_master,
    spark_session,
)
from fraud_assets.engines.spark.tables import run_tasks
from fraud_assets.errors import EngineError, FraudAssetsError, JarsError, LakeError
from fraud_assets.settings import Settings
from fraud_assets.system.ports import find_free_ports
from fraud_assets_tests.support.starting import QUICK_JAVA, ROOT

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.xdist_group("spark")

NUMBERS = pa.schema([pa.field("number", pa.int64())])
MakeSettings = Callable[..., Settings]


def test_settings_of_the_user_override_the_defaults(make_settings: MakeSettings) -> None:
    config = build_spark_config(make_settings(spark_memory="3g", spark_conf="spark.executor.memory=5g;spark.a.b=c=d"))
    assert config["spark.driver.memory"] == "3g"
    assert config["spark.executor.memory"] == "5g"
    assert config["spark.a.b"] == "c=d"


@pytest.mark.parametrize("master", ["local[2]", "spark://127.0.0.1:7077", "spark://localhost:7077"])
def test_a_driver_for_a_local_master_listens_on_the_loopback_address(make_settings: MakeSettings, master: str) -> None:
    config = build_spark_config(make_settings(spark_master=master))
    assert config["spark.driver.host"] == config["spark.driver.bindAddress"] == "127.0.0.1"


@pytest.mark.parametrize("master", ["spark://head:7077", "spark://127.example.org:7077", "yarn"])
def test_executors_on_other_machines_can_reach_the_driver(make_settings: MakeSettings, master: str) -> None:
    assert "spark.driver.bindAddress" not in build_spark_config(make_settings(spark_master=master))


def test_a_folder_without_the_kafka_connector_is_refused(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings(spark_jars=str(tmp_path))
    with pytest.raises(JarsError, match=rf"FRAUD_SPARK_JARS is '{tmp_path}'.*spark\.pom\.xml"):
        find_kafka_jars(settings)
    # A session that does not read from Kafka needs no connector.
    assert "spark.jars" not in build_spark_config(settings)


def test_a_folder_with_the_kafka_connector_is_used(make_settings: MakeSettings, tmp_path: Path) -> None:
    jar = tmp_path / "spark-sql-kafka-0-10_2.13-4.2.0.jar"
    jar.touch()
    assert build_spark_config(make_settings(spark_jars=str(tmp_path)))["spark.jars"] == str(jar)
    with_packages = make_settings(spark_jars=str(tmp_path), spark_conf="spark.jars.packages=org.example:connector:1")
    assert "spark.jars" not in build_spark_config(with_packages)


def test_missing_java_is_reported_with_its_fix(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(JarsError, match=r"Spark needs Java.*JAVA_HOME"):
        with spark_session(settings):
            pass


def session_error(settings: Settings) -> str:
    with pytest.raises(EngineError) as caught:
        with spark_session(settings):
            pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_master_that_does_not_respond_is_reported(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fraud_assets.engines.spark.session._MASTER_SECONDS", 0.1)
    master = f"spark://127.0.0.1:{find_free_ports(['master'])['master']}"
    assert f"No Spark master responds at FRAUD_SPARK_MASTER '{master}'" in session_error(
        make_settings(spark_master=master)
    )
    assert "names no port" in session_error(make_settings(spark_master="spark://head"))


def test_one_of_two_masters_is_enough() -> None:
    with socket.create_server(("127.0.0.1", 0)) as standby:
        require_master(
            f"spark://127.0.0.1:{find_free_ports(['master'])['master']},127.0.0.1:{standby.getsockname()[1]}", 0.1
        )


def error_shown_to_user(spark: SparkSession, settings: Settings, error: Callable[[], Any]) -> FraudAssetsError:
    """Runs a task that raises the error, and returns the error that the user sees."""

    def work(part: int) -> Iterator[pa.RecordBatch]:
        raise error()

    with pytest.raises(FraudAssetsError) as caught:
        with convert_spark_errors(settings):
            run_tasks(spark, [0], work, NUMBERS).collect()
    return caught.value


def test_a_platform_error_in_a_task_keeps_its_type_and_text(spark: SparkSession, settings: Settings) -> None:
    sentence = "The table s3://lake/raw cannot be read: no such bucket: 'lake'. Set FRAUD_LAKE_URI."
    shown = error_shown_to_user(spark, settings, lambda: LakeError(sentence))
    assert type(shown) is LakeError
    assert str(shown) == sentence


def test_a_platform_error_with_a_cause_keeps_its_type_and_text(spark: SparkSession, settings: Settings) -> None:
    def caused() -> LakeError:
        error = LakeError("The table cannot be read.")
        error.__cause__ = OSError("disk: gone")
        return error

    shown = error_shown_to_user(spark, settings, caused)
    assert (type(shown), str(shown)) == (LakeError, "The table cannot be read.")


def test_an_unknown_error_in_a_task_is_reported_with_its_type_and_text(spark: SparkSession, settings: Settings) -> None:
    def caused() -> Any:
        error = RuntimeError("the task failed")
        error.__cause__ = KeyError("customer_id")
        return error

    shown = error_shown_to_user(spark, settings, lambda: ZeroDivisionError("a mean of nothing"))
    assert type(shown) is EngineError
    assert str(shown).startswith("A job on Spark failed: ZeroDivisionError: a mean of nothing. For details see ")
    assert "failed: RuntimeError: the task failed. For details" in str(error_shown_to_user(spark, settings, caused))


def test_a_killed_task_is_reported_in_one_line(spark: SparkSession, settings: Settings) -> None:
    shown = error_shown_to_user(spark, settings, lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert "Python worker exited unexpectedly" in str(shown)
    assert "\n" not in str(shown)


@pytest.mark.parametrize(
    ("query", "cause"), [("select raise_error('boom')", "boom"), ("select * from nowhere", "nowhere")]
)
def test_an_error_of_spark_is_reported_in_one_line(
    spark: SparkSession, settings: Settings, query: str, cause: str
) -> None:
    with pytest.raises(EngineError, match=cause) as caught:
        with convert_spark_errors(settings):
            spark.sql(query).collect()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            "An error occurred while calling None.org.apache.spark.api.java.JavaSparkContext.\n"
            ": java.lang.IllegalStateException: Cannot call methods on a stopped SparkContext.\n"
            "This stopped SparkContext was created at:\n\n\tat java.base/java.lang.Thread.run(Thread.java:840)\n"
            "The currently active SparkContext was created at:\n\n(No active SparkContext.)\n",
            "java.lang.IllegalStateException: Cannot call methods on a stopped SparkContext",
        ),
        (
            "Job aborted due to stage failure: Task 0 in stage 0.0 failed 4 times, most recent failure: Lost task 0.3 "
            "in stage 0.0 (TID 3) (10.0.0.2 executor 3): ExecutorLostFailure (executor 3 exited caused by one of the "
            "running tasks) Reason: Command exited with code 137\nDriver stacktrace:",
            "Job aborted due to stage failure: Task 0 in stage 0.0 failed 4 times, most recent failure: Lost task 0.3 "
            "in stage 0.0 (TID 3) (10.0.0.2 executor 3): ExecutorLostFailure (executor 3 exited caused by one of the "
            "running tasks) Reason: Command exited with code 137",
        ),
    ],
)
def test_the_cause_is_extracted_from_an_error_of_java(text: str, cause: str) -> None:
    """The errors of a driver that reached no master, and of a task whose executors were killed."""
    assert _cause(text) == cause


@pytest.mark.parametrize(
    "text",
    [
        "Job aborted due to stage failure: Task 2 in stage 90.0 failed 1 times, most recent failure: Lost task 2.0 in "
        "stage 90.0 (TID 290) (localhost executor driver): java.lang.OutOfMemoryError: Java heap space",
        "ExecutorLostFailure (executor 3 exited caused by a running task) Reason: Command exited with code 52",
    ],
)
def test_an_out_of_memory_error_names_the_memory_setting(settings: Settings, text: str) -> None:
    with pytest.raises(EngineError, match="ran out of memory: FRAUD_SPARK_MEMORY is '2g'"):
        with convert_spark_errors(settings):
            raise Py4JError(text)


def run_in_a_process(program: str, settings: Settings) -> tuple[int, str, str]:
    """Runs a program with these settings; returns its exit code, standard output and standard error."""
    home = str(settings.home_path)
    start = f"""
from fraud_assets.settings import load_settings
settings = load_settings(_env_file=None, home={home!r}, spark_master="local[1]")
"""
    completed = subprocess.run(
        [sys.executable, "-c", start + program],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=ROOT,
        env={**os.environ, "JDK_JAVA_OPTIONS": QUICK_JAVA},
    )
    return completed.returncode, completed.stdout, completed.stderr


FAILING_TASKS = """
import os, signal
from fraud_assets.engines.spark.session import convert_spark_errors, spark_session
from fraud_assets.errors import EngineError

def fails(batches):
    raise ValueError("bad row")
    yield

def kills(batches):
    os.kill(java, signal.SIGKILL)
    yield from batches

def report_failure(task):
    try:
        with convert_spark_errors(settings):
            spark.range(3).mapInArrow(task, "id long").toArrow()
    except EngineError as error:
        print(error)

with spark_session(settings) as spark:
    java = spark.sparkContext._gateway.proc.pid
    assert spark.range(3).count() == 3
    assert spark.conf.get("spark.sql.session.timeZone") == "UTC"
    assert spark.range(3).mapInArrow(lambda batches: batches, "id long").count() == 3
    report_failure(fails)
    report_failure(kills)
"""


@pytest.mark.usefixtures("spark")
def test_a_session_writes_nothing_to_the_terminal_even_if_java_is_killed(settings: Settings) -> None:
    log = settings.home_path / "spark" / "driver.log"
    code, output, errors = run_in_a_process(FAILING_TASKS, settings)
    assert (code, errors) == (0, "")
    failed, died = output.splitlines()
    assert failed == f"A job on Spark failed: ValueError: bad row. For details see {log} and Spark's web UI."
    assert died.startswith("Spark ended in the middle of a job, probably because it ran out of memory: FRAUD_SPARK_MEM")
    assert "bad row" in log.read_text()


STOP_WITHOUT_JAVA = """
from types import SimpleNamespace
from py4j.protocol import Py4JError
from pyspark import SparkContext
from fraud_assets.engines.spark.session import stop_session

def gone():
    raise Py4JError("Answer from Java side is empty")

session = SparkContext.__new__(SparkContext)
session._jsc = SimpleNamespace(stop=gone)
stop_session(session)
"""


def test_the_end_of_a_session_whose_java_process_is_gone_prints_nothing(settings: Settings) -> None:
    assert run_in_a_process(STOP_WITHOUT_JAVA, settings) == (0, "", "")


def test_an_error_of_java_without_a_reason_means_that_spark_ended(settings: Settings) -> None:
    with pytest.raises(EngineError, match="Spark ended in the middle of a job"), convert_spark_errors(settings):
        raise Py4JError("An error occurred while calling o101.getResult")


RESOURCE = """
import dagster as dg
from pyspark import SparkContext
from fraud_assets.resources import EngineResource

def running():
    return SparkContext._active_spark_context is not None

@dg.asset
def plain(engines: EngineResource):
    assert not running()

@dg.asset(deps=[plain])
def counted(engines: EngineResource):
    assert engines.session(settings) is engines.session(settings)
    assert engines.session(settings).conf.get("spark.sql.shuffle.partitions") == "3"
    assert engines.session(settings).range(3).count() == 3

@dg.asset(deps=[counted])
def broken(engines: EngineResource):
    assert engines.session(settings).range(3).count() == 3
    raise dg.Failure("on purpose")

resources = {"engines": EngineResource(spark_config={"spark.sql.shuffle.partitions": "3"})}
for assets, done in (([plain], ["plain"]), ([plain, counted, broken], ["plain", "counted"])):
    run = dg.materialize(assets, resources=resources, raise_on_error=False)
    assert [event.asset_key.to_user_string() for event in run.get_asset_materialization_events()] == done
    assert not running()
"""


@pytest.mark.usefixtures("spark")
def test_the_resource_starts_a_session_on_demand_and_stops_it_with_the_run(settings: Settings) -> None:
    code, _, errors = run_in_a_process(RESOURCE, settings)
    assert code == 0, errors
