"""How many events a second does one process make durable, and how long may one append take?

Baselines in the same run, on the same batches of 16-column usage events: a bare loop of Arrow IPC
and fdatasync, DuckDB INSERT in a file, the same into a table that keeps ids apart by a primary key,
as lakestore's default does, and deltalake append. Rounds alternate between the systems, so
that a machine that slows down slows all of them. Rates are rows per second, medians of rounds.

The first table is of appends alone: flushes come between the rounds, off the clock. The last has
everything on the clock: appends, flushes, seals, and queries beside them.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import deltalake
import duckdb
import psutil
import pyarrow as pa
from events import PLAIN, SCHEMA, batches
from report import machine, table

import lakestore as ls

Send = Callable[[pa.RecordBatch], object]


def bare(folder: Path) -> Send:
    descriptor = os.open(folder / "bare.arrows", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def send(batch: pa.RecordBatch) -> None:
        os.write(descriptor, batch.serialize())
        os.fdatasync(descriptor)

    return send


def duckdb_insert(folder: Path, *, keyed: bool = False) -> Send:
    """Into a file; `keyed`: with a primary key, and a row whose id is known is left out."""
    con = duckdb.connect(folder / f"{'keyed' if keyed else 'plain'}.duckdb")
    con.register("first", SCHEMA.arrow.empty_table())
    con.execute("CREATE TABLE usage AS FROM first")
    if keyed:
        con.execute("ALTER TABLE usage ADD PRIMARY KEY (event_id)")
    insert = f"INSERT INTO usage FROM batch{' ON CONFLICT DO NOTHING' if keyed else ''}"

    def send(batch: pa.RecordBatch) -> None:
        con.register("batch", pa.Table.from_batches([batch]))
        con.execute(insert)

    return send


def deltalake_append(folder: Path) -> Send:
    path = str(folder / "delta")
    return lambda batch: deltalake.write_deltalake(
        path, pa.Table.from_batches([batch]), mode="append"
    )


def lakestore_append(lake: ls.Lake, schema: ls.TableSchema) -> Send:
    return lake.create_table(f"usage_{schema.dedup}", schema).append


def compare(folder: Path, rows: int, rounds: int, batch_rows: int) -> None:
    data = list(batches(rows * rounds, batch_rows))
    with ls.open(folder / "lake", upkeep="manual") as lake:
        systems: dict[str, tuple[Send, int]] = {  # the slow ones get fewer batches a round
            "bare Arrow IPC + fdatasync": (bare(folder), 1),
            "lakestore": (lakestore_append(lake, SCHEMA), 1),
            "lakestore, dedup none": (lakestore_append(lake, PLAIN), 1),
            "DuckDB INSERT, primary key": (duckdb_insert(folder, keyed=True), 4),
            "DuckDB INSERT": (duckdb_insert(folder), 4),
            "deltalake append": (deltalake_append(folder), 20),
        }
        rates: dict[str, list[float]] = {name: [] for name in systems}
        waits: dict[str, list[float]] = {name: [] for name in systems}
        for turn in range(rounds):
            part = data[turn * rows // batch_rows : (turn + 1) * rows // batch_rows]
            for name, (send, share) in systems.items():
                some = part[: max(1, len(part) // share)]
                began = time.perf_counter()
                for batch in some:
                    before = time.perf_counter()
                    send(batch)
                    waits[name].append(time.perf_counter() - before)
                rates[name].append(sum(b.num_rows for b in some) / (time.perf_counter() - began))
            lake.flush()
        stored = lake.sql("SELECT count(*), count(DISTINCT event_id) FROM usage_day").fetchone()
        assert stored == (rows * rounds, rows * rounds), stored
    medians = {name: statistics.median(r) for name, r in rates.items()}
    table(
        f"durable append, {batch_rows:,}-row batches, {rounds} rounds of {rows:,} rows",
        ["system", "rows/s", "lakestore is", "dedup none is", "p50 ms", "p99 ms", "longest ms"],
        [
            [
                name,
                f"{rate:,.0f}",
                f"{medians['lakestore'] / rate:.2f} x",
                f"{medians['lakestore, dedup none'] / rate:.2f} x",
                *(f"{1000 * quantile(waits[name], q):.2f}" for q in (0.5, 0.99, 1.0)),
            ]
            for name, rate in medians.items()
        ],
    )


def threads(folder: Path, workers: int, batch_rows: int, seconds: float) -> None:
    """Group commit: many small appends at once."""
    with ls.open(folder / "threads") as lake:
        usage = lake.create_table("usage", SCHEMA)
        data = list(batches(200_000, batch_rows))
        sent = [0] * workers
        stop = threading.Event()

        def work(number: int) -> None:
            for batch in data[number::workers]:
                if stop.is_set():
                    return
                sent[number] += usage.append(batch).rows

        pool = [threading.Thread(target=work, args=(n,)) for n in range(workers)]
        began = time.perf_counter()
        for thread in pool:
            thread.start()
        stop.wait(seconds)
        stop.set()
        for thread in pool:
            thread.join()
        rate = sum(sent) / (time.perf_counter() - began)
    table(
        f"durable append, {batch_rows}-row batches, {workers} threads",
        ["system", "rows/s", "appends/s"],
        [["lakestore", f"{rate:,.0f}", f"{rate / batch_rows:,.0f}"]],
    )


def sustained(folder: Path, rows: int, batch_rows: int) -> None:
    """Append → hot → cold for long, with queries beside it; memory must stay flat."""
    process = psutil.Process()
    waits: list[float] = []
    peak = 0
    done = threading.Event()
    queries = [0]

    def ask() -> None:
        while not done.is_set():
            lake.sql("SELECT model, count(*), sum(billable_tokens) FROM usage GROUP BY ALL")
            queries[0] += 1
            done.wait(0.2)

    with ls.open(folder / "sustained") as lake:
        usage = lake.create_table("usage", SCHEMA)
        reader = threading.Thread(target=ask)
        reader.start()
        began = time.perf_counter()
        for index, batch in enumerate(batches(rows, batch_rows)):
            before = time.perf_counter()
            usage.append(batch)
            waits.append(time.perf_counter() - before)
            if index % 50 == 0:
                peak = max(peak, process.memory_info().rss)
        took = time.perf_counter() - began
        done.set()
        reader.join()
        usage.seal()
        sealed = time.perf_counter() - began
        peak = max(peak, process.memory_info().rss)
        (count,) = lake.sql("SELECT count(*) FROM usage").fetchone() or (0,)
    assert count == rows
    plain = duckdb_insert(folder)  # last, so that its memory is not counted
    began = time.perf_counter()
    for batch in batches(rows // 5, batch_rows):
        plain(batch)
    baseline = rows // 5 / (time.perf_counter() - began)
    table(
        f"sustained append of {rows:,} rows in {batch_rows:,}-row batches, a query every 0.2 s",
        ["acknowledged rows/s", "sealed rows/s", "DuckDB INSERT rows/s", "p50 ms", "p99 ms",
         "longest ms", "queries", "peak RSS MB"],
        [[
            f"{rows / took:,.0f}", f"{rows / sealed:,.0f}", f"{baseline:,.0f}",
            *(f"{1000 * quantile(waits, q):.2f}" for q in (0.5, 0.99, 1.0)),
            f"{queries[0]:,}", f"{peak / 1e6:,.0f}",
        ]],
    )  # fmt: skip


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def apart(question: Callable[..., None], *arguments: object) -> None:
    """Ask in a process and a folder of its own, so that memory is that question's alone."""
    folder = Path(tempfile.mkdtemp(prefix="bench-append-", dir="."))
    try:
        process = multiprocessing.get_context("spawn").Process(
            target=question, args=(folder, *arguments)
        )
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="rows a round and system")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=1_000)
    parser.add_argument("--sustained", type=int, default=5_000_000, help="0 leaves it out")
    options = parser.parse_args()
    machine()
    apart(compare, options.rows, options.rounds, options.batch)
    apart(threads, 8, 10, 5.0)
    if options.sustained:
        apart(sustained, options.sustained, 10_000)


if __name__ == "__main__":
    main()
