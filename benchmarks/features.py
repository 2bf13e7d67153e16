"""Compares the feature stage with its windows alone and with pandas: python benchmarks/features.py [--quick]

The stage reads and writes Delta tables. The windows alone are one DuckDB select over an Arrow table in memory with an
Arrow result, including a window over fraud flags.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

import _lakes as lakes
import pandas as pd
import pyarrow as pa

from fraud_assets.core.schema import WINDOW_DAYS
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import load_settings
from fraud_assets.stages.features import process_landed

DAY_US = 86_400_000_000
DELAY = 7


def plain_sql() -> str:
    """Returns SQL for the handbook's twelve windows over a table `data`."""
    windows = []
    for days in WINDOW_DAYS:
        card = f"partition by customer_id order by us range between {days * DAY_US - 1} preceding and current row"
        shop = (
            f"partition by terminal_id order by us range between {(days + DELAY) * DAY_US - 1} preceding "
            f"and {DELAY * DAY_US} preceding"
        )
        windows += [
            f"count(*) over ({card})",
            f"avg(tx_amount) over ({card})",
            f"count(*) over ({shop})",
            f"sum(is_fraud::int) over ({shop})",
        ]
    return f"select transaction_id, {', '.join(windows)} from (select *, epoch_us(tx_datetime) as us from data)"


def in_pandas(data: pa.Table) -> float:
    """Returns the rows per second of pandas' rolling windows per group, on a sample of whole cards and terminals."""
    spent = 0.0
    for key, groups in (("customer_id", 200), ("terminal_id", 400)):
        frame = data.select([key, "tx_datetime", "tx_amount", "is_fraud"]).to_pandas()
        frame = frame[frame[key].isin(frame[key].unique()[:groups])].astype({"is_fraud": float})
        frame = frame.set_index("tx_datetime")
        began = time.perf_counter()
        pieces = []
        for _, group in frame.groupby(key):
            columns = {}
            for days in WINDOW_DAYS:
                if key == "customer_id":
                    rolled = group["tx_amount"].rolling(f"{days}D")
                    columns |= {f"count{days}": rolled.count(), f"mean{days}": rolled.mean()}
                else:
                    long, late = group["is_fraud"].rolling(f"{days + DELAY}D"), group["is_fraud"].rolling(f"{DELAY}D")
                    count = long.count() - late.count()
                    columns |= {f"count{days}": count, f"risk{days}": (long.sum() - late.sum()) / count}
            pieces.append(pd.DataFrame(columns))
        pd.concat(pieces)
        spent += (time.perf_counter() - began) / len(frame)
    return 1 / spent


def main() -> None:
    quick = "--quick" in sys.argv
    files = lakes.handbook_files()[: 1 if quick else None]
    data = pa.concat_tables([lakes.handbook_rows(file) for file in files])
    with tempfile.TemporaryDirectory() as folder:
        landed = load_settings(home=Path(folder) / "landed")
        rows = lakes.land_handbook(Lake.of(landed), files)
        used: dict[str, list[float]] = {"stage": [], "plain": []}

        def stage() -> float:
            home = Path(folder) / "run"
            shutil.rmtree(home / "lake", ignore_errors=True)
            shutil.copytree(landed.home_path / "lake", home / "lake")
            settings = load_settings(home=home)
            cpu = time.process_time()
            spent = lakes.seconds(lambda: process_landed(Lake.of(settings), settings))
            used["stage"].append(time.process_time() - cpu)
            return spent

        def plain() -> float:
            import duckdb

            with duckdb.connect() as connection:
                connection.register("data", data)
                cpu = time.process_time()
                spent = lakes.seconds(lambda: connection.sql(plain_sql()).to_arrow_table())
            used["plain"].append(time.process_time() - cpu)
            return spent

        lakes.log_progress("warming up")
        plain(), stage()  # The first calls import libraries and compile the features to SQL.
        wall = lakes.alternately(2 if quick else 3, stage=stage, plain=plain)
    cpu = {name: min(values) for name, values in used.items()}
    pandas = in_pandas(data)
    ratio = wall["plain"] / wall["stage"]
    print(
        f"Feature stage of {rows:,} handbook transactions (Delta in, parse, duplicates, windows, quarantine, Delta out)"
    )
    print(
        f"  reaches {ratio:.2f} of the speed of the windows alone in plain DuckDB SQL "
        f"({lakes.describe_aim(ratio, 0.6, least=True)});"
    )
    print(f"  by CPU time, which other load affects less: {cpu['plain'] / cpu['stage']:.2f}.")
    print(f"  It is {rows / wall['stage'] / pandas:.1f} times as fast as pandas' rolling windows group by group.")
    print(
        f"  On this machine now: {rows / wall['stage']:,.0f} rows/s, windows alone {rows / wall['plain']:,.0f}, "
        f"pandas {pandas:,.0f}."
    )


if __name__ == "__main__":
    main()
