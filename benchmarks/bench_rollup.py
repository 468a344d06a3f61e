"""What do rollups cost a flush, a seal and the disk? `bench_usage.py` tells what they spare.

Events are those of the shipped `llm_usage`, over seven days. The same rows go into a table of that
schema and into one without rollups, batch by batch in turn.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report

import lakestore as ls
from lakestore.demo import usage_events

SETTINGS = {"cold_file_bytes": 16 << 20}
"""Small cold files, so that there are many."""


def timed(do: Callable[[], Any]) -> float:
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def plain(schema: ls.TableSchema) -> ls.TableSchema:
    """The same columns without rollups."""
    return ls.TableSchema.from_document(schema.document.model_dump() | {"rollups": ()})


class Loaded:
    """Two tables of the same rows, and what it took to flush and to seal each."""

    def __init__(self, lake: ls.Lake, rows: int, seal_rows: int) -> None:
        schema = ls.TableSchema.shipped("llm_usage")
        schemas = {"with": schema, "without": plain(schema)}
        self.tables = {name: lake.create_table(f"u_{name}", s) for name, s in schemas.items()}
        self.seconds = {(name, job): 0.0 for name in schemas for job in ("flush", "seal")}
        done = 0
        for number, batch in enumerate(usage_events(rows, batch_rows=131_072)):
            order = list(self.tables)[:: 1 if number % 2 else -1]
            done += batch.num_rows
            for name in order:
                self.tables[name].append(batch)
                self.seconds[name, "flush"] += timed(self.tables[name].flush)
            if done >= seal_rows:
                done = 0
                for name in order:
                    self.seconds[name, "seal"] += timed(self.tables[name].seal)


def costs(root: Path, loaded: Loaded) -> None:
    bytes_without, bytes_with = (bytes_of(root / f"tables/u_{n}") for n in ("without", "with"))
    rows = []
    for job in ("flush", "seal"):
        without, with_ = (loaded.seconds[name, job] for name in ("without", "with"))
        rows.append([f"{job}, s", f"{without:.2f}", f"{with_:.2f}", f"{with_ / without:.2f} x"])
    without, with_ = (
        sum(loaded.seconds[name, job] for job in ("flush", "seal")) for name in ("without", "with")
    )
    rows.append(["both, s", f"{without:.2f}", f"{with_:.2f}", f"{with_ / without:.2f} x"])
    sizes = [f"{size / 1e6:.1f}" for size in (bytes_without, bytes_with)]
    rows.append(["bytes, MB", *sizes, f"{bytes_with / bytes_without:.3f} x"])
    report.table("what rollups cost", ["what", "without", "with", "ratio"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seal-rows", type=int, default=1_000_000, help="rows of each seal")
    arguments = parser.parse_args()
    report.machine()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "lake"
        with ls.open(root, upkeep="manual", settings=SETTINGS) as lake:
            loaded = Loaded(lake, arguments.rows, arguments.seal_rows)
            costs(root, loaded)


if __name__ == "__main__":
    main()
