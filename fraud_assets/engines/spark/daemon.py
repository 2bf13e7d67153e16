"""The process from which Spark forks its Python workers. It imports their modules once, and not once per worker."""

import deltalake.fs  # noqa: F401
import pyarrow.compute
import pyarrow.dataset
import pyarrow.parquet  # noqa: F401
import treelite.gtil  # noqa: F401
from pyspark.daemon import manager

import fraud_assets.core.parsing
import fraud_assets.lake.data_files  # noqa: F401

if __name__ == "__main__":
    manager()
