"""Commands that ask as a dashboard does: events, event, totals, facets, top, metrics."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import pyarrow as pa
import typer
from rich import box
from rich.cells import cell_len
from rich.table import Table as Grid
from rich.text import Text

from lakestore.cli.bars import clip, ranked
from lakestore.cli.filters import End, Start, Tier, Where, chosen, selection, value_of
from lakestore.cli.output import Json, LakeFolder, TableName, console, print_json
from lakestore.cli.place import open_lake
from lakestore.cli.values import heading, number, plain, short, text
from lakestore.errors import NotFoundError
from lakestore.events.answers import Metrics, Page
from lakestore.events.metrics import GROUP, leaders, view
from lakestore.events.pages import PAGE_MAX
from lakestore.schema import TableSchema

Measures = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MEASURE]...",
        help="count, or sum, avg, min, max, distinct or p95 of a column; then optionally "
        "'if column = value'.",
    ),
]
_CELL = 40
_ALWAYS = datetime(1500, 1, 1, tzinfo=UTC), timedelta(days=400_000)
"""One bucket of time that no event is outside of."""


def events(
    lake: LakeFolder,
    table: TableName,
    where: Where = None,
    start: Start = None,
    end: End = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, max=PAGE_MAX, help="Events.")] = 20,
    cursor: Annotated[
        str | None, typer.Option(help="Go on after a page; with the same tests.")
    ] = None,
    offset: Annotated[int, typer.Option(min=0, help="Pass over so many.")] = 0,
    oldest: Annotated[bool, typer.Option("--oldest", help="The oldest first.")] = False,
    source: Tier = "all",
    columns: Annotated[
        list[str] | None,
        typer.Option("--columns", "-c", metavar="A,B", help="Which, in this order (repeatable)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print a page of events, the newest first, with totals.

    \b
    lakestore events lake usage -w model=gpt-5 -w 'status_code>=500' --start 7d
    lakestore events lake usage -w 'endpoint~%messages' -c created_at,model,latency_ms
    """
    with open_lake(lake, mode="r") as opened:
        asked = opened[table]
        names = chosen(asked.schema.stored, columns)
        found = asked.page(
            limit=limit,
            cursor=cursor,
            offset=offset,
            order="oldest" if oldest else "newest",
            **selection(asked.schema.stored, where, start, end, source),
        )
    if as_json:
        rows = [{name: row[name] for name in names or asked.schema.stored.names} for row in found]
        told = {"total": found.total, "totals": found.totals, "rows": rows}
        print_json(plain({"table": table, **told, "next_cursor": found.next_cursor}))
    else:
        _print_page(found, asked.schema.stored, names)


def event(
    lake: LakeFolder,
    table: TableName,
    id: Annotated[str, typer.Argument(metavar="ID", help="The event's id.")],
    as_json: Json = False,
) -> None:
    """Print one event, by its id. Nulls are left out.

    \b
    lakestore event lake usage evt-0000000042
    """
    with open_lake(lake, mode="r") as opened:
        asked = opened[table]
        found = asked.get(value_of(asked.schema.stored.column(asked.schema.stored.event_id), id))
    if found is None:
        raise NotFoundError(f"no event {id!r} in table {table!r}")
    if as_json:
        print_json(plain(found))
    else:
        _print_lines({name: text(value) for name, value in found.items() if value is not None})


def totals(
    lake: LakeFolder,
    table: TableName,
    measures: Measures = None,
    where: Where = None,
    start: Start = None,
    end: End = None,
    source: Tier = "all",
    as_json: Json = False,
) -> None:
    """Print measures of all events that pass.

    \b
    lakestore totals lake usage --start 24h
    lakestore totals lake usage count 'p95(latency_ms)' 'count if status_code >= 500'
    """
    with open_lake(lake, mode="r") as opened:
        asked = opened[table]
        chosen = selection(asked.schema.stored, where, start, end, source)
        found = asked.totals(measures or None, **chosen)
    if as_json:
        print_json(plain({"table": table, "totals": found}))
    else:
        _print_measures(found)


