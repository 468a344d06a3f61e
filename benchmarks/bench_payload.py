"""Do payloads of 300 KB flow through, in how much memory, and how fast is one read again?

Requests of an LLM gateway with a body of random text are appended as fast as they are taken in,
each append durable, with flushes and seals beside them. The reader then asks for single payloads,
of sealed files, in no order. The baseline writes the same bytes to one file and calls fdatasync.
"""

import argparse
import os
import random
import shutil
import statistics
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from report import machine, table

import lakestore as ls
from lakestore.query.attach import attach

START = datetime(2026, 11, 22, tzinfo=UTC)
SCHEMA = ls.TableSchema.from_document(
    {
        "event_id": "id",
        "event_time": "time",
        "columns": {"id": "VARCHAR", "time": "TIMESTAMPTZ", "body": "VARCHAR"},
        "payload": {"body": "full"},
    }
)


def bodies(rows: int, size: int, seed: int) -> list[str]:
    return [random.Random(seed + n).randbytes(size // 2).hex() for n in range(rows)]


class Memory:
    """The most memory that this process had, looked at twenty times a second."""

    def __init__(self) -> None:
        self.most = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._stopping.wait(0.05):
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * page
            self.most = max(self.most, resident)

    def stop(self) -> int:
        self._stopping.set()
        self._thread.join()
        return self.most


def flow(folder: Path, batches: int, rows: int, size: int) -> list[str]:
    """Append, flush and seal; then how much of it was done a second, and in how much memory."""
    memory = Memory()
    making = 0.0
    with ls.open(folder / "lake") as lake:
        usage = lake.create_table("usage", SCHEMA)
        began = time.perf_counter()
        for batch in range(batches):
            before = time.perf_counter()
            made = bodies(rows, size, batch * rows)
            making += time.perf_counter() - before
            first = batch * rows
            usage.append(
                {"id": f"e{first + n}", "time": START + timedelta(seconds=first + n), "body": body}
                for n, body in enumerate(made)
            )
        appended = time.perf_counter() - began - making
        usage.seal()
        sealed = time.perf_counter() - began - making
        most = memory.stop()
        found = lake.sql("SELECT count(*), sum(body_bytes) FROM usage").fetchone()
        assert found == (batches * rows, batches * rows * size), found
        lookups = sorted(lookup(lake, n, batches * rows) for n in range(50))
    total = batches * rows * size / 1e6
    return [
        "lakestore", f"{total / appended:,.0f}", f"{total / sealed:,.0f}", f"{most / 1e6:,.0f}",
        f"{statistics.median(lookups) * 1e3:,.1f}", f"{lookups[-1] * 1e3:,.1f}",
    ]  # fmt: skip


def lookup(lake: ls.Lake, turn: int, events: int) -> float:
    """How long one event with its payload takes."""
    number = random.Random(turn).randrange(events)
    began = time.perf_counter()
    rows = lake.sql("FROM usage WHERE id = ?", [f"e{number}"]).to_arrow().to_pylist()
    attach(lake._queries, lake["usage"]._context, rows)
    took = time.perf_counter() - began
    assert rows[0]["body"] == bodies(1, rows[0]["body_bytes"], number)[0]
    return took


def bare(folder: Path, batches: int, rows: int, size: int) -> list[str]:
    took = 0.0
    with (folder / "bare").open("wb") as file:
        for batch in range(batches):
            data = "".join(bodies(rows, size, batch * rows)).encode()
            began = time.perf_counter()
            file.write(data)
            file.flush()
            os.fdatasync(file.fileno())
            took += time.perf_counter() - began
    return ["write + fdatasync", f"{batches * rows * size / 1e6 / took:,.0f}", "", "", "", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--rows", type=int, default=100, help="events of a batch")
    parser.add_argument("--size", type=int, default=300_000, help="bytes of a payload")
    options = parser.parse_args()
    sizes = (options.batches, options.rows, options.size)
    folder = Path(tempfile.mkdtemp(prefix="bench-payload-", dir="."))
    try:
        found = [flow(folder, *sizes), bare(folder, *sizes)]
    finally:
        shutil.rmtree(folder)
    machine()
    table(
        f"{sizes[0]:,} appends of {sizes[1]:,} events with payloads of {sizes[2]:,} bytes",
        ["system", "MB/s acknowledged", "MB/s sealed", "peak RSS MB", "lookup p50 ms", "longest"],
        found,
    )


if __name__ == "__main__":
    main()
