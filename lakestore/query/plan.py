"""Plan: which cold files can hold a row that a statement asks for.

DuckDB itself says which predicates reach each scan: the statement is explained against empty
tables of the same names and schemas, in a DuckDB of its own in which statistics decide nothing.
Casts, parameters, `now()`, CTEs and joins arrive folded into plain comparisons, which are tested
against the files' statistics, again by DuckDB. A predicate that is not understood keeps every
file; a file is read when any scan of its table may find a row in it.
"""

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import sqlglot
from sqlglot import expressions as exp

from lakestore import quoting
from lakestore.columns import queried_type
from lakestore.delta.statistics import Ranges
from lakestore.instances import LOST, interrupted, start
from lakestore.lineage import FOREIGN, Lineage
from lakestore.query.parameters import Parameters
from lakestore.query.payloads import views_of
from lakestore.query.pin import TablePin
from lakestore.schema import TableSchema
from lakestore.snapshot import ColdFile, ColumnRange

Filters = dict[str, list[list[str]]]

_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPTIONAL = re.compile(r"('(?:[^']|'')*')|optional: (Dynamic Filter \([^()]*\))?")
_CLOCK = re.compile(r"(?i)\b(?:now|today|\w*current_\w+|\w*timestamp|localtime)\b")
OWN = "lakestore_"
"""How names begin that are no table's and no caller's."""
_CLOCK_MARGIN = "INTERVAL 1 MINUTE"
"""Planning and running read the clock apart from each other; no statement runs so much later."""


@dataclass(frozen=True)
class Statistics:
    """Ranges of a table's cold files, in a DuckDB table of that name: a row a file."""

    files: tuple[ColdFile, ...]
    columns: tuple[str, ...]
    name: str
    lineage: Lineage
    """By which the ranges were understood."""


class Planner:
    """Chooses the cold files of each statement. Its DuckDB holds no event, only statistics."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the three that `_start` sets
        self._start()

    def _start(self) -> None:
        self._stubs: dict[str, TableSchema] = {}
        self._statistics: dict[int, Statistics] = {}
        self._instance = start(
            threads=1,
            autoinstall_known_extensions=False,
            autoload_known_extensions=False,
            python_enable_replacements=False,
        )
        self._instance.execute("SET GLOBAL TimeZone = 'UTC'")
        # By statistics a scan of an empty table is folded away, and its filters with it: another
        # scan's filters would then choose the files of both. And of a table that an ORDER BY with a
        # LIMIT reads, there would be a second scan, without filters, for the columns of the rows.
        off = "statistics_propagation,late_materialization"
        self._instance.execute(f"SET GLOBAL disabled_optimizers = '{off}'")
        self._instance.execute("CREATE SCHEMA statistics")

    def choose(
        self,
        statement: str,
        parameters: Parameters,
        pins: Mapping[str, TablePin],
        frames: Mapping[str, Any],
    ) -> tuple[dict[str, tuple[ColdFile, ...]], Filters]:
        """Cold files to read, and the filters of each scan that chose them, by name.

        Args:
            pins: by the names that the statement reads them by.
        """
        kept = {name: one.cold for name, one in pins.items()}
        if not any(kept.values()):
            return kept, {}
        try:
            with self._instance.cursor() as cursor:
                for name, frame in frames.items():
                    cursor.register(name, frame)
                for name, one in pins.items():
                    self._stub(cursor, name, one.table.schema, own=_is_own(name, one))
                for name, table in views_of([one.table for one in pins.values()]).items():
                    self._stub(cursor, name, table.accepts.payload_view)
                filters = pushed_filters(cursor, statement, parameters)
            if filters is None:
                return kept, {}
            margin = _CLOCK_MARGIN if _CLOCK.search(statement) else ""
            chosen = {
                name: self._keep(one, filters.get(name, []), margin) for name, one in pins.items()
            }
        except LOST:  # nothing is pruned this time
            with self._lock:
                self._start()
            return kept, {}
        return chosen, filters

    def _stub(
        self,
        cursor: duckdb.DuckDBPyConnection,
        name: str,
        schema: TableSchema,
        *,
        own: bool = True,
    ) -> None:
        """Make an empty table; one whose `name` is the caller's is the cursor's alone."""
        columns = ", ".join(
            f"{quoting.identifier(c.name)} {queried_type(c.sql_type)}" for c in schema.columns
        )
        if not own:
            cursor.execute(f"CREATE TEMP TABLE {quoting.identifier(name)} ({columns})")
            return
        with self._lock:
            if self._stubs.get(name) is not schema:
                cursor.execute(f"CREATE OR REPLACE TABLE {quoting.identifier(name)} ({columns})")
                self._stubs[name] = schema

    def _keep(
        self, one: TablePin, scans: Sequence[Sequence[str]], margin: str
    ) -> tuple[ColdFile, ...]:
        if not one.cold or not scans or not all(scans):
            return one.cold
        if not all(_PLAIN_NAME.fullmatch(name) for name in one.table.schema.names):
            return one.cold  # such a name stands unquoted in a filter, and could be misread
        with self._lock, self._instance.cursor() as cursor:
            id = one.table.entry.id
            known = self._statistics.get(id)
            lineage = one.table.lineage
            wanted = _mentioned(scans, one.table.schema)
            if known is not None and known.lineage is not lineage:
                known = None
            if known is None or known.files is not one.cold or not wanted <= set(known.columns):
                name = f"statistics.t{id}"
                wanted |= set(known.columns if known is not None else ())
                known = load_statistics(cursor, one.cold, lineage, name, wanted)
                self._statistics[id] = known
            return keep(cursor, known, scans, margin)


def _is_own(name: str, one: TablePin) -> bool:
    """Whether a name is not of the caller's choosing."""
    return name == one.table.entry.name or name.startswith(OWN)


