"""Writers that count what they hand in, and readers that hold every answer against the count.

`Counts` is shared memory: for each writer how many batches were begun, acknowledged, published and
sealed.
A reader looks at it before its query and after it; the answer must be of an instant in between.
"""

import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

import lakestore as ls

ROWS = 20  # of a batch
WRITERS = 2
START = datetime(2025, 1, 1, tzinfo=UTC)
SCHEMA = ls.TableSchema.from_toml(
    """
    event_id = "id"
    event_time = "time"
    [columns]
    id = "VARCHAR not null"
    time = "TIMESTAMPTZ not null"
    writer = "INTEGER"
    batch = "BIGINT"
    n = "BIGINT"
    """
)
QUERY = """
    SELECT writer, count(*) AS c, count(DISTINCT id) AS ids, count(DISTINCT batch) AS batches,
           max(batch) AS newest, sum(n)::BIGINT AS total
    FROM events GROUP BY writer ORDER BY writer
"""


def batch_of(writer: int, number: int) -> pa.Table:
    """Batch `number` of a writer: its rows fall on two days."""
    numbers = range(number * ROWS, (number + 1) * ROWS)
    return pa.table(
        {
            "id": [f"{writer}-{n}" for n in numbers],
            "time": [START + timedelta(hours=n % 30) for n in numbers],
            "writer": [writer] * ROWS,
            "batch": [number] * ROWS,
            "n": list(numbers),
        },
        schema=SCHEMA.arrow,
    )


class Counts:
    """Batches of each writer by how far they got, in a file that processes share."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(8 * 4 * WRITERS))
        self.path = path
        self._cells = np.memmap(path, dtype=np.int64, mode="r+", shape=(4, WRITERS))
        self.begun, self.acknowledged, self.published, self.sealed = self._cells


class Reader:
    """Looks again and again, and remembers what it may never see less of."""

    def __init__(self, counts: Counts, ask: Callable[[], list[tuple]], floor: str) -> None:
        self._counts = counts
        self._ask = ask
        self._floor = getattr(counts, floor)
        self._seen = [0] * WRITERS
        self.looks = 0

    def look(self) -> None:
        """One query; raises `AssertionError` when its answer is of no instant."""
        least = self._floor.copy()
        answer = {row[0]: row[1:] for row in self._ask()}
        most = self._counts.begun.copy()
        for writer in range(WRITERS):
            rows, ids, batches, newest, total = answer.get(writer, (0, 0, 0, -1, 0))
            what = f"writer {writer}: {answer}, begun {most}, at least {least}"
            assert rows == ids, f"doubled: {what}"
            assert rows == batches * ROWS, f"torn: {what}"
            assert batches == newest + 1, f"a hole: {what}"
            assert total == rows * (rows - 1) // 2, f"wrong values: {what}"
            assert least[writer] <= batches <= most[writer], f"lost or phantom: {what}"
            assert batches >= self._seen[writer], f"gone back: {what}"
            self._seen[writer] = batches
        self.looks += 1


def ask_duckdb(root: Path) -> Callable[[], list[tuple]]:
    """Asks `lake.duckdb` through a plain DuckDB that attaches it anew each time."""

    def ask() -> list[tuple]:
        while True:
            with duckdb.connect() as con:
                try:
                    con.execute(f"ATTACH '{root}/lake.duckdb' AS lake (READ_ONLY)")
                except duckdb.IOException:  # it fell into a publish: tests/test_shell.py says how
                    continue
                con.execute("USE lake")
                return con.execute(QUERY).fetchall()

    return ask


def main(root: str, counts: str, how: str) -> None:
    """A reader of its own process: looks until its input ends, then says how often it did."""
    shared = Counts(Path(counts))
    if how == "duckdb":
        reader = Reader(shared, ask_duckdb(Path(root)), "published")
    else:
        lake = ls.open(root, mode="r")
        reader = Reader(shared, lambda: lake.sql(QUERY).fetchall(), "acknowledged")
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    print("ready", flush=True)
    while not ended.is_set():
        reader.look()
    print(reader.looks, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
