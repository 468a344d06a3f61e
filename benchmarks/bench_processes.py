"""Do more processes write more, and how long does an open take after a kill -9?

Every process appends its own events to one table, each append durable. The rate of several is
beside that of one, in the same run. Then a process is killed with a million rows in its journals,
and the lake is opened again: until the first query that sees them is answered.
"""

import argparse
import multiprocessing
import os
import shutil
import signal
import statistics
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import duckdb
import pyarrow as pa
from events import SCHEMA, batches
from report import machine, table

import lakestore as ls

SPAWN = multiprocessing.get_context("spawn")


def write(root: Path, seed: int, rows: int, barrier: Barrier) -> None:
    data = list(batches(rows, 1_000, seed=seed))
    with ls.open(root) as lake:
        usage = lake["usage"]
        barrier.wait()
        for batch in data:
            usage.append(batch)
        barrier.wait()


def together(processes: int, rows: int) -> float:
    """Rows a second that so many processes acknowledge together."""
    folder = Path(tempfile.mkdtemp(prefix="bench-processes-", dir="."))
    try:
        with ls.open(folder / "lake", upkeep="manual") as lake:
            lake.create_table("usage", SCHEMA)
        barrier = SPAWN.Barrier(processes + 1)
        share = rows // processes
        writers = [
            SPAWN.Process(target=write, args=(folder / "lake", n, share, barrier))
            for n in range(processes)
        ]
        for writer in writers:
            writer.start()
        barrier.wait()
        began = time.perf_counter()
        barrier.wait()
        took = time.perf_counter() - began
        for writer in writers:
            writer.join()
            assert writer.exitcode == 0
        with ls.open(folder / "lake", mode="r") as lake:
            found = lake.sql("SELECT count(*), count(DISTINCT event_id) FROM usage").fetchone()
        assert found == (share * processes, share * processes), found
        return share * processes / took
    finally:
        shutil.rmtree(folder)


def fill(root: Path, rows: int) -> None:
    lake = ls.open(root, upkeep="manual", settings={"buffer_bytes": 1 << 40})
    usage = lake.create_table("usage", SCHEMA)
    for batch in batches(rows, 10_000):
        usage.append(batch)
    os.kill(os.getpid(), signal.SIGKILL)


def reopen(root: Path, rows: int) -> tuple[float, float]:
    began = time.perf_counter()
    with ls.open(root, upkeep="manual", settings={"buffer_bytes": 1 << 40}) as lake:
        opened = time.perf_counter() - began
        found = lake.sql("SELECT count(*) FROM usage").fetchone()
        answered = time.perf_counter() - began
        assert found == (rows,), found
        assert lake.open_report.rows == rows
    return opened, answered


def after_kill(rows: int, rounds: int) -> tuple[float, float, float]:
    """Seconds until the open returns, until the first answer, and for DuckDB to read its WAL."""
    folder = Path(tempfile.mkdtemp(prefix="bench-processes-", dir="."))
    try:
        writer = SPAWN.Process(target=fill, args=(folder / "lake", rows))
        writer.start()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        times = [reopen(folder / "lake", rows) for _ in range(rounds)]
        writer = SPAWN.Process(target=fill_duckdb, args=(folder / "plain.duckdb", rows))
        writer.start()
        writer.join()
        began = time.perf_counter()
        with duckdb.connect(folder / "plain.duckdb") as con:
            assert con.execute("SELECT count(*) FROM usage").fetchall() == [(rows,)]
        plain = time.perf_counter() - began
    finally:
        shutil.rmtree(folder)
    return (
        statistics.median(opened for opened, _ in times),
        statistics.median(answered for _, answered in times),
        plain,
    )


def fill_duckdb(path: Path, rows: int) -> None:
    con = duckdb.connect(path, config={"checkpoint_threshold": "1TB"})
    con.register("first", SCHEMA.arrow.empty_table())
    con.execute("CREATE TABLE usage AS FROM first")
    for batch in batches(rows, 10_000):
        con.register("batch", pa.Table.from_batches([batch]))
        con.execute("INSERT INTO usage FROM batch")
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=400_000, help="rows of all processes together")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--killed", type=int, default=1_000_000, help="rows in the journals")
    options = parser.parse_args()
    machine()
    counts = (1, 2, 4)
    rates: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(options.rounds):
        for count in counts:
            rates[count].append(together(count, options.rows))
    medians = {count: statistics.median(rates[count]) for count in counts}
    table(
        f"durable append of {options.rows:,} rows in 1,000-row batches, {options.rounds} rounds",
        ["processes", "rows/s", "beside one"],
        [[str(n), f"{rate:,.0f}", f"{rate / medians[1]:.2f} x"] for n, rate in medians.items()],
    )
    opened, answered, plain = after_kill(options.killed, options.rounds)
    table(
        f"after a kill -9 with {options.killed:,} unflushed rows",
        ["opened s", "first answer s", "DuckDB: its WAL read s"],
        [[f"{opened:.2f}", f"{answered:.2f}", f"{plain:.2f}"]],
    )


if __name__ == "__main__":
    main()
