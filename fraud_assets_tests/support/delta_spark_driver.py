"""A program that uses Delta's own Spark connector: it copies tables to Parquet files and appends to one table.

Run as `python delta_spark_driver.py OUT APPEND_TO TABLE…`, where FRAUD_SPARK_CONF names the connector.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq

from fraud_assets.engines.spark.session import spark_session
from fraud_assets.settings import load_settings


def main(out: Path, append_to: str, *tables: str) -> None:
    with spark_session(load_settings()) as spark:
        for number, table in enumerate(tables):
            pq.write_table(spark.read.format("delta").load(table).toArrow(), out / f"{number}.parquet")
        rows = spark.read.format("delta").load(append_to)
        rows.write.format("delta").mode("append").save(append_to)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
