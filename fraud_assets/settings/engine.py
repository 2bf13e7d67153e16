"""The engine that computes, and its limits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import NoDecode

from fraud_assets.settings.pairs import KeyValuePairs
from fraud_assets.settings.source import GroupSettings
from fraud_assets.settings.values import BatchLimits

_SPARK_CONF = KeyValuePairs("spark.name=value", key=r"spark\..*", separator=";")


class EngineSettings(GroupSettings):
    """The engine that computes, and its limits."""

    engine: Literal["duckdb", "spark"] = Field(
        "duckdb", description="What computes features and scores: `duckdb` in the process, or `spark`."
    )
    duckdb_memory_limit: str = Field("1GB", description="Memory that DuckDB may use before it spills to disk.")
    spark_master: str = Field(
        "local[*]",
        description="Master of Spark: `local[*]`, `spark://host:7077`, `yarn`, `k8s://…`.",
    )
    spark_memory: str = Field(
        "2g",
        pattern=r"^[1-9][0-9]*[mg]$",
        description="Memory of Spark's driver, and of each executor beside it, as `2g`.",
    )
    spark_jars: str = Field(
        "",
        description="Folder of the jars of Spark's Kafka connector; empty means those that Maven resolves.",
    )
    spark_land_rows: int = Field(
        1_000_000, ge=1, description="Messages per landing commit by Spark, at most, over all partitions."
    )
    spark_batch_rows: int = Field(
        10_000_000,
        ge=1,
        description="Rows per batch of features and scoring on Spark, in place of FRAUD_BATCH_ROWS: what does not fit "
        "into memory goes to disk, and history is read once a batch.",
    )
    spark_batch_bytes: int = Field(
        8_000_000_000,
        ge=1_000,
        description="Bytes of message bodies per batch of features on Spark, in place of FRAUD_BATCH_BYTES.",
    )
    spark_conf: Annotated[dict[str, str], NoDecode, _SPARK_CONF] = Field(
        default_factory=dict,
        description="Further settings of Spark, as `spark.executor.instances=4;spark.executor.cores=2`; they win. "
        "Secrets belong in Spark's own `spark-defaults.conf`.",
    )

    @property
    def spark_batch_limits(self) -> BatchLimits:
        """Limits of a batch on Spark."""
        return BatchLimits(self.spark_batch_rows, self.spark_batch_bytes)