def load_statistics(
    cursor: duckdb.DuckDBPyConnection,
    files: tuple[ColdFile, ...],
    lineage: Lineage,
    name: str,
    wanted: set[str] | None = None,
) -> Statistics:
    """Put the ranges of `files` into the table `name`, each column in its own type.

    Args:
        wanted: of these columns; by default of all.
    """
    schema = lineage.schema.stored
    columns = tuple(c for c in schema.names if wanted is None or c in wanted)
    told = [ranges_of(file, columns, lineage) for file in files]
    data = {"file": pa.array(range(len(files)), pa.int64())}
    typed = ["file"]
    for index, column in enumerate(columns):
        ranges = [one.get(column) or ColumnRange(None, None, -1) for one in told]
        rows = [f.info.rows for f in files]
        data[f"low_{index}"] = pa.array([r.low for r in ranges], pa.string())
        data[f"high_{index}"] = pa.array([r.high for r in ranges], pa.string())
        data[f"nulls_{index}"] = pa.array([r.nulls != 0 for r in ranges])
        data[f"filled_{index}"] = pa.array(
            [r.nulls != n for r, n in zip(ranges, rows, strict=True)]
        )
        sql_type = queried_type(schema.column(column).sql_type)
        typed += [f"CAST({end}_{index} AS {sql_type}) AS {end}_{index}" for end in ("low", "high")]
        typed += [f"nulls_{index}", f"filled_{index}"]
    cursor.register("lakestore_ranges", pa.table(data))
    try:
        cursor.execute(
            f"CREATE OR REPLACE TABLE {name} AS SELECT {', '.join(typed)} FROM lakestore_ranges"
        )
    finally:
        cursor.unregister("lakestore_ranges")
    return Statistics(files, columns, name, lineage)


def ranges_of(
    file: ColdFile, columns: Sequence[str], lineage: Lineage
) -> Mapping[str, ColumnRange]:
    """The ranges of some columns in a file; a log's text is read for no others.

    Where a file is of a version without the column, all of its rows have null.
    """
    ranges = file.info.ranges
    if lineage.is_single:
        return ranges.of(columns) if isinstance(ranges, Ranges) else ranges
    if file.schema_version == FOREIGN:  # a column that is not told of may be missing, or not
        return ranges.of(columns) if isinstance(ranges, Ranges) else ranges
    names = lineage.stored(file.schema_version).names
    there = {name: names[name] for name in columns if name in names}
    told = ranges.of(there.values()) if isinstance(ranges, Ranges) else ranges
    found = {name: told[source] for name, source in there.items() if source in told}
    rows = file.info.rows
    return found | {n: ColumnRange(None, None, rows) for n in columns if n not in there}


def _mentioned(scans: Sequence[Sequence[str]], schema: TableSchema) -> set[str]:
    """Columns that filters may test: their names are plain."""
    words = {word for filters in scans for text in filters for word in _PLAIN_NAME.findall(text)}
    return {name for name in schema.names if name in words}


def pushed_filters(
    cursor: duckdb.DuckDBPyConnection, statement: str, parameters: Parameters
) -> Filters | None:
    """The filters of every scan, by table; a scan whose filters cannot be told apart has none.

    None when DuckDB cannot explain the statement; its own run then says why.
    """
    try:
        rows = cursor.execute(f"EXPLAIN (FORMAT json) {statement}", parameters).fetchall()
    except LOST:
        raise
    except (duckdb.Error, ValueError) as error:
        if interrupted(error):
            raise
        return None
    scans: Filters = {}
    for node in _nodes(json.loads(rows[-1][1])):
        info = node.get("extra_info") or {}
        table = info.get("Table")
        if isinstance(table, str):
            name = table.rpartition(".")[2].strip('"')
            filters = info.get("Filters", [])
            filters = [filters] if isinstance(filters, str) else list(filters)
            # The list is made by splitting at newlines, those inside literals too: each such
            # literal leaves a line with an odd number of quotes.
            if any(text.count("'") % 2 for text in filters):
                filters = []
            scans.setdefault(name, []).append(filters)
    return scans


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, list):
        for item in tree:
            yield from _nodes(item)
    elif isinstance(tree, dict):
        yield tree
        yield from _nodes(tree.get("children", []))


