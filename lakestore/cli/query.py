"""Commands that read: sql, shell, tail."""

import io
import json
import os
import shutil
import sys
import threading
from contextlib import redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import typer

import lakestore
from lakestore import quoting
from lakestore.cli.output import FORMATS, Json, LakeFolder, TableName, print_result, write_result
from lakestore.cli.place import given, open_existing, open_lake
from lakestore.clock import SystemClock
from lakestore.errors import NotFoundError, StorageError
from lakestore.httpfs import attach_statements
from lakestore.layout import VIEWS_FILE
from lakestore.opening import place
from lakestore.storage.s3 import S3Storage
from lakestore.table import Table

Format = Literal["table", "csv", "json", "ndjson", "parquet"]
_SUFFIXES = {".csv": "csv", ".json": "json", ".ndjson": "ndjson", ".jsonl": "ndjson"}
_SUFFIXES |= {".parquet": "parquet"}
_POLL_S = 0.5
_LATE = timedelta(seconds=60)
"""`tail --follow` shows events that come at most so late, by event time."""


def sql(
    lake: LakeFolder,
    query: Annotated[str, typer.Argument(help="One statement that reads; $name for parameters.")],
    param: Annotated[
        list[str] | None,
        typer.Option(
            "--param",
            "-p",
            metavar="NAME=VALUE",
            help="A parameter; JSON if it is (12, true, null), else text.",
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="TABLE=VERSION",
            help="Read this table's sealed rows as of a version, or of a time such as 2026-11-22.",
        ),
    ] = None,
    form: Annotated[Format | None, typer.Option("--format", help="How to print.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to a file.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows that `table` shows.")] = 40,
    as_json: Annotated[bool, typer.Option("--json", help="Same as --format json.")] = False,
) -> None:
    """Run one query over every tier. Rows not flushed yet are included."""
    chosen = _format(form, output, as_json)
    if chosen == "parquet" and output is None and sys.stdout.isatty():
        raise typer.BadParameter("Parquet is binary: say -o FILE", param_hint="--format")
    parameters = _parameters(param or []) or None
    asked = _version(at) if at is not None else None
    with open_lake(lake, mode="r") as opened:
        if asked is not None:
            result = opened[asked[0]].at(asked[1]).sql(query, parameters)
        else:
            result = opened.sql(query, parameters)
    if chosen == "table":
        text = _box(result, rows)
        if output is None:
            print(text)
            return
        try:
            output.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"cannot write {str(output)!r}: {error}") from error
    elif output is not None:
        write_result(result.to_arrow(), chosen, output)
    else:
        print_result(result.to_arrow(), chosen)


def _box(result: lakestore.Result, rows: int) -> str:
    """The answer as people read it, and how many rows it leaves out."""
    with redirect_stdout(io.StringIO()) as text:
        result.show(rows)
    return text.getvalue().rstrip("\n")


def _format(form: str | None, output: Path | None, as_json: bool) -> str:
    if as_json:
        if form not in (None, "json"):
            raise typer.BadParameter(f"--json and --format {form} differ", param_hint="--json")
        return "json"
    if form is not None:
        return form
    if output is None:
        return "table"
    if output.suffix not in _SUFFIXES:
        raise typer.BadParameter(
            f"{output.name!r} does not tell a format: add --format {'|'.join(FORMATS)}",
            param_hint="--output",
        )
    return _SUFFIXES[output.suffix]


def _parameters(given: list[str]) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name.isidentifier():
            raise typer.BadParameter(f"{one!r} is not NAME=VALUE", param_hint="--param")
        try:
            parameters[name] = json.loads(value)
        except ValueError:
            parameters[name] = value
    return parameters


def _version(given: str) -> tuple[str, int | str]:
    """Which table is asked as of which version, or time."""
    table, equals, version = given.partition("=")
    if not equals or not table or not version:
        raise typer.BadParameter(f"{given!r} is not TABLE=VERSION", param_hint="--at")
    return table, int(version) if version.isdecimal() else version


