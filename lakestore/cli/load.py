"""The command `load`: files straight into cold files, each exactly once."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from lakestore.cli.ingest import (
    Delimiter,
    IgnoreUnknown,
    Nulls,
    Renames,
    renamed,
    table_for,
)
from lakestore.cli.output import Json, LakeFolder, TableName, human_bytes, print_json
from lakestore.cli.place import exists, open_existing, open_lake
from lakestore.cli.tables import EventId, EventTime
from lakestore.errors import InvalidInputError
from lakestore.files.mapping import Options
from lakestore.files.source import open_source
from lakestore.load.files import found
from lakestore.load.run import Loaded
from lakestore.load.run import Progress as Done


def load(
    lake: LakeFolder,
    table: TableName,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...", help="Parquet, CSV, NDJSON, Arrow: files, folders, globs."
        ),
    ],
    form: Annotated[
        Literal["csv", "ndjson", "arrow", "parquet"] | None,
        typer.Option("--format", help="For names that do not tell."),
    ] = None,
    renames: Renames = None,
    null: Nulls = None,
    delimiter: Delimiter = None,
    ignore_unknown: IgnoreUnknown = False,
    load_id: Annotated[
        str | None, typer.Option(help="Names the sources together, instead of each by its file.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be loaded, and load nothing.")
    ] = False,
    event_time: EventTime = None,
    event_id: EventId = None,
    as_json: Json = False,
) -> None:
    """Put files straight into cold files, chunk by chunk.

    A file that was loaded before is passed over, and one whose load was killed goes on where it
    was. A table that does not exist is created from the first file when --event-time names its
    column.

    \b
    lakestore load lake usage 'export/2025-*.parquet'
    lakestore load lake usage export/ --dry-run
    """
    options = Options(renamed(renames or []), tuple(null or ()), delimiter, ignore_unknown)
    creates = event_time is not None and not exists(lake) and not dry_run
    with open_lake(lake, upkeep="manual") if creates else open_existing(lake) as opened:
        if table not in opened and event_time is not None:
            if dry_run:
                raise InvalidInputError(f"a dry run makes no table {table!r}")
            with open_source(str(found(sources)[0]), form) as first:
                table_for(opened, table, first, event_time, event_id, options)
        began = time.perf_counter()
        with _bar(table) as show:
            report = opened[table].load(
                sources,
                load_id=load_id,
                progress=show,
                format=form,
                renames=options.renames,
                nulls=options.nulls,
                delimiter=delimiter,
                ignore_unknown=ignore_unknown,
                dry_run=dry_run,
            )
        seconds = time.perf_counter() - began
        rejects = opened[table].schema.document.rejects
    if as_json:
        print_json(asdict(report) | {"dry_run": dry_run, "seconds": round(seconds, 3)})
    elif dry_run:
        _print_plan(report)
    else:
        _print(report, seconds, rejects)


def _print_plan(report: Loaded) -> None:
    for part in report.sources:
        size = human_bytes(part.bytes or 0)
        rows = "rows not counted" if part.rows is None else f"{part.rows:,} rows"
        known = f", {part.skipped:,} of them loaded before" if part.skipped else ""
        print(f"{part.name}: {rows}, {size}{known}")
    size = human_bytes(sum(part.bytes or 0 for part in report.sources))
    print(f"{len(report.sources):,} files, {size}; nothing was loaded")


def _print(report: Loaded, seconds: float, rejects: str | None) -> None:
    rate = round((report.rows + report.duplicates) / max(seconds, 1e-9))
    text = f"{report.rows:,} rows in {seconds:.2f} s ({rate:,} rows/s)"
    text += f" into {report.files:,} files, {human_bytes(report.bytes)}"
    if report.duplicates:
        text += f"; {report.duplicates:,} were there already"
    if report.rejected:
        text += f"; {report.rejected:,} rejected, and kept in {rejects}"
    if report.skipped:
        text += f"; {report.skipped:,} loaded before were passed over"
    print(text)


@contextmanager
def _bar(table: str) -> Iterator[Callable[[Done], None]]:
    """A bar on stderr when somebody watches: by rows where their number is known, else by bytes."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda done: None
        return
    bar = Progress(
        TextColumn("loading {task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rows]:,} rows, {task.fields[rate]:,} rows/s"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    began = time.monotonic()
    first: list[int] = []
    with bar:
        task = bar.add_task(table, total=None, rows=0, rate=0)

        def show(done: Done) -> None:
            first.append(done.rows)
            rate = round((done.rows - first[0]) / max(time.monotonic() - began, 1e-9))
            by_rows = done.rows_total is not None
            total = done.rows_total if by_rows else done.bytes_total
            completed = done.rows if by_rows else done.bytes
            bar.update(task, total=total, completed=completed, rows=done.rows, rate=rate)

        yield show
