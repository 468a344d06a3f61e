"""The command `ingest`: files into a table, each exactly once.

Two passes: the first reads a file to its end and appends nothing, so that a strict ingest takes
all of it or none; the second appends. Small files are held in between and read only once.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
import typer
import xxhash

import lakestore
from lakestore.cli.output import Json, LakeFolder, TableName, console, print_json, progress
from lakestore.cli.place import exists, open_existing, open_lake
from lakestore.cli.tables import EventId, EventTime
from lakestore.deadletters import Origin
from lakestore.errors import InvalidInputError, NotFoundError
from lakestore.files import READERS, infer
from lakestore.files.mapping import Options
from lakestore.files.rejects import SHOWN, Chunk, Reject, Rejects, sift, write
from lakestore.files.source import Source, open_source
from lakestore.naming import NewColumnsError
from lakestore.schema import TableSchema
from lakestore.table import Table

_HELD_BYTES = 96 << 20
_HELP = "--skip-rejects takes the rest; --rejects-to FILE keeps these apart"


Renames = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="FROM=TO", help="Rename a column (repeatable)."),
]
Nulls = Annotated[list[str] | None, typer.Option(help="CSV text that means null (repeatable).")]
Delimiter = Annotated[
    str | None, typer.Option(help="Of CSV; else the header's most frequent of , tab ; |")
]
IgnoreUnknown = Annotated[
    bool, typer.Option("--ignore-unknown", help="Drop columns that the table lacks.")
]


@dataclass(frozen=True)
class FileReport:
    """What became of one file; `duplicates` were in the table, or earlier in the file."""

    file: str
    rows: int
    accepted: int
    duplicates: int
    rejects: int
    rejects_table: str | None
    """Where they are; None when they are in none."""
    seconds: float
    rows_per_second: int


def ingest(
    lake: LakeFolder,
    table: TableName,
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="CSV, NDJSON, Parquet, Arrow; `-` is stdin."),
    ],
    form: Annotated[
        Literal["csv", "ndjson", "arrow", "parquet"] | None,
        typer.Option("--format", help="Needed for stdin, and for names that do not tell."),
    ] = None,
    renames: Renames = None,
    null: Nulls = None,
    delimiter: Delimiter = None,
    ignore_unknown: IgnoreUnknown = False,
    skip_rejects: Annotated[
        bool, typer.Option("--skip-rejects", help="Take the lines that can be read.")
    ] = False,
    rejects_to: Annotated[
        Path | None, typer.Option(help="Append the other lines here, as NDJSON.")
    ] = None,
    event_time: EventTime = None,
    event_id: EventId = None,
    as_json: Json = False,
) -> None:
    """Append files to a table. What was ingested before is not added again.

    A file with a line that cannot be read is refused whole, unless --skip-rejects, or the table's
    schema names one for `rejects`. A table that does not exist is created from the first file
    when --event-time names its column.
    """
    options = Options(
        renamed(renames or []),
        tuple(null or ()),
        delimiter,
        ignore_unknown,
        skip_rejects or rejects_to is not None,
    )
    if delimiter is not None and len(delimiter) != 1:
        raise typer.BadParameter("one character, please", param_hint="--delimiter")
    reports = []
    with _open(lake, event_time) as opened:
        for name in files:
            with open_source(name, form) as source:
                target = table_for(opened, table, source, event_time, event_id, options)
                report = _ingest_file(source, target, options, rejects_to)
            reports.append(report)
            if not as_json:
                _say(report)
    if as_json:
        print_json(_total(reports))


def _open(lake: str, event_time: str | None) -> lakestore.Lake:
    """The lake; a new one only when a table is to be made too."""
    if event_time is not None and not exists(lake):
        return open_lake(lake)
    return open_existing(lake, upkeep="auto")


def renamed(given: Sequence[str]) -> dict[str, str]:
    """What --map says: column of a file → column of the table."""
    renames: dict[str, str] = {}
    for one in given:
        source, equals, target = one.partition("=")
        if not equals or not source or not target or source in renames:
            raise typer.BadParameter(f"{one!r} is not FROM=TO, each FROM once", param_hint="--map")
        renames[source] = target
    return renames


def table_for(
    lake: lakestore.Lake,
    name: str,
    source: Source,
    event_time: str | None,
    event_id: str | None,
    options: Options,
) -> Table:
    """The table of that name; where there is none, one that is made of a file's columns.

    A table whose schema says so gets those columns of the file that it lacks.

    Raises:
        NotFoundError: there is none, and no column for the event time is named.
    """
    if name in lake:
        table = lake[name]
        grows = table.schema.document.on_new_column == "add" and not options.ignore_unknown
        if grows and (new := infer.new_columns(source, table.schema, options)):
            table.evolve(add=new)
        return table
    if event_time is None:
        raise NotFoundError(
            f"no table {name!r} in {lake.root!r}; its tables: {', '.join(lake) or 'none yet'}; "
            "--event-time COLUMN creates it from the file"
        )
    columns = infer.schema_of(source, event_time, options)
    return lake.create_table(name, columns, event_time=event_time, event_id=event_id)


def _ingest_file(
    source: Source, table: Table, options: Options, rejects_to: Path | None
) -> FileReport:
    """As `ingest_file`, of a table that may have to grow first."""
    while True:
        try:
            return ingest_file(source, table, options, rejects_to)
        except NewColumnsError as error:  # a line has one that the first ones have not
            table.evolve(add=error.declared())


def ingest_file(
    source: Source, table: Table, options: Options, rejects_to: Path | None
) -> FileReport:
    """Append one file to a table; raises when it is strict and a line cannot be read."""
    start = time.perf_counter()
    rejects_table = table.schema.document.rejects
    if rejects_table is not None:
        options = replace(options, skip_rejects=True)
    producer = "file:" + source.digest() + _suffix(options, source)

    def keep(some: Sequence[Reject]) -> None:
        table._keep(some, Origin(table._context, producer, None, source.name))
        if rejects_to is not None:
            write(some, rejects_to, source.name)

    enough = None if options.skip_rejects else SHOWN
    rejects = Rejects(enough, None if rejects_table is None else keep)
    rows, held = _check(source, table.schema, options, rejects)
    if rejects.count and not options.skip_rejects:
        raise InvalidInputError(rejects.message(source.name, "nothing was ingested", _HELP))

    def again() -> Iterator[list[pa.RecordBatch]]:
        passed_over = Rejects(keep=None if rejects_table is None else lambda some: None)
        for chunk in _chunks(source, table.schema, options, passed_over):
            yield sift(chunk, table.schema, passed_over)

    accepted = _append(table, held if held is not None else again(), producer, rows, source.name)
    if rejects.count and rejects_to is not None:
        write(rejects.kept, rejects_to, source.name)
    seconds = time.perf_counter() - start
    return FileReport(
        source.name,
        rows,
        accepted,
        rows - accepted,
        rejects.count,
        rejects_table,
        round(seconds, 3),
        round(rows / max(seconds, 1e-9)),
    )


def _suffix(options: Options, source: Source) -> str:
    """Part of a producer's name: the same bytes read in another way are another file."""
    return "-" + xxhash.xxh3_64_hexdigest(f"{source.format} {options.key()}".encode())