def shell(
    lake: LakeFolder,
    arguments: Annotated[
        list[str] | None, typer.Argument(help="Passed to duckdb, after `--`.")
    ] = None,
) -> None:
    """Flush, then open the `duckdb` shell on the lake, read-only."""
    program = shutil.which("duckdb")
    if program is None:
        raise NotFoundError("no `duckdb` on the PATH: `pip install duckdb-cli` brings it")
    storage = place(lake, **given()).storage
    with open_existing(lake) as opened:
        opened.flush()
    if isinstance(storage, S3Storage):  # what is sealed is there; hot rows stay on this host
        begin = ["-init", _piped(attach_statements(storage))]
    else:
        begin = ["-readonly", storage.url(VIEWS_FILE)]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(program, ["duckdb", *begin, *(arguments or [])])


def _piped(text: str) -> str:
    """A file that holds a text and is nowhere on a disk: it has the store's keys in it."""
    read, write = os.pipe()
    os.write(write, text.encode())
    os.close(write)
    os.set_inheritable(read, True)
    return f"/dev/fd/{read}"


def tail(
    lake: LakeFolder,
    table: TableName,
    rows: Annotated[int, typer.Option("-n", "--rows", min=0, help="How many.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as events come.")] = False,
    seconds: Annotated[
        float | None, typer.Option(min=0, help="Stop following after so long.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the newest events, the newest last. Nulls are left out."""
    with open_lake(lake, mode="r") as opened:
        source = opened[table]
        # What is there is listed before the newest are read, or what comes between is never shown.
        seen = _recent(opened, source) if follow else set()
        newest = _newest(opened, source, rows)
        _print_events(newest, source, as_json)
        if follow:
            _follow(opened, source, seen | _keys(newest, source), as_json, seconds)


def _newest(lake: lakestore.Lake, table: Table, rows: int) -> pa.Table:
    time = quoting.identifier(table.schema.event_time)
    id = quoting.identifier(table.schema.event_id)
    statement = (
        f"FROM (FROM {quoting.identifier(table.name)} ORDER BY {time} DESC, {id} DESC "
        f"LIMIT {rows}) ORDER BY {time}, {id}"
    )
    return lake.sql(statement).to_arrow()


def _recent(lake: lakestore.Lake, table: Table) -> set[Any]:
    """Keys of the events that are as new as late ones may be."""
    newest = _newest(lake, table, 1)
    if not newest.num_rows:
        return set()
    time, id = table.schema.event_time, table.schema.event_id
    since = newest[time][0].as_py() - _LATE
    return _keys(table.to_arrow([time, id], start=since), table)


def _follow(
    lake: lakestore.Lake, table: Table, seen: set[Any], as_json: bool, seconds: float | None
) -> None:
    """Print events as they appear, until `seconds` are over or somebody interrupts."""
    time, id = quoting.identifiers([table.schema.event_time]), table.schema.event_id
    statement = f"FROM {quoting.identifier(table.name)}"
    order = f"ORDER BY {time}, {quoting.identifier(id)}"
    never = threading.Event()
    clock = SystemClock()
    end = None if seconds is None else clock.monotonic() + seconds
    while end is None or clock.monotonic() < end:
        left = _POLL_S if end is None else min(_POLL_S, end - clock.monotonic())
        never.wait(max(left, 0.0))
        if seen:
            since = max(key[0] for key in seen) - _LATE
            seen = {key for key in seen if key[0] >= since}
            query, parameters = f"{statement} WHERE {time} >= $since {order}", {"since": since}
        else:
            query, parameters = f"{statement} {order}", {}
        recent = lake.sql(query, parameters or None).to_arrow()
        fresh = [key not in seen for key in _key_list(recent, table)]
        _print_events(recent.filter(pa.array(fresh, pa.bool_())), table, as_json)
        seen |= _keys(recent, table)


def _key_list(rows: pa.Table, table: Table) -> list[Any]:
    times, ids = rows[table.schema.event_time], rows[table.schema.event_id]
    return list(zip(times.to_pylist(), ids.to_pylist(), strict=True))


def _keys(rows: pa.Table, table: Table) -> set[Any]:
    return set(_key_list(rows, table))


def _print_events(rows: pa.Table, table: Table, as_json: bool) -> None:
    if not rows.num_rows:
        return
    if as_json:
        print_result(rows, "ndjson")
        return
    defaults = {column.name: column.default for column in table.schema.stored.columns}
    time = table.schema.event_time
    for event in rows.to_pylist():
        told = [
            f"{name}={value}"
            for name, value in event.items()
            if name != time and value is not None and value != defaults[name]
        ]
        print(event[time].isoformat(), *told, flush=True)
