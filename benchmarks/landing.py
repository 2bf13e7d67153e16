"""Compares landing from Apache Kafka with the raw client: python benchmarks/landing.py [--quick | --full]

The topic has 4 partitions and 3 million messages of about 130 bytes; 1 million with --quick, 10 million with --full.
The benchmark compares four programs: the client's `consume` alone; a plain loop that consumes and writes Delta files of
100,000 rows, without positions and order; one `fraud-assets land` process; and two such processes that share the
partitions. Rates are measured from the first to the last commit, so they exclude startup. Memory is the largest
resident set of a process.
"""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fraud_assets.core.schema import raw_transactions
from fraud_assets.lake.log import read_row_count
from fraud_assets.lake.tables import Lake
from fraud_assets.operations.setup_home import prepare_home
from fraud_assets.settings import load_settings
from fraud_assets.testing.apache_kafka import apache_kafka, describe_obstacle

PARTITIONS, BATCH = 4, 100_000
BODY = b'{"transaction_id": %d, "tx_datetime": "2026-01-01T12:00:00.000000Z", "customer_id": %d, "terminal_id": %d, "tx_amount": 57.16}'
READ = """
import sys, time
from confluent_kafka import Consumer, TopicPartition
bootstrap, count, partitions = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
# By default the client pauses for a second when its queue is full. The platform's setting shortens the pause.
consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "raw", "enable.auto.commit": False,
    "fetch.queue.backoff.ms": 5})
consumer.assign([TopicPartition("transactions", n, 0) for n in range(partitions)])
"""
RAW = (
    READ
    + """
seen = len(consumer.consume(10_000, 10))
begun, first = time.perf_counter(), seen
while seen < count:
    seen += len(consumer.consume(10_000, 10))
print((count - first) / (time.perf_counter() - begun))
"""
)
PLAIN = (
    READ
    + """
import pyarrow as pa
from deltalake import WriterProperties, write_deltalake
seen, waiting, begun, first = 0, [], None, 0
while seen < count:
    waiting += [(m.partition(), m.offset(), m.timestamp()[1], m.key(), m.value()) for m in consumer.consume(10_000, 10)]
    if len(waiting) >= 100_000 or seen + len(waiting) >= count:
        columns = list(zip(*waiting))
        rows = pa.table({"partition": pa.array(columns[0], pa.int32()), "offset": pa.array(columns[1], pa.int64()),
            "timestamp": pa.array(columns[2], pa.int64()), "key": pa.array(columns[3], pa.binary()),
            "value": pa.array(columns[4], pa.binary())})
        write_deltalake(sys.argv[4], rows, mode="append",
            writer_properties=WriterProperties(compression="ZSTD", compression_level=1))
        seen += len(waiting)
        waiting = []
        if begun is None:
            begun, first = time.perf_counter(), seen
print((count - first) / (time.perf_counter() - begun))
"""
)


def fill(bootstrap: str, count: int) -> None:
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": bootstrap})
    made = admin.create_topics([NewTopic("transactions", PARTITIONS), NewTopic("fraud-labels", PARTITIONS)])
    for future in made.values():
        future.result(30)
    producer = Producer(
        {"bootstrap.servers": bootstrap, "linger.ms": 50, "batch.size": 1_000_000, "compression.type": "lz4",
         "queue.buffering.max.messages": 1_000_000}
    )  # fmt: skip
    for number in range(count):
        while True:
            try:
                producer.produce(
                    "transactions", BODY % (number, number % 5000, number % 10000), b"%d" % (number % 5000)
                )
                break
            except BufferError:
                producer.poll(0.05)
    producer.flush()


def run(code: str, *arguments: object) -> dict[str, float]:
    """Returns the messages per second that the code prints, with the CPU time and memory of its process."""
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    told = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0
    return {"rate": float(told), "cpu": used.ru_utime + used.ru_stime, "rss": used.ru_maxrss / 1000}


@contextmanager
def landers(number: int, bootstrap: str, home: Path) -> Iterator[list[subprocess.Popen]]:
    environment = {
        **os.environ, "KAFKA_BOOTSTRAP_SERVERS": bootstrap, "FRAUD_HOME": str(home), "DAGSTER_HOME": str(home / "dagster"),
        "FRAUD_LAND_HTTP": "127.0.0.1:19500",
    }  # fmt: skip
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "fraud_assets.cli", "land"],
            cwd=home, env=environment, stderr=subprocess.DEVNULL,
        )
        for _ in range(number)
    ]  # fmt: skip
    yield running
    for process in running:
        if process.returncode is None:
            process.kill()


def landed(number: int, bootstrap: str, count: int, folder: Path) -> dict[str, float]:
    home = folder / f"home-{number}"
    # The landers report to Dagster, as they do in a normal setup.
    prepare_home(load_settings(home=home))
    lake = Lake(str(home / "lake"))
    cpu, rss = 0.0, 0.0
    with landers(number, bootstrap, home) as running:
        while not lake.exists(raw_transactions) or read_row_count(lake.open(raw_transactions)) < count:
            time.sleep(0.2)
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = status
            cpu += used.ru_utime + used.ru_stime
            rss = max(rss, used.ru_maxrss / 1000)
    commits = [c for c in lake.open(raw_transactions).history() if c["operation"] == "WRITE"]
    commits.sort(key=lambda commit: commit["timestamp"])
    rows = sum(int(commit["rows"]) for commit in commits[1:])
    seconds = (commits[-1]["timestamp"] - commits[0]["timestamp"]) / 1000
    assert read_row_count(lake.open(raw_transactions)) == count
    return {"rate": rows / seconds, "cpu": cpu, "rss": rss}


def main() -> None:
    if reason := describe_obstacle():
        print(f"skipped: {reason}")
        return
    count = 1_000_000 if "--quick" in sys.argv else 10_000_000 if "--full" in sys.argv else 3_000_000
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with apache_kafka(folder / "kafka", jvm=("-Xmx1g",)) as cluster:
            begun = time.perf_counter()
            # A separate process fills the topic, because the peak memory of a child starts at the memory of its parent.
            filler = multiprocessing.get_context("spawn").Process(target=fill, args=(cluster.bootstrap, count))
            filler.start()
            filler.join()
            assert filler.exitcode == 0
            print(f"{count:,} messages produced in {time.perf_counter() - begun:.0f} s")
            for what, measure in (
                ("raw client", lambda: run(RAW, cluster.bootstrap, count, PARTITIONS)),
                ("plain loop", lambda: run(PLAIN, cluster.bootstrap, count, PARTITIONS, folder / "plain")),
                ("land, 1 process", lambda: landed(1, cluster.bootstrap, count, folder)),
                ("land, 2 processes", lambda: landed(2, cluster.bootstrap, count, folder)),
            ):
                results[what] = measure()
                result = results[what]
                result["of_raw"] = result["rate"] / results["raw client"]["rate"]
                result["cpu_per_million"] = result["cpu"] / count * 1_000_000
                print(
                    f"{what:18} {result['rate']:9,.0f} messages/s, {result['of_raw']:.2f} of raw, "
                    f"{result['cpu_per_million']:.1f} CPU s per million, {result['rss']:.0f} MB resident",
                    flush=True,
                )
    plain = results["plain loop"]["rate"]
    print(f"one process lands {results['land, 1 process']['rate'] / plain:.2f} of what the plain loop writes")
    print(json.dumps({what: {key: round(value, 3) for key, value in each.items()} for what, each in results.items()}))


if __name__ == "__main__":
    main()
