"""What do rollups cost a flush, a seal and the disk, and what do they spare a dashboard?

Events are those of the shipped `llm_usage`, over seven days. The same rows go into a table of that
schema and into one without rollups, batch by batch in turn.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report

import lakestore as ls
from lakestore import rollup
from lakestore.demo import usage_events

MEASURES = ("output_tokens", "billable_tokens", "credit_usage")
SETTINGS = {"cold_file_bytes": 16 << 20}
"""Small cold files, so that there are many."""


def timed(do: Callable[[], Any]) -> float:
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def median_ms(do: Callable[[], Any], times: int = 15) -> float:
    return statistics.median(timed(do) for _ in range(times)) * 1e3


def bytes_of(*folders: Path) -> int:
    files = (path for folder in folders for path in folder.rglob("*"))
    return sum(path.stat().st_size for path in files if path.is_file())


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
    bytes_without = bytes_of(root / "tables/u_without", root / "_site/hot/u_without")
    bytes_with = bytes_of(
        root / "tables/u_with", root / "_site/hot/u_with", root / "_site/rollups/u_with"
    )
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


def dashboard(lake: ls.Lake, table: ls.Table) -> None:
    context = table._context
    one, state = rollup.find(context.schema, "hourly"), context.state()

    def rolled(select: str) -> list[Any]:
        with (
            context.partials.load(one, state.hot, state.cold) as partials,
            lake._site.engine.cursor() as cursor,
        ):
            assert not partials.missing
            return cursor.execute(select.format(partials.relation)).fetchall()

    groups = "SELECT count(*) FROM {}"
    first = timed(lambda: rolled(groups)) * 1e3
    sums = ", ".join(f"sum(sum_{name})" for name in MEASURES)
    raw = ", ".join(f"sum({name})" for name in MEASURES)
    questions = {
        "totals": (f"SELECT sum(n), {sums} FROM {{}}", f"SELECT count(*), {raw} FROM {table.name}"),
        "totals of a model": (
            f"SELECT sum(n), {sums} FROM {{}} WHERE model = 'gpt-5'",
            f"SELECT count(*), {raw} FROM {table.name} WHERE model = 'gpt-5'",
        ),
        "series, by hour": (
            f"SELECT bucket, sum(n), {sums} FROM {{}} GROUP BY ALL ORDER BY ALL",
            f"SELECT date_trunc('hour', created_at), count(*), {raw} FROM {table.name} "
            "GROUP BY ALL ORDER BY ALL",
        ),
    }
    rows = []
    for name, (from_partials, scan) in questions.items():
        assert rolled(from_partials) == lake.sql(scan).fetchall()
        fast = median_ms(lambda q=from_partials: rolled(q))
        slow = median_ms(lambda q=scan: lake.sql(q).fetchall(), 5)
        rows.append([name, f"{slow:.1f}", f"{fast:.1f}", f"{slow / fast:.0f} x"])
    (count,) = rolled(groups)[0]
    files = len(state.cold) + len(state.hot)
    title = f"{count:,} rows of partials of {files} files, loaded in {first:,.0f} ms"
    report.table(title, ["question", "scan ms", "rollup ms", "faster by"], rows)


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
            dashboard(lake, loaded.tables["with"])


if __name__ == "__main__":
    main()
