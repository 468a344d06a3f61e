"""Commands that make, show and move tables: init, create, status, history, flush, seal."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table as Grid

from lakestore.cli.output import (
    Json,
    LakeFolder,
    TableName,
    console,
    human_bytes,
    print_json,
)
from lakestore.cli.place import exists, open_existing, open_lake
from lakestore.status import Status, TableStatus

EventTime = Annotated[str | None, typer.Option(help="Column with the time of the event.")]
EventId = Annotated[
    str | None, typer.Option(help="Column that identifies an event; without it, ids are made.")
]


def init(lake: LakeFolder, as_json: Json = False) -> None:
    """Make a lake in a folder. One that is there already stays as it is."""
    existed = exists(lake)
    with open_lake(lake, upkeep="manual") as opened:
        made = {"lake": opened.root, "id": opened.status().lake, "created": not existed}
    if as_json:
        print_json(made)
    else:
        print(f"{'a lake is there already' if existed else 'made a lake'}: {made['lake']}")


def create(
    lake: LakeFolder,
    table: TableName,
    schema: Annotated[
        str | None, typer.Option(help="A shipped schema (llm_usage, flights), or a file.toml.")
    ] = None,
    like: Annotated[
        Path | None, typer.Option(help="Take the columns of this file; its rows are not ingested.")
    ] = None,
    event_time: EventTime = None,
    event_id: EventId = None,
    sort: Annotated[list[str] | None, typer.Option(help="Sort key, in order (repeatable).")] = None,
    dedup: Annotated[
        Literal["day", "table", "none"] | None, typer.Option(help="Scope of one event id.")
    ] = None,
    on_new_column: Annotated[
        Literal["add", "reject", "ignore"] | None,
        typer.Option(help="What an append does with a column that the table has not."),
    ] = None,
    rejects: Annotated[
        str | None, typer.Option(help="Table for rows that do not fit, instead of an error.")
    ] = None,
    null: Annotated[list[str] | None, typer.Option(help="CSV text that means null.")] = None,
    cold: Annotated[
        Literal["parquet", "delta"], typer.Option(help="Format of the sealed files.")
    ] = "parquet",
    as_json: Json = False,
) -> None:
    """Create a table, and the lake if there is none."""
    roles: dict[str, Any] = {
        "event_time": event_time,
        "event_id": event_id,
        "sort": tuple(sort) if sort else None,
        "dedup": dedup,
        "on_new_column": on_new_column,
        "rejects": rejects,
    }
    if (schema is None) == (like is None):
        raise typer.BadParameter("say one of --schema and --like", param_hint="--schema")
    if schema is not None:
        # A shipped schema or a document already has its roles; the library refuses others.
        columns: object = schema
    else:
        from lakestore.files.infer import schema_of_file

        if event_time is None:
            raise typer.BadParameter("--like needs --event-time COLUMN", param_hint="--event-time")
        assert like is not None
        columns = schema_of_file(like, event_time, null or [])
    with open_lake(lake, upkeep="manual") as opened:
        made = opened.create_table(table, columns, cold=cold, **roles)
        facts = {"lake": opened.root, "table": made.name, "columns": list(made.schema.names)}
        facts |= {"event_time": made.schema.event_time, "event_id": made.schema.event_id}
    if as_json:
        print_json(facts)
    else:
        print(f"created table {table} with {len(made.schema.names)} columns in {opened.root}")


def status(lake: LakeFolder, as_json: Json = False) -> None:
    """Rows, bytes, files and lag of every tier of every table."""
    with open_lake(lake, mode="r") as opened:
        found = opened.status()
    if as_json:
        print_json(found.to_dict())
    else:
        print_status(found)


def print_status(found: Status) -> None:
    """A lake's status, for people."""
    out = console()
    rows = sum(table.rows for table in found.tables)
    out.print(f"{found.root}: {len(found.tables)} table(s), {rows:,} rows", markup=False)
    for table in found.tables:
        out.print()
        out.print(_tiers(table))
    if found.recovery.rows:
        out.print(f"recovered {found.recovery.rows:,} rows of writers that died")
    if found.superseded_files:
        out.print(f"{found.superseded_files:,} superseded files wait for vacuum")
    if found.problem:
        out.print(f"upkeep problem: {found.problem}", markup=False)


