"""What assets and sensors are given: the settings, once, and by them the lake."""

from functools import partial
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field, PrivateAttr

from fraud_assets.settings import Settings, load_settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from fraud_assets.engines.base import Engine
    from fraud_assets.lake.tables import Lake


class PlatformResource(dg.ConfigurableResource):
    """The settings of the environment; `overrides` (by setting name) are for tests and embedded use.

    `storage_options` reach the lake's object store and win over the settings. They are what the storage settings of
    dagster-deltalake give, as `S3Config(region="eu-west-1").str_dict()`. Landers do not run in Dagster: give those
    the same by the settings.
    """

    overrides: dict[str, str] = Field(default_factory=dict)
    storage_options: dict[str, str] = Field(default_factory=dict)

    def settings(self) -> Settings:
        """The settings. Raises `SettingError`."""
        return load_settings(**self.overrides)

    def lake(self) -> "Lake":
        """The lake of these settings. Raises `SettingError`."""
        from fraud_assets.lake.tables import Lake

        return Lake.of(self.settings(), self.storage_options)


class SparkResource(dg.ConfigurableResource):
    """A session of dagster-pyspark, started when an asset asks for it first and stopped when the run ends.

    `spark_config` wins over the settings, by names of Spark.
    """

    spark_config: dict[str, str] = Field(default_factory=dict)
    _session: "SparkSession | None" = PrivateAttr(default=None)

    def engine(self, settings: Settings) -> "Engine":
        """The engine that FRAUD_ENGINE names; the session starts when Spark has something to do."""
        from fraud_assets.engines.choice import choose_engine

        return choose_engine(settings, partial(self.session, settings))

    def session(self, settings: Settings) -> "SparkSession":
        """The session. Raises `EngineError`, `JarsError` and `SettingError`."""
        from dagster_pyspark import LazyPySparkResource
        from pyspark.sql import SparkSession

        from fraud_assets.engines.spark.session import describe_session, spark_config, start_session

        # A session that was there before, as in a notebook, is not ours to stop.
        if (running := SparkSession.getActiveSession()) is not None:
            return running
        self._session = start_session(
            settings,
            spark_config(settings) | self.spark_config,
            lambda config: LazyPySparkResource(spark_config=config).spark_session,
        )
        for sentence in describe_session(self._session):
            dg.get_dagster_logger().info(sentence)
        return self._session

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Stops the session, if there is one."""
        if self._session is not None:
            from fraud_assets.engines.spark.session import stop_session

            stop_session(self._session)
            self._session = None
