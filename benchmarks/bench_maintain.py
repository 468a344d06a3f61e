"""Does a lake that maintains itself stay small, few and quick?

First rows are appended as fast as they are taken in, over seven days, with the background threads
at work: how much memory is used in each quarter, and how many cold files a day has at most. Then
1,000-row appends come at a steady pace, at rest and beside seals and compactions one after the
other: how long one takes. The baseline is the same lake at rest.
"""

import argparse
import shutil
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from itertools import islice
from pathlib import Path

import psutil
import pyarrow as pa
import report
from events import SCHEMA, batches

import lakestore as ls

PACE_S = 0.05


def grows(folder: Path, rows: int) -> None:
    """Append all, and look at memory and files."""
    process = psutil.Process()
    every = max(1, min(20, rows // 80_000))
    quarters: list[list[int]] = [[], [], [], []]
    most: Counter[object] = Counter()
    settings = {"cold_file_bytes": 64 << 20, "seal_bytes": 32 << 20, "cold_grace_s": 60}
    with ls.open(folder / "grows", settings=settings) as lake:
        usage = lake.create_table("usage", SCHEMA)
        began = time.perf_counter()
        for index, batch in enumerate(batches(rows, 10_000)):
            usage.append(batch)
            if index % every == 0:
                quarters[4 * index * 10_000 // rows].append(process.memory_info().rss)
                most |= days(usage)
        took = time.perf_counter() - began
        usage.seal()
        deadline = time.monotonic() + 120
        while lake.plan_maintenance().tasks and time.monotonic() < deadline:
            time.sleep(0.2)
        left = days(usage)
        seals = usage.totals("count")["count"]
    assert seals == rows
    report.table(
        f"{rows:,} rows in 10,000-row appends, seals and compaction beside them",
        [
            "rows/s",
            *(f"RSS MB, quarter {n}" for n in (1, 2, 3, 4)),
            "files a day, most",
            "at the end",
        ],
        [
            [
                f"{rows / took:,.0f}",
                *(f"{max(quarter) / 1e6:,.0f}" for quarter in quarters),
                str(max(most.values(), default=0)),
                str(max(left.values(), default=0)),
            ]
        ],
    )


def days(table: ls.Table) -> Counter[object]:
    """Cold files by day."""
    return Counter(file.day for file in table._context.state().cold)


def paced(table: ls.Table, source: Iterator[pa.RecordBatch], seconds: float) -> list[float]:
    """Appends at a steady pace: how long each took."""
    waits = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        batch = next(source)
        began = time.perf_counter()
        table.append(batch)
        waits.append(time.perf_counter() - began)
        time.sleep(max(0.0, PACE_S - waits[-1]))
    return waits


def waits(folder: Path, files: int, seconds: float) -> None:
    """Appends at rest, and beside seals and compactions."""
    source = batches(100_000_000, 1_000, seed=11)
    room = {"buffer_bytes": 1 << 30}  # so that no append waits for a flush
    with ls.open(folder / "waits", upkeep="manual", settings=room) as lake:
        usage = lake.create_table("usage", SCHEMA)
        old = lake.create_table("old", SCHEMA)
        for batch in islice(batches(files * 2_000, 2_000, seed=3), files):
            old.append(batch)
            old.seal()
        usage.append(next(source))
        rest = paced(usage, source, seconds)
        usage.flush()
        done, rounds = threading.Event(), [0]

        def tend() -> None:
            while not done.is_set():
                old.compact()
                usage.flush()
                usage.seal()
                rounds[0] += 1
                for batch in islice(batches(40_000, 10_000, seed=100 + rounds[0]), 4):
                    old.append(batch)
                    old.seal()

        thread = threading.Thread(target=tend)
        thread.start()
        busy = paced(usage, source, seconds)
        done.set()
        thread.join()
    rows = []
    for name, taken in (("at rest", rest), (f"beside {rounds[0]} rounds of both", busy)):
        ordered = sorted(taken)
        p50, p99 = statistics.median(ordered), ordered[int(0.99 * len(ordered))]
        base = sorted(rest)[int(0.99 * len(rest))]
        cells = [f"{1000 * t:.2f}" for t in (p50, p99, ordered[-1])]
        rows.append([name, str(len(taken)), *cells, f"{p99 / base:.2f} x"])
    columns = ["1,000-row appends", "appends", "p50 ms", "p99 ms", "longest ms", "p99 is"]
    report.table(f"one append every {PACE_S * 1000:.0f} ms, for {seconds:.0f} s", columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--files", type=int, default=200, help="that are to be compacted")
    parser.add_argument("--seconds", type=float, default=timedelta(seconds=30).total_seconds())
    arguments = parser.parse_args()
    report.machine()
    folder = Path(tempfile.mkdtemp(prefix="bench-maintain-", dir="."))
    try:
        grows(folder, arguments.rows)
        waits(folder, arguments.files, arguments.seconds)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