def facets(
    lake: LakeFolder,
    table: TableName,
    columns: Annotated[
        list[str] | None, typer.Argument(metavar="[COLUMN]...", help="By default the schema's.")
    ] = None,
    where: Where = None,
    start: Start = None,
    end: End = None,
    source: Tier = "all",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Values a column.")] = 20,
    as_json: Json = False,
) -> None:
    """List the values of columns, with their numbers of events.

    A column's own test is left out of its menu.

    \b
    lakestore facets lake usage
    lakestore facets lake usage model status_code -w model=gpt-5
    """
    with open_lake(lake, mode="r") as opened:
        asked = opened[table]
        chosen = selection(asked.schema.stored, where, start, end, source)
        found = asked.facets(columns or None, limit=limit + 1, **chosen)
    if as_json:
        menus = {
            name: [{"value": value, "count": count} for value, count in counts[:limit]]
            for name, counts in found.items()
        }
        print_json(plain({"table": table, "facets": menus}))
        return
    out = console()
    for name, counts in found.items():
        for line in ranked(text(name), "events", counts[:limit], out.width):
            out.print(line)
        if len(counts) > limit:
            out.print(f"  … and more values: --limit {2 * limit}")
    if not found:
        out.print("the schema names no facets: say which columns")


def top(
    lake: LakeFolder,
    table: TableName,
    column: Annotated[str, typer.Argument(metavar="COLUMN", help="Whose values are ranked.")],
    measure: Annotated[
        str, typer.Argument(metavar="[MEASURE]", help="By what, as in `totals`.")
    ] = "count",
    where: Where = None,
    start: Start = None,
    end: End = None,
    source: Tier = "all",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many.")] = 10,
    as_json: Json = False,
) -> None:
    """List the values of a column that lead by a measure.

    \b
    lakestore top lake usage key_name 'sum(credit_usage)' --start 24h
    lakestore top lake usage model 'p95(latency_ms)' -n 5
    """
    origin, always = _ALWAYS
    with open_lake(lake, mode="r") as opened:
        asked = opened[table]
        chosen = selection(asked.schema.stored, where, start, end, source)
        measures = {"measure": measure}
        found = asked.series(measures, every=always, origin=origin, by=column, **chosen).table
    every = zip(found[column].to_pylist(), found["measure"].to_pylist(), strict=True)
    groups = [{GROUP: value, "measure": measured} for value, measured in every]
    rows = [(g[GROUP], g["measure"]) for g in leaders(groups, "measure", "measure")[:limit]]
    if as_json:
        values = [{"value": value, "measure": measured} for value, measured in rows]
        told = {"column": column, "measure": measure, "values": len(groups), "rows": values}
        print_json(plain({"table": table, **told}))
        return
    out = console()
    counted = f"{text(measure)}: {len(rows):,} of {len(groups):,} values"
    for line in ranked(text(column), counted, rows, out.width):
        out.print(line)


def metrics(
    lake: LakeFolder,
    table: TableName,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A view that the schema declares.")
    ] = None,
    where: Where = None,
    start: Start = None,
    end: End = None,
    source: Tier = "all",
    limit: Annotated[int, typer.Option("--top", min=1, help="Length of the lists.")] = 10,
    as_json: Json = False,
) -> None:
    """Print a summary, and who leads in it.

    The schema declares what; without, it is the default measures by facet.

    \b
    lakestore metrics lake usage --start 24h --top 5
    """
    with open_lake(lake, mode="r") as opened:
        asked = opened[table]
        chosen = selection(asked.schema.stored, where, start, end, source)
        found = asked.metrics(name, top=limit, **chosen)
        ranks = {
            ranking: label for ranking, (label, _) in view(asked.schema.stored, name).top.items()
        }
    if as_json:
        groups = {grouping: rows.to_pylist() for grouping, rows in found.groups.items()}
        told = {"summary": found.summary, "groups": groups, "top": found.top}
        print_json(plain({"table": table, **told}))
    else:
        _print_metrics(found, ranks)


