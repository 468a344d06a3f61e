"""The command `demo`: a lake full of usage events, and what to do with it next."""

import shlex
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table as Grid

import lakestore
from lakestore.cli.ingest import ingest_file
from lakestore.cli.output import Json, console, print_json, progress
from lakestore.cli.tables import print_status
from lakestore.demo import usage_events
from lakestore.errors import InvalidInputError
from lakestore.files.mapping import Options
from lakestore.files.source import open_source
from lakestore.layout import LAKE_FILE, VIEWS_FILE
from lakestore.table import Table

_MARK = "demo.txt"
"""A file that says: made by `lakestore demo`, may be removed by it."""

_FLUSH_ROWS = 250_000
_SETTINGS: dict[str, object] = {"flush_rows": _FLUSH_ROWS, "memory_bytes": 768 << 20}
_MODELS = """
    SELECT model, count(*) AS requests,
           sum(input_uncached_tokens + input_cached_tokens + output_tokens) AS tokens,
           round(sum(credit_usage), 2) AS cost,
           quantile_cont(latency_ms, 0.5)::INTEGER AS p50_ms,
           quantile_cont(latency_ms, 0.95)::INTEGER AS p95_ms
    FROM usage GROUP BY model ORDER BY requests DESC LIMIT 8
"""
_HOURS = """
    SELECT hour(created_at) AS hour, count(*) AS requests FROM usage GROUP BY hour ORDER BY hour
"""


@dataclass(frozen=True)
class Timing:
    """How long each step took; an append is over when its rows are on disk."""

    rows: int
    append_s: float
    flush_s: float
    seal_s: float

    @property
    def rows_per_second(self) -> int:
        """Rows acknowledged, on disk, per second."""
        return round(self.rows / max(self.append_s, 1e-9))


def demo(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where.")] = Path(
        "lakestore-demo"
    ),
    rows: Annotated[int, typer.Option(min=1, help="Synthetic usage events.")] = 1_000_000,
    source: Annotated[
        str | None, typer.Option("--input", help="Usage events of your own: a file.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite/--keep", help="Remove an older demo lake first.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a lake of LLM usage events, and show what it can do."""
    folder = folder.absolute()
    _make_room(folder, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).write_text("`lakestore demo` made this lake and may remove it.\n")
    with lakestore.open(folder, upkeep="manual", settings=_SETTINGS) as lake:
        usage = lake.create_table("usage", "llm_usage")
        timing = _fill(usage, rows) if source is None else _load(usage, source)
        models = lake.sql(_MODELS).to_arrow().to_pylist()
        hours = lake.sql(_HOURS).to_arrow().to_pylist()
        status = lake.status()
    lines = next_lines(folder)
    if as_json:
        times = {**asdict(timing), "rows_per_second": timing.rows_per_second}
        tiers = status.to_dict()["tables"][0]["tiers"]
        print_json({"lake": str(folder), **times, "models": models, "tiers": tiers, "next": lines})
        return
    _show(timing, models, hours)
    print_status(status)
    python = "" if _is_activated() else f"; Python is {sys.executable}"
    print(f"\nNow type (each line works when pasted{python}):\n")
    for what, line in lines.items():
        print(f"  # {what}\n  {line}\n")


def _make_room(folder: Path, overwrite: bool) -> None:
    """Remove an older demo, if that is wanted, and nothing else ever.

    Raises:
        InvalidInputError: the folder holds something else, or a demo that is to be kept.
    """
    if folder.exists() and not folder.is_dir():
        raise InvalidInputError(f"{str(folder)!r} is a file; a lake is a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / _MARK).is_file():
        what = "a lake, but not of a demo" if (folder / LAKE_FILE).exists() else "not empty"
        raise InvalidInputError(f"{str(folder)!r} is {what}: name another folder")
    if not overwrite:
        raise InvalidInputError(
            f"{str(folder)!r} holds a demo already: --overwrite removes it and makes another"
        )
    shutil.rmtree(folder)


def _fill(usage: Table, rows: int) -> Timing:
    """Append synthetic events, flushing in between so that memory stays flat."""
    append_s = flush_s = 0.0
    done = waiting = 0
    with progress("appending", rows) as show:
        for batch in usage_events(rows):
            start = time.perf_counter()
            done += usage.append(batch).rows
            append_s += time.perf_counter() - start
            waiting += batch.num_rows
            show(done)
            if waiting >= _FLUSH_ROWS:
                start = time.perf_counter()
                usage.flush()
                flush_s += time.perf_counter() - start
                waiting = 0
        start = time.perf_counter()
        usage.flush()
        flush_s += time.perf_counter() - start
    start = time.perf_counter()
    usage.seal()
    return Timing(done, append_s, flush_s, time.perf_counter() - start)


def _load(usage: Table, name: str) -> Timing:
    options = Options({}, ignore_unknown=True)
    with open_source(name, None) as source:
        report = ingest_file(source, usage, options, None)
    start = time.perf_counter()
    usage.flush()
    flushed = time.perf_counter()
    usage.seal()
    return Timing(report.accepted, report.seconds, flushed - start, time.perf_counter() - flushed)


def _show(timing: Timing, models: list[dict[str, Any]], hours: list[dict[str, Any]]) -> None:
    out = console()
    out.print(
        f"appended {timing.rows:,} events in {timing.append_s:.1f} s: "
        f"{timing.rows_per_second:,} rows/s, every one on disk when acknowledged\n"
        f"flushed to hot segments in {timing.flush_s:.1f} s, "
        f"sealed to Parquet in {timing.seal_s:.1f} s\n"
    )
    grid = Grid(title="top models", title_justify="left")
    grid.add_column("model")
    for name in ("requests", "tokens", "cost", "p50 ms", "p95 ms"):
        grid.add_column(name, justify="right")
    for row in models:
        model, *numbers = row.values()
        grid.add_row(str(model), *(f"{n:,}" if n is not None else "" for n in numbers))
    out.print(grid)
    out.print("\nrequests by hour of the day (UTC)")
    most = max((row["requests"] for row in hours), default=1)
    mark = "█" if (sys.stdout.encoding or "").lower().startswith("utf") else "#"
    for row in hours:
        bar = mark * max(1, round(50 * row["requests"] / most))
        out.print(f"{row['hour']:02}h {bar} {row['requests']:,}")
    out.print()


def next_lines(folder: Path) -> dict[str, str]:
    """What to type next: each line works when pasted, the first two into a shell.

    In an environment that is not activated, a shell does not know `lakestore` by its name.
    """
    top = "SELECT model, count(*) AS n FROM usage GROUP BY model ORDER BY n DESC"
    lake, views = str(folder), str(folder / VIEWS_FILE)
    opened = f"import lakestore; lake = lakestore.open({lake!r}, mode='r')"
    duckdb = f"duckdb -readonly {shlex.quote(views)} {shlex.quote(top)}"
    if shutil.which("duckdb") is None:
        duckdb = f"pip install duckdb-cli && {duckdb}"
    program = "lakestore" if _is_activated() else str(Path(sys.executable).parent / "lakestore")
    return {
        "lakestore, in a shell": shlex.join([program, "sql", lake, top]),
        "any DuckDB shell": duckdb,
        "Python": f"{opened}; lake.sql({top!r}).show()",
        "Polars": f"{opened}; print(lake['usage'].scan().group_by('model').len().collect())",
    }


def _is_activated() -> bool:
    """Whether a shell finds this environment's programs."""
    found = shutil.which("lakestore")
    return found is not None and Path(found).parent == Path(sys.executable).parent
