"""How fast are a dashboard's questions?

Baseline in the same run: DuckDB over the same Parquet files. Events are those of the shipped
`llm_usage`, over ninety days. Times are milliseconds, medians of warm runs; the first is told too,
which loads partials and maps hashes.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import cycle
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import report

import lakestore as ls
from lakestore.demo import DAYS, START, usage_events

SPAN_DAYS = 90
SUMS = (
    "input_uncached_tokens", "input_cached_tokens", "output_tokens", "billable_tokens",
    "credit_usage",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """One question, to lakestore and to DuckDB; `same` compares what they said."""

    name: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    same: Callable[[Any, Any], bool]
    varies: bool = False
    """Whether each run is another question, in another file."""


def events(rows: int) -> Iterator[pa.RecordBatch]:
    """The demo's events, spread over ninety days."""
    start = int(START.timestamp()) * 1_000_000
    for batch in usage_events(rows, batch_rows=50_000):
        index = batch.schema.get_field_index("created_at")
        kind = batch.column(index).type
        since = pc.subtract(batch.column(index).cast(pa.int64()), start)
        spread = pc.add(pc.divide(pc.multiply(since, SPAN_DAYS), DAYS), start)
        yield batch.set_column(index, batch.schema.field(index), spread.cast(kind))


def fill(root: Path, rows: int, seals: int) -> None:
    with ls.open(root, upkeep="manual", settings={"vacuum_grace_s": 0}) as lake:
        usage = lake.create_table("usage", "llm_usage")
        waiting = 0
        for batch in events(rows):
            usage.append(batch)
            waiting += batch.num_rows
            if waiting >= rows // seals:
                usage.seal()
                waiting = 0
        usage.flush()
        usage.vacuum(dry_run=False)


def questions(usage: ls.Table, root: Path) -> list[Asked]:
    state = usage._context.state()
    paths = [str(usage._context.cold_path(file)) for file in state.cold]
    paths += [str(usage._context.segment_path(segment)) for segment in state.hot]
    files = f"read_parquet({paths}, hive_partitioning = false)"
    con = duckdb.connect(config={"memory_limit": "1GB"})
    con.execute("SET GLOBAL TimeZone = 'UTC'")

    def ask(query: str) -> Callable[[], list[Any]]:
        return lambda: con.execute(query.format(files)).fetchall()

    sums = ", ".join(["count(*)", *(f"sum({name})" for name in SUMS)])
    (key,) = ask("SELECT key_id FROM {} GROUP BY 1 ORDER BY count(*) DESC LIMIT 1 OFFSET 5")()[0]
    since = START + timedelta(days=7, minutes=33)
    ids = [id for (id,) in ask("SELECT event_id FROM {} USING SAMPLE 50 ROWS")()]
    one, other = cycle(ids), cycle(ids)
    facets = usage.schema.document.facets
    menus = [ask(f"SELECT {name}, count(*) FROM {{}} GROUP BY 1") for name in facets]
    newest = f"FROM {{}} WHERE key_id = '{key}' ORDER BY created_at DESC, event_id DESC LIMIT 50"
    total = ask(f"SELECT {sums} FROM {{}} WHERE key_id = '{key}'")

    def told(found: Any) -> tuple[Any, ...]:
        return tuple(found[label] for label in ("count", *SUMS))

    return [
        Asked("totals", usage.totals, ask(f"SELECT {sums} FROM {{}}"),
              lambda a, b: told(a) == b[0]),
        Asked("totals of a key, since 00:33",
              lambda: usage.totals(where={"key_id": key}, start=since),
              ask(f"SELECT {sums} FROM {{}} WHERE key_id = '{key}' AND created_at >= '{since}'"),
              lambda a, b: told(a) == b[0]),
        Asked("series by hour", lambda: usage.series(["count", "output_tokens"]),
              ask("SELECT time_bucket(INTERVAL 1 HOUR, created_at) AS t, count(*), "
                  "sum(output_tokens) FROM {} GROUP BY 1 ORDER BY 1"),
              lambda a, b: [tuple(row.values()) for row in a if row["count"]] == b),
        Asked("series by day and model, p95",
              lambda: usage.series(["count", "p95(latency_ms)"], every="1 day", by="model"),
              ask("SELECT model, time_bucket(INTERVAL 1 DAY, created_at), count(*), "
                  "quantile_disc(latency_ms, 0.95) FROM {} GROUP BY 1, 2 ORDER BY 1, 2"),
              lambda a, b: [row["count"] for row in a if row["count"]] == [n for _, _, n, _ in b]),
        Asked("50 newest of a key, and totals", lambda: usage.page({"key_id": key}),
              lambda: (ask(newest)(), total()),
              lambda a, b: (len(a), *told(a.totals)) == (len(b[0]), *b[1][0])),
        Asked("50 newest of a key", lambda: usage.page({"key_id": key}, totals=False), ask(newest),
              lambda a, b: len(a) == len(b)),
        Asked("one event by id", lambda: usage.get(next(one)),
              lambda: ask(f"FROM {{}} WHERE event_id = '{next(other)}'")(),
              lambda a, b: a is not None and len(b) == 1, varies=True),
        Asked(f"{len(facets)} facets", usage.facets, lambda: [menu() for menu in menus],
              lambda a, b: [dict(a[name]) for name in facets] == [dict(menu) for menu in b]),
        Asked("counters by key", lambda: usage.counters("key_id"),
              ask("SELECT key_id, count(*) FROM {} GROUP BY 1"),
              lambda a, b: {key: a[key]["count"] for key in a} == dict(b)),
    ]  # fmt: skip


def milliseconds(do: Callable[[], Any]) -> float:
    began = time.perf_counter()
    do()
    return (time.perf_counter() - began) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--seals", type=int, default=110)
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    report.machine()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        root = Path(folder).absolute() / "lake"
        fill(root, options.rows, options.seals)
        with ls.open(root, upkeep="manual") as lake:
            asked = questions(lake["usage"], root)
            rows = []
            for one in asked:
                first = milliseconds(one.ours)
                assert one.same(one.ours(), one.theirs()), one.name
                runs = options.runs * (4 if one.varies else 1)
                ours = statistics.median(milliseconds(one.ours) for _ in range(runs))
                theirs = statistics.median(milliseconds(one.theirs) for _ in range(5))
                rows.append(
                    [one.name, f"{first:,.0f}", f"{ours:.1f}", f"{theirs:.1f}",
                     f"{theirs / ours:.1f} x"]
                )  # fmt: skip
            files = len(lake["usage"]._context.state().cold)
            title = f"{options.rows:,} events in {files} cold files, over {SPAN_DAYS} days"
            columns = ["question", "first, ms", "lakestore ms", "DuckDB ms", "faster by"]
            report.table(title, columns, rows)


if __name__ == "__main__":
    main()