def _print_page(page: Page, schema: TableSchema, names: Sequence[str]) -> None:
    out = console()
    if page.rows:
        shown = names or _fitting(page, schema, out.width)
        grid = Grid(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, collapse_padding=True)
        for name in shown:
            side: Any = "right" if _is_number(schema, name) else "left"
            grid.add_column(Text(text(name)), justify=side, no_wrap=True)
        for row in page.rows:
            grid.add_row(*(Text(_cell(row[name])) for name in shown))
        out.print(grid)
        left = len(_filled(page, schema)) - len(shown)
        if not names and left > 0:
            out.print(f"{left} more columns have values: --columns A,B chooses, --json has all")
    if page.totals is not None:
        _print_measures(page.totals)
    if page.next_cursor is not None:
        print(f"the next page: --cursor {page.next_cursor}")


def _cell(value: Any) -> str:
    """A value of an event in a table: null is empty, and times are to the second."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return text(value.replace(microsecond=0))
    return clip(text(value), _CELL)


def _filled(page: Page, schema: TableSchema) -> list[str]:
    """Columns that say something on a page: time, id, and what people filter by first."""
    first = dict.fromkeys([schema.event_time, schema.event_id, *schema.document.facets])
    defaults = {column.name: column.default for column in schema.columns}
    return [
        name
        for name in dict.fromkeys([*first, *schema.names])
        if any(row[name] not in (None, defaults[name]) for row in page.rows)
    ]


def _fitting(page: Page, schema: TableSchema, width: int) -> list[str]:
    """Of the columns that say something, the first that fit the terminal."""
    shown: list[str] = []
    taken = 0
    for name in _filled(page, schema):
        told = [text(name), *(_cell(row[name]) for row in page.rows)]
        taken += 2 + max(map(cell_len, told))
        if shown and taken > width:
            break
        shown.append(name)
    return shown


def _is_number(schema: TableSchema, name: str) -> bool:
    kind = schema.column(name).arrow_type
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    return any(test(kind) for test in tests)


def _print_metrics(found: Metrics, ranks: Mapping[str, str]) -> None:
    """Summary and lists; in each, the measure that ranks it comes first."""
    out = console()
    _print_measures(found.summary)
    lists: Mapping[str, Mapping[str, list[dict[str, Any]]]] = found.top or {
        "": {grouping: rows.to_pylist() for grouping, rows in found.groups.items()}
    }
    for name, by_grouping in lists.items():
        labels = list(dict.fromkeys([*([ranks[name]] if name else []), *found.summary]))
        for grouping, rows in by_grouping.items():
            title = f"{grouping}, by {name}" if name else grouping
            grid = _leading(title, rows, labels, out.width)
            out.print()
            out.print(grid)
            if left := len(labels) - len(grid.columns) + 1:
                out.print(f"{left} more measures: --json has all")


def _leading(
    title: str, rows: Sequence[Mapping[str, Any]], labels: Sequence[str], width: int
) -> Grid:
    """Groups with as many of their measures as fit."""
    names = [clip(text(row[GROUP]), _CELL) for row in rows]
    grid = Grid(title=Text(text(title)), title_justify="left", box=box.SIMPLE_HEAD)
    grid.pad_edge, grid.collapse_padding = False, True
    grid.add_column("", no_wrap=True)
    room = width - 4 - max(map(cell_len, [*names, ""]))
    shown: list[str] = []
    for label in labels:
        told = [heading(label), *(short(row[label]) for row in rows)]
        wide = max(len(line) for one in told for line in one.split("\n"))
        room -= wide + 2
        if shown and room < 0:
            break
        shown.append(label)
        grid.add_column(Text(told[0]), justify="right", vertical="bottom", min_width=wide)
    for name, row in zip(names, rows, strict=True):
        grid.add_row(Text(name), *(Text(short(row[label])) for label in shown))
    return grid


def _print_measures(measures: Mapping[str, Any]) -> None:
    numbers = {label: number(value) for label, value in measures.items()}
    wide = max(map(len, numbers.values()))
    _print_lines({label: told.rjust(wide) for label, told in numbers.items()})


def _print_lines(told: Mapping[str, str]) -> None:
    wide = max(len(text(name)) for name in told)
    for name, value in told.items():
        print(f"{text(name):{wide}}  {value}")
