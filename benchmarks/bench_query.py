"""How fast are queries over every tier, and what does planning cost and spare?

Baseline in the same run: DuckDB over the same Parquet files, given as a glob. Times are
milliseconds, medians of repeated runs that alternate between the two.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import duckdb
from events import SCHEMA, batches
from report import machine, table

import lakestore as ls
from lakestore.lineage import Lineage
from lakestore.query.plan import keep, load_statistics
from lakestore.snapshot import ColdFile


def timed(calls: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Median milliseconds of each call, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(runs):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(t) for name, t in times.items()}


def fill(folder: Path, rows: int, seals: int) -> ls.Lake:
    """A lake of `seals` seals, the last twentieth of the rows hot."""
    lake = ls.open(folder / "lake", upkeep="manual", settings={"vacuum_grace_s": 0})
    usage = lake.create_table("usage", SCHEMA)
    data = list(batches(rows, 10_000))
    hot = data[-len(data) // 20 :]
    cold = data[: -len(data) // 20]
    for turn in range(seals):
        for batch in cold[turn * len(cold) // seals : (turn + 1) * len(cold) // seals]:
            usage.append(batch)
        usage.seal()
    for batch in hot:
        usage.append(batch)
    usage.flush()
    usage.vacuum(dry_run=False)  # or the glob would find superseded segments too
    return lake


def queries(folder: Path, rows: int, seals: int, runs: int) -> None:
    with fill(folder, rows, seals) as lake:
        cold = list((folder / "lake/tables/usage/data").rglob("*.parquet"))
        plain = duckdb.connect(config={"memory_limit": "1GB"})
        plain.execute("SET GLOBAL TimeZone = 'UTC'")
        globs = (
            f"['{folder}/lake/tables/usage/data/*/*.parquet', "
            f"'{folder}/lake/_site/hot/usage/*.parquet']"
        )
        files = f"read_parquet({globs}, hive_partitioning = false)"
        middle = lake.sql("SELECT median(created_at) FROM usage").fetchone()
        assert middle is not None
        some = lake.sql("SELECT event_id FROM usage LIMIT 1 OFFSET 5000").fetchone()
        assert some is not None
        asked = {
            "full scan, group by": "SELECT model, count(*), sum(billable_tokens), "
            "avg(latency_ms) FROM {} GROUP BY ALL ORDER BY ALL",
            "one hour": "SELECT count(*), sum(output_tokens) FROM {} WHERE created_at >= "
            f"'{middle[0]}' AND created_at < '{middle[0]}'::TIMESTAMPTZ + INTERVAL 1 HOUR",
            "one id": f"SELECT * FROM {{}} WHERE event_id = '{some[0]}'",
        }
        results = []
        for name, query in asked.items():
            mine, theirs = query.format("usage"), query.format(files)
            assert lake.sql(mine).fetchall() == plain.execute(theirs).fetchall(), name
            took = timed(
                {
                    "lakestore": lambda q=mine: lake.sql(q),
                    "glob": lambda q=theirs: plain.sql(q).to_arrow_table(),
                },
                runs,
            )
            tiers = [t for t in lake.explain(mine).tiers if t.tier == "cold"]
            results.append(
                [
                    name,
                    f"{took['lakestore']:.1f}",
                    f"{took['glob']:.1f}",
                    f"{took['glob'] / took['lakestore']:.2f} x",
                    f"{tiers[0].files_kept} of {tiers[0].files}",
                ]
            )
        table(
            f"{rows:,} rows in {len(cold)} cold files and the hot tier",
            ["query", "lakestore ms", "DuckDB over the glob ms", "lakestore is faster by",
             "cold files read"],
            results,
        )  # fmt: skip
        fresh = iter(batches(10_000, 10, seed=99))

        def append_and_see() -> None:
            lake["usage"].append(next(fresh))
            lake.sql("SELECT max(created_at) FROM usage WHERE created_at > now() - INTERVAL 1 DAY")

        appends = timed({"append, then see it": append_and_see}, runs * 3)
        table("read your own write", ["what", "ms"],
              [[name, f"{ms:.1f}"] for name, ms in appends.items()])  # fmt: skip


def planning(folder: Path, runs: int) -> None:
    """The cost of choosing among many files: statistics alone, no file is opened."""
    results = []
    with ls.open(folder / "planning", upkeep="manual") as lake:
        usage = lake.create_table("usage", SCHEMA)
        usage.append(next(batches(1000, 1000)))
        usage.seal()
        (file, *_) = usage._context.state().cold
        cursor = lake._queries._planner._instance
        for count in (100, 1_000, 10_000):
            files = tuple(ColdFile(f"{i}", file.day, i, i, 1, file.info) for i in range(count))
            statistics_of = load_statistics(cursor, files, Lineage({1: SCHEMA}), "many")
            moment = datetime(2020, 1, 1, tzinfo=UTC)
            scans = [[f"created_at<'{moment}'::TIMESTAMP WITH TIME ZONE", "status_code=200"]]
            assert keep(cursor, statistics_of, scans) == ()
            took = timed({"keep": lambda s=statistics_of, c=scans: keep(cursor, s, c)}, runs)
            results.append([f"{count:,}", f"{took['keep']:.1f}"])
        explained = timed(
            {"explain": lambda: lake.explain("SELECT * FROM usage WHERE status_code = 7")}, runs
        )
    table("planning", ["cold files", "choose among them, ms"], results)
    table("explain", ["ms, whole, one file"], [[f"{explained['explain']:.1f}"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--seals", type=int, default=100)
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    machine()
    folder = Path(tempfile.mkdtemp(prefix="bench-query-", dir=".")).absolute()
    try:
        queries(folder, options.rows, options.seals, options.runs)
        planning(folder, options.runs)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
