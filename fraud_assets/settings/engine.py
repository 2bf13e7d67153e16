"""Settings of the compute engine: DuckDB or Spark."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import NoDecode

from fraud_assets.settings.pairs import KeyValuePairs
from fraud_assets.settings.source import GroupSettings
from fraud_assets.settings.values import BatchLimits

_SPARK_CONF = KeyValuePairs("spark.name=value", key=r"spark\..*", separator=";")


class EngineSettings(GroupSettings):
    """Settings of the compute engine: DuckDB or Spark."""

    engine: Literal["duckdb", "spark"] = Field(
        "duckdb",
        description="Engine that computes all stages: `duckdb`, which runs in the same process, or `spark`.",
    )
    duckdb_memory_limit: str = Field(
        "1GB", description="Maximum memory of DuckDB. Above this limit, DuckDB spills to disk."
    )
    spark_master: str = Field(
        "local[*]",
        description="Spark master: `local[*]`, `spark://host:7077`, `yarn` or `k8s://…`.",
    )
    spark_memory: str = Field(
        "2g",
        pattern=r"^[1-9][0-9]*[mg]$",
        description="Memory of the Spark driver and of each executor, for example `2g`.",
    )
    spark_jars: str = Field(
        "",
        description="Folder with the jars of Spark's Kafka connector. If empty, Maven resolves them.",
    )
    spark_land_rows: int = Field(
        1_000_000,
        ge=1,
        description="Maximum messages per landing commit on Spark, over all partitions.",
    )
    spark_batch_rows: int = Field(
        10_000_000,
        ge=1,
        description="Maximum rows per batch of features and scoring on Spark. It replaces FRAUD_BATCH_ROWS: Spark "
        "spills to disk, and each batch reads the history once.",
    )
    spark_batch_bytes: int = Field(
        8_000_000_000,
        ge=1_000,
        description="Maximum bytes of message bodies per batch of features on Spark. It replaces FRAUD_BATCH_BYTES.",
    )
    spark_conf: Annotated[dict[str, str], NoDecode, _SPARK_CONF] = Field(
        default_factory=dict,
        description="Additional Spark settings, for example `spark.executor.instances=4;spark.executor.cores=2`. They "
        "take precedence. Put secrets into Spark's own `spark-defaults.conf`.",
    )

    @property
    def spark_batch_limits(self) -> BatchLimits:
        """Maximum size of a batch on Spark."""
        return BatchLimits(self.spark_batch_rows, self.spark_batch_bytes)