def _tiers(table: TableStatus) -> Grid:
    span = "no events published yet"
    if table.first_event is not None and table.last_event is not None:
        span = f"{_time(table.first_event)} to {_time(table.last_event)}"
    if table.rejects is not None:
        span += f"; what does not fit is in {table.rejects}"
    grid = Grid(title=f"{table.name}: {span}", title_justify="left", show_footer=True)
    grid.add_column("tier", "total")
    grid.add_column("rows", f"{table.rows:,}", justify="right")
    grid.add_column("bytes", human_bytes(sum(t.bytes for t in table.tiers)), justify="right")
    grid.add_column("files", f"{sum(t.files for t in table.tiers):,}", justify="right")
    payload = sum(tier.payload_bytes for tier in table.tiers)
    if payload:
        grid.add_column("payloads", human_bytes(payload), justify="right")
    grid.add_column("lag", justify="right")
    for tier in table.tiers:
        cells = [tier.tier, f"{tier.rows:,}", human_bytes(tier.bytes), f"{tier.files:,}"]
        cells += [human_bytes(tier.payload_bytes)] if payload else []
        grid.add_row(*cells, "" if tier.lag_s is None else f"{tier.lag_s:,.0f} s")
    return grid


def history(
    lake: LakeFolder,
    table: TableName,
    limit: Annotated[int | None, typer.Option(min=1, help="So many of the newest alone.")] = None,
    as_json: Json = False,
) -> None:
    """List what changed the sealed rows of a table.

    The newest first, with whether it can still be asked.
    """
    with open_lake(lake, mode="r") as opened:
        found = opened[table].history(limit)
    if as_json:
        print_json({"table": table, "history": [change.to_dict() for change in found]})
        return
    grid = Grid()
    grid.add_column("version", justify="right")
    grid.add_column("at")
    grid.add_column("what")
    for name in ("rows", "files"):
        grid.add_column(name, justify="right")
    grid.add_column("by")
    grid.add_column("sql --at")
    for change in found:
        grid.add_row(
            str(change.version),
            _time(change.at),
            change.operation,
            _difference(change.rows_added, change.rows_removed),
            _difference(change.files_added, change.files_removed),
            change.by or "",
            f"{table}={change.version}" if change.readable else "",
        )
    console().print(grid)


def _difference(added: int, removed: int) -> str:
    parts = [f"+{added:,}"] if added else []
    return " ".join([*parts, *([f"-{removed:,}"] if removed else [])])


def _time(when: datetime) -> str:
    return when.strftime("%Y-%m-%d %H:%M:%S") + ("Z" if when.tzinfo else "")


def flush(
    lake: LakeFolder,
    table: Annotated[str | None, typer.Argument(help="One table only.")] = None,
    as_json: Json = False,
) -> None:
    """Publish what writers that are gone left as hot segments.

    Rows that a running process still buffers are its own to flush.
    """
    with open_existing(lake) as opened:
        rows = opened[table].flush() if table is not None else opened.flush()
    _moved("flushed", rows, as_json)


def seal(
    lake: LakeFolder,
    table: Annotated[str | None, typer.Argument(help="One table only.")] = None,
    as_json: Json = False,
) -> None:
    """Flush, then move every hot segment to cold files."""
    with open_existing(lake) as opened:
        rows = opened[table].seal() if table is not None else opened.seal()
    _moved("sealed", rows, as_json)


def _moved(verb: str, rows: int, as_json: bool) -> None:
    if as_json:
        print_json({verb: rows})
    else:
        print(f"{verb} {rows:,} rows")
