"""What does a Delta log cost, and what does a query ask of a store?

Sealing to Delta beside sealing to Parquet; opening a table of 10,000 files and 2,000 versions; the
first plan and the next ones; a full scan beside DuckDB over the very same list of files; and the
requests and milliseconds of queries over a store (moto, on loopback, so without a network's delay).
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.request import Request, urlopen
from uuid import uuid4

import duckdb
from bench_query import timed
from events import PLAIN, SCHEMA, batches
from report import machine, table

import lakestore as ls
from lakestore.cold.delta import DeltaCold
from lakestore.storage.s3 import S3Storage

ROOMY = {"buffer_bytes": 4 << 30}
_MOTO = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


def seals(folder: Path, rows: int, rounds: int) -> None:
    """Seconds of the same seal in each format, in turns."""
    took: dict[str, list[float]] = {"parquet": [], "delta": []}
    data = list(batches(rows, 10_000))
    for turn in range(rounds):
        for cold, times in took.items():
            with ls.open(folder / f"{cold}{turn}", upkeep="manual", settings=ROOMY) as lake:
                usage = lake.create_table("usage", PLAIN, cold=cold)
                for batch in data:
                    usage.append(batch)
                usage.flush()
                began = time.perf_counter()
                usage.seal()
                times.append(time.perf_counter() - began)
            shutil.rmtree(folder / f"{cold}{turn}")
    medians = {cold: statistics.median(times) for cold, times in took.items()}
    table(
        f"sealing {rows:,} rows, median of {rounds}",
        ["format", "s", "rows/s", "x Parquet"],
        [
            [cold, f"{s:.2f}", f"{rows / s:,.0f}", f"{s / medians['parquet']:.2f}"]
            for cold, s in medians.items()
        ],
    )


def opening(folder: Path, files: int, versions: int) -> None:
    """A log of many versions, each adding a few files, as seals make it; then open it anew."""
    root = folder / "many"
    with ls.open(root, upkeep="manual") as lake:
        usage = lake.create_table("usage", SCHEMA, cold="delta")
        usage.append(next(batches(1_000, 1_000)))
        usage.seal()
        context = usage._context
        cold = context.cold
        assert isinstance(cold, DeltaCold)
        (file, *_) = context.state().cold
        each = files // versions
        for version in range(2, versions + 1):
            names = [
                replace(file, name=f"{file.name[:-13]}{uuid4().hex[:4]}{version:04d}.parquet")
                for _ in range(each)
            ]
            write = uuid4().hex
            assert cold._log.commit(version, cold._version(names, version, write), write)
            cold._log.refresh()
            cold._checkpoint(version - 1)
        with lake._site.catalog.commit() as commit:
            commit.settle(context.entry.id, versions)
    began = time.perf_counter()
    with ls.open(root, mode="r") as lake:
        opened = time.perf_counter()
        status = lake.status().tables[0].tiers[2].files
        read = time.perf_counter()
        query = "SELECT * FROM usage WHERE created_at < '2020-01-01'"
        lake.explain(query)
        first = time.perf_counter()
        plans = timed({"plan": lambda: lake.explain(query)}, 9)
    table(
        f"a table of {status:,} files and {versions:,} versions",
        ["open, ms", "read the log, ms", "first plan, ms", "each further plan, ms"],
        [
            [
                f"{1000 * (opened - began):.0f}",
                f"{1000 * (read - opened):.0f}",
                f"{1000 * (first - read):.0f}",
                f"{plans['plan']:.1f}",
            ]
        ],
    )


def scanning(folder: Path, rows: int, runs: int) -> None:
    """A full scan through our plan, and of the same files by their names."""
    with ls.open(folder / "scan", upkeep="manual", settings=ROOMY) as lake:
        usage = lake.create_table("usage", PLAIN, cold="delta")
        for batch in batches(rows, 10_000):
            usage.append(batch)
        usage.seal()
        paths = [usage._context.cold_url(file) for file in usage._context.state().cold]
        plain = duckdb.connect(config={"memory_limit": "1GB"})
        plain.execute("SET GLOBAL TimeZone = 'UTC'")
        query = "SELECT model, count(*), sum(billable_tokens) FROM {} GROUP BY ALL ORDER BY ALL"
        listed = query.format(f"read_parquet({paths!r}, hive_partitioning = false)")
        assert lake.sql(query.format("usage")).fetchall() == plain.execute(listed).fetchall()
        took = timed(
            {
                "lakestore": lambda: lake.sql(query.format("usage")),
                "list": lambda: plain.sql(listed).to_arrow_table(),
            },
            runs,
        )
    table(
        f"full scan of {rows:,} rows in {len(paths)} cold files",
        ["lakestore ms", "DuckDB over the list ms", "x DuckDB"],
        [
            [
                f"{took['lakestore']:.1f}",
                f"{took['list']:.1f}",
                f"{took['lakestore'] / took['list']:.2f}",
            ]
        ],
    )


@contextmanager
def moto() -> Iterator[dict[str, str]]:
    """A store of a bucket `lakes`, as storage options."""
    process = subprocess.Popen(
        [sys.executable, "-c", _MOTO],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        options = {"AWS_ENDPOINT_URL": url, "AWS_REGION": "us-east-1"}
        options |= {"AWS_ACCESS_KEY_ID": "key-id", "AWS_SECRET_ACCESS_KEY": "secret"}
        urlopen(Request(f"{url}/lakes", method="PUT")).close()
        yield options
    finally:
        process.kill()
        process.communicate()


@contextmanager
def requests() -> Iterator[list[str]]:
    """What is asked of a store meanwhile."""
    asked: list[str] = []
    verbs = {name: getattr(S3Storage, name) for name in ("read", "download", "size", "put", "list")}

    def counted(name: str) -> Callable[..., object]:
        def ask(*arguments: object, **more: object) -> object:
            asked.append(name)
            return verbs[name](*arguments, **more)

        return ask

    for name in verbs:
        setattr(S3Storage, name, counted(name))
    try:
        yield asked
    finally:
        for name, verb in verbs.items():
            setattr(S3Storage, name, verb)


def store(folder: Path, days: int, runs: int) -> None:
    """Requests and times of queries over a table of one file a day, in a store."""
    with moto() as options:
        root, first = "s3://lakes/bench", datetime(2024, 1, 1, 12, tzinfo=UTC)
        manual = {"storage_options": options, "upkeep": "manual"}
        with ls.open(root, local=folder / "one", **manual) as lake:
            usage = lake.create_table("usage", PLAIN, cold="delta")
            rows = next(batches(days * 100, days * 100)).to_pylist()
            for number, row in enumerate(rows):
                row["created_at"] = first + timedelta(days=number % days)
            usage.append(rows)
            usage.seal()
        with ls.open(root, local=folder / "two", **manual) as lake:
            lake["usage"]
            middle = first + timedelta(days=days // 2)
            spans = {"one hour": timedelta(hours=1), "one week": timedelta(days=7)}
            asked = {
                what: f"created_at >= '{middle}' AND created_at < '{middle + span}'"
                for what, span in spans.items()
            }
            results = []
            for what, where in (asked | {"all": "true"}).items():
                query = f"SELECT count(*), sum(output_tokens) FROM usage WHERE {where}"
                shutil.rmtree(folder / "two" / "files", ignore_errors=True)
                with requests() as made:
                    began = time.perf_counter()
                    lake.sql(query)
                    took = 1000 * (time.perf_counter() - began)
                with requests() as again:
                    lake.sql(query)
                warm = timed({"warm": lambda q=query: lake.sql(q)}, runs)["warm"]
                results.append(
                    [what, str(len(made)), f"{took:.0f}", str(len(again)), f"{warm:.1f}"]
                )
    table(
        f"queries over {days:,} files in a store, without httpfs",
        ["query", "requests, nothing copied", "ms", "requests, copied", "ms again"],
        results,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scan-rows", type=int, default=5_000_000)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--versions", type=int, default=2_000)
    parser.add_argument("--days", type=int, default=1_000)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    machine()
    folder = Path(tempfile.mkdtemp(prefix="bench-cold-", dir=".")).absolute()
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    try:
        seals(folder, options.rows, options.rounds)
        opening(folder, options.files, options.versions)
        scanning(folder, options.scan_rows, options.runs)
        store(folder, options.days, options.runs)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