def _chunks(
    source: Source, schema: TableSchema, options: Options, rejects: Rejects
) -> Iterator[Chunk]:
    return READERS[source.format](source, schema, options, rejects)


def _check(
    source: Source, schema: TableSchema, options: Options, rejects: Rejects
) -> tuple[int, list[list[pa.RecordBatch]] | None]:
    """Rows that can be appended, and their batches chunk by chunk if there are not too many."""
    rows = size = 0
    held: list[list[pa.RecordBatch]] | None = []
    with progress(f"checking {source.name}", None) as show:
        for chunk in _chunks(source, schema, options, rejects):
            batches = sift(chunk, schema, rejects)
            rows += sum(batch.num_rows for batch in batches)
            size += sum(batch.nbytes for batch in batches)
            if held is not None:
                held = [*held, batches] if size <= _HELD_BYTES else None
            show(rows)
    rejects.hand_on()
    return rows, held


def _append(
    table: Table,
    chunks: Iterable[list[pa.RecordBatch]],
    producer: str,
    rows: int,
    name: str,
) -> int:
    """Append chunk by chunk, each under its number; returns the rows accepted.

    A chunk that was appended before, by a run that was killed or one that ended, is not again.
    """
    accepted = done = 0
    with progress(f"ingesting {name}", rows) as show:
        for seq, batches in enumerate(chunks):
            if not batches:
                continue
            data = pa.Table.from_batches(batches)
            accepted += table.append(data, producer=producer, seq=seq).rows
            done += data.num_rows
            show(done)
    return accepted


def _say(report: FileReport) -> None:
    text = f"{report.file}: {report.rows:,} rows in {report.seconds:.2f} s"
    text += f" ({report.rows_per_second:,} rows/s)"
    if report.duplicates:
        text += f", {report.duplicates:,} of them there already"
    if report.rejects:
        kept = f", and kept in {report.rejects_table}" if report.rejects_table else ""
        text += f"; {report.rejects:,} lines rejected{kept}"
    if sys.stdout.isatty():
        console().print(text, style="yellow" if report.rejects else "green", markup=False)
    else:
        print(text)


def _total(reports: Sequence[FileReport]) -> dict[str, object]:
    counts = ("rows", "accepted", "duplicates", "rejects")
    sums = {key: sum(getattr(report, key) for report in reports) for key in counts}
    seconds = sum(report.seconds for report in reports)
    rate = round(sums["rows"] / max(seconds, 1e-9))
    files = [asdict(report) for report in reports]
    return {**sums, "seconds": round(seconds, 3), "rows_per_second": rate, "files": files}