def keep(
    cursor: duckdb.DuckDBPyConnection,
    statistics: Statistics,
    scans: Sequence[Sequence[str]],
    margin: str = "",
) -> tuple[ColdFile, ...]:
    """The files that at least one of the scans may find a row in."""
    tests = []
    for filters in scans:
        parts = [test for text in filters if (test := file_test(text, statistics.columns, margin))]
        if not parts:
            return statistics.files
        tests.append(" AND ".join(f"({part})" for part in parts))
    if not tests:
        return statistics.files
    condition = " OR ".join(f"({test})" for test in tests)
    try:
        rows = cursor.execute(
            f"SELECT file FROM {statistics.name} WHERE coalesce({condition}, true) ORDER BY file"
        ).fetchall()
    except duckdb.Error:
        return statistics.files
    return tuple(statistics.files[row[0]] for row in rows)


def file_test(text: str, columns: Sequence[str], margin: str = "") -> str | None:
    """A pushed filter as a test of a file's statistics, or None when it is not understood.

    The test is false only for files in which no row passes the filter. With a `margin`, an SQL
    interval, times are compared that much less strictly.
    """
    try:
        tree = sqlglot.parse_one(_OPTIONAL.sub(_settled, text), read="duckdb")
    except (sqlglot.errors.SqlglotError, RecursionError):
        return None
    return _test(tree, columns, margin)


def _settled(found: re.Match[str]) -> str:
    """What stands for a literal, or for the word before a filter that may be left out.

    Of an ORDER BY with a LIMIT, DuckDB makes a filter beside those on its column, whose value is
    known when it runs. It is no SQL: all filters on that column would not be understood.
    """
    return found[1] or ("true" if found[2] else "")


def _test(node: exp.Expr, columns: Sequence[str], margin: str) -> str | None:
    node = node.unnest()
    if isinstance(node, exp.And):
        parts = [
            p for p in (_test(node.left, columns, margin), _test(node.right, columns, margin)) if p
        ]
        return " AND ".join(f"({p})" for p in parts) or None
    if isinstance(node, exp.Or):
        left, right = _test(node.left, columns, margin), _test(node.right, columns, margin)
        return f"({left}) OR ({right})" if left and right else None
    if isinstance(node, exp.In) and not node.args.get("query"):
        tests = [_compare(node.this, exp.EQ, value, columns, margin) for value in node.expressions]
        return " OR ".join(f"({t})" for t in tests if t) if tests and all(tests) else None
    if isinstance(node, exp.Is) and isinstance(node.expression, exp.Null):
        index = _index(node.this, columns)
        return None if index is None else f"nulls_{index}"
    if isinstance(node, exp.Not) and isinstance(node.this, exp.Is):
        index = _index(node.this.this, columns)
        return None if index is None else f"filled_{index}"
    if isinstance(node, exp.EQ | exp.GT | exp.GTE | exp.LT | exp.LTE):
        return _compare(node.left, type(node), node.right, columns, margin)
    return None


def _compare(
    column: exp.Expr,
    operator: type[exp.Binary],
    value: exp.Expr,
    columns: Sequence[str],
    margin: str,
) -> str | None:
    index = _index(column, columns)
    if index is None or not _is_constant(value):
        return None
    constant = value.sql(dialect="duckdb")
    low, high = f"low_{index}", f"high_{index}"
    if margin and "TIMESTAMP" in constant:
        low, high = f"{low} - {margin}", f"{high} + {margin}"
    test = {
        exp.EQ: f"{low} <= {constant} AND {high} >= {constant}",
        exp.GT: f"{high} > {constant}",
        exp.GTE: f"{high} >= {constant}",
        exp.LT: f"{low} < {constant}",
        exp.LTE: f"{low} <= {constant}",
    }[operator]
    return f"filled_{index} AND coalesce({test}, true)"


def _index(node: exp.Expr, columns: Sequence[str]) -> int | None:
    if isinstance(node, exp.Column) and not node.table and node.name in columns:
        return columns.index(node.name)
    return None


def _is_constant(node: exp.Expr) -> bool:
    allowed = (
        exp.Literal,
        exp.Cast,
        exp.DataType,
        exp.DataTypeParam,
        exp.Neg,
        exp.Boolean,
        exp.Paren,
    )
    return all(isinstance(part, allowed) for part in node.walk())
