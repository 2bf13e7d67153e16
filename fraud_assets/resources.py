"""Resources of the assets and sensors: the settings, the lake and the compute engine."""

from functools import partial
from typing import TYPE_CHECKING

import dagster as dg
from dagster_deltalake.config import AzureConfig, GcsConfig, LocalConfig, S3Config
from pydantic import Field, PrivateAttr

from fraud_assets.settings import Settings, load_settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from fraud_assets.engines.base import Engine
    from fraud_assets.lake.tables import Lake


class PlatformResource(dg.ConfigurableResource):
    """The settings of the environment, and the lake that they define.

    Attributes:
        overrides: values by setting name that replace those of the environment, for tests and embedded use.
        storage: dagster-deltalake's configuration of the lake's object store, for example
            `S3Config(region="eu-west-1")`. Its options take precedence over the settings. Landers do not run in
            Dagster, so they need the same options in the settings.
    """

    overrides: dict[str, str] = Field(default_factory=dict)
    storage: LocalConfig | S3Config | AzureConfig | GcsConfig = Field(
        default_factory=LocalConfig, discriminator="provider"
    )

    def settings(self) -> Settings:
        """Returns the settings. Raises `SettingError`."""
        return load_settings(**self.overrides)

    def lake(self) -> "Lake":
        """Returns the lake of these settings. Raises `SettingError`."""
        from fraud_assets.lake.tables import Lake

        options = {name: value for name, value in self.storage.str_dict().items() if name != "provider"}
        return Lake.of(self.settings(), options)


class EngineResource(dg.ConfigurableResource):
    """The compute engine. Its dagster-pyspark session starts when Spark first has work, and stops when the run ends.

    Attributes:
        spark_config: Spark options by name, which take precedence over the settings.
    """

    spark_config: dict[str, str] = Field(default_factory=dict)
    _session: "SparkSession | None" = PrivateAttr(default=None)

    def choose(self, settings: Settings) -> "Engine":
        """Returns the engine named by FRAUD_ENGINE. A Spark session starts only when Spark has work."""
        from fraud_assets.engines.choice import choose_engine

        return choose_engine(settings, partial(self.session, settings))

    def session(self, settings: Settings) -> "SparkSession":
        """Returns the running session or starts one. Raises `EngineError`, `JarsError` and `SettingError`."""
        from dagster_pyspark import LazyPySparkResource
        from pyspark.sql import SparkSession

        from fraud_assets.engines.spark.session import build_spark_config, describe_session, start_session

        # A session that already runs, as in a notebook, belongs to the caller and is not stopped here.
        if (running := SparkSession.getActiveSession()) is not None:
            return running
        self._session = start_session(
            settings,
            build_spark_config(settings) | self.spark_config,
            lambda config: LazyPySparkResource(spark_config=config).spark_session,
        )
        for sentence in describe_session(self._session):
            dg.get_dagster_logger().info(sentence)
        return self._session

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Stops the session if this resource started it."""
        if self._session is not None:
            from fraud_assets.engines.spark.session import stop_session

            stop_session(self._session)
            self._session = None
