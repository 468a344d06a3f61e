"""Run: a statement over pinned tables, on a cursor of its own."""

import re
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa

from lakestore import hot, quoting
from lakestore.catalog import Catalog
from lakestore.context import TableContext
from lakestore.engine import Engine
from lakestore.errors import InvalidInputError, NotFoundError, StorageError
from lakestore.query import plan
from lakestore.query.pin import FilesInUse, TablePin, pin
from lakestore.query.plan import Parameters
from lakestore.query.result import Result
from lakestore.snapshot import ColdFile

_NAME = re.compile(r'"((?:[^"]|"")+)"|([A-Za-z_]\w*)')
_ATTEMPTS = 5


@dataclass(frozen=True)
class TierPlan:
    """What a query reads of one tier of one table."""

    table: str
    tier: str
    files: int
    files_kept: int
    bytes: int
    bytes_kept: int
    rows: int


@dataclass(frozen=True)
class Explanation:
    """Files and bytes that a query reads, and those that planning spared it, per tier."""

    tiers: tuple[TierPlan, ...]
    filters: Mapping[str, Sequence[Sequence[str]]] = field(repr=False)

    def to_arrow(self) -> pa.Table:
        """One row a table and tier."""
        return pa.Table.from_pylist([vars(tier) for tier in self.tiers])

    def __str__(self) -> str:
        lines = [f"{'table':16} {'tier':7} {'files read':>14} {'MB read':>18} {'rows held':>14}"]
        lines += [
            f"{t.table:16} {t.tier:7} {f'{t.files_kept:,} of {t.files:,}':>14} "
            f"{f'{t.bytes_kept / 1e6:,.1f} of {t.bytes / 1e6:,.1f}':>18} {t.rows:>14,}"
            for t in self.tiers
        ]
        for table, scans in self.filters.items():
            for filters in scans:
                lines.append(f"scan of {table}: {' AND '.join(filters) or 'no filter'}")
        return "\n".join(lines)


class Queries:
    """Queries of one open lake."""

    def __init__(self, catalog: Catalog, engine: Engine, visibility: threading.Lock) -> None:
        self._catalog = catalog
        self._engine = engine
        self._visibility = visibility
        self._lock = threading.Lock()  # guards _stubs and _statistics
        self._stubs: dict[int, str] = {}
        self._statistics: dict[int, plan.Statistics] = {}
        self.in_use = FilesInUse()

    def sql(
        self,
        statement: str,
        parameters: Parameters,
        tables: Sequence[TableContext],
        frames: Mapping[str, Any],
    ) -> Result:
        """The answer of one statement that reads.

        Args:
            tables: the lake's tables; those the statement names are pinned.
            frames: the caller's own data, by name.

        Raises:
            InvalidInputError: not one statement, not one that reads, or wrong SQL.
            StorageError: a file cannot be read.
        """
        statement = self._check(statement)
        named = _named(statement, tables)
        for attempt in range(_ATTEMPTS):
            try:
                with self._prepared(statement, parameters, named, frames) as (cursor, _):
                    return Result(_fetch(cursor, statement, parameters))
            except duckdb.IOException as error:
                # A file that another process sealed and vacuumed: look again.
                if attempt == _ATTEMPTS - 1 or "No files found" not in str(error):
                    raise StorageError(f"a file of the lake cannot be read: {error}") from error
            except (duckdb.Error, ValueError) as error:
                raise _translated(error, statement, tables) from error
        raise AssertionError("unreachable")

    def explain(
        self,
        statement: str,
        parameters: Parameters,
        tables: Sequence[TableContext],
        frames: Mapping[str, Any],
    ) -> Explanation:
        """What `sql` would read; raises as it does."""
        statement = self._check(statement)
        named = _named(statement, tables)
        try:
            with self._prepared(statement, parameters, named, frames) as (cursor, explanation):
                cursor.execute(f"EXPLAIN {statement}", parameters).fetchall()
                return explanation
        except (duckdb.Error, ValueError) as error:
            raise _translated(error, statement, tables) from error

    def relation(self, table: TableContext) -> duckdb.DuckDBPyRelation:
        """The table as of now, on a cursor of its own; its files are held until it is gone."""
        cursor = self._engine.cursor()
        pins = pin([table], self._catalog, self._visibility)
        release = self._mount(cursor, pins, {})
        relation = cursor.sql(f"FROM {quoting.identifier(table.entry.name)}")
        weakref.finalize(relation, release)
        return relation

    def connect(self, tables: Sequence[TableContext]) -> duckdb.DuckDBPyConnection:
        """A DuckDB of the caller's own, with views of the tables as of now, over Parquet."""
        con = duckdb.connect(config={"autoinstall_known_extensions": False})
        con.execute("SET GLOBAL TimeZone = 'UTC'")
        for one in pin(tables, self._catalog, self._visibility):
            table = one.table
            parts, name = _parquet_parts(one), quoting.identifier(table.entry.name)
            if one.buffered.num_rows:
                buffered = f"lakestore_buffer_{table.entry.id}"
                con.register(buffered, one.buffered)
                parts.insert(0, f"SELECT {quoting.identifiers(table.schema.names)} FROM {buffered}")
            con.execute(f"CREATE TEMP VIEW {name} AS {_union(parts, one)}")
        return con

    @contextmanager
    def _prepared(
        self,
        statement: str,
        parameters: Parameters,
        tables: Sequence[TableContext],
        frames: Mapping[str, Any],
    ) -> Iterator[tuple[duckdb.DuckDBPyConnection, Explanation]]:
        """A cursor on which the statement can run: tables pinned, pruned and mounted."""
        cursor = self._engine.cursor()
        release = None
        try:
            for name, frame in frames.items():
                cursor.register(name, _registrable(frame))
            stubs = {table.entry.id: self._stub(table) for table in tables}
            pins = pin(tables, self._catalog, self._visibility)
            # One transaction, so that now() is the same to the planner and to the query.
            cursor.execute("BEGIN")
            kept, filters = self._prune(cursor, statement, parameters, pins, stubs)
            release = self._mount(cursor, pins, kept)
            yield cursor, Explanation(_tiers(pins, kept), filters)
        finally:
            cursor.close()
            if release is not None:
                release()

    def _prune(
        self,
        cursor: duckdb.DuckDBPyConnection,
        statement: str,
        parameters: Parameters,
        pins: Sequence[TablePin],
        stubs: Mapping[int, str],
    ) -> tuple[dict[int, tuple[ColdFile, ...]], dict[str, list[list[str]]]]:
        """Cold files to read by table id, and the filters that chose them."""
        everything = {one.table.entry.id: one.cold for one in pins}
        if not any(one.cold for one in pins):
            return everything, {}
        for one in pins:
            name = quoting.identifier(one.table.entry.name)
            cursor.execute(f"CREATE TEMP VIEW {name} AS FROM {stubs[one.table.entry.id]}")
        scans = plan.pushed_filters(cursor, statement, parameters, "stubs")
        if scans is None:
            cursor.execute("ROLLBACK")
            cursor.execute("BEGIN")
            return everything, {}
        kept, filters = {}, {}
        for one in pins:
            table = one.table
            found = scans.get(stubs[table.entry.id].removeprefix("stubs."), [])
            filters[table.entry.name] = found
            kept[table.entry.id] = self._keep(one, found)
        return kept, filters

    def _stub(self, table: TableContext) -> str:
        with self._lock:
            name = self._stubs.get(table.entry.id)
            if name is None:
                name = f"stubs.t{table.entry.id}_{id(self)}"
                cursor = self._engine.cursor()
                cursor.execute("CREATE SCHEMA IF NOT EXISTS stubs")
                cursor.execute(plan.stub(table.schema, name))
                cursor.close()
                self._stubs[table.entry.id] = name
            return name

    def _keep(self, one: TablePin, scans: Sequence[Sequence[str]]) -> tuple[ColdFile, ...]:
        if not one.cold or not scans or not all(scans):
            return one.cold
        cursor = self._engine.cursor()
        try:
            with self._lock:
                known = self._statistics.get(one.table.entry.id)
                if known is None or known.files is not one.cold:
                    name = f"stubs.s{one.table.entry.id}_{id(self)}"
                    known = plan.load_statistics(cursor, one.cold, one.table.schema, name)
                    self._statistics[one.table.entry.id] = known
                return plan.keep(cursor, known, scans)
        finally:
            cursor.close()

    def _mount(
        self,
        cursor: duckdb.DuckDBPyConnection,
        pins: Sequence[TablePin],
        kept: Mapping[int, tuple[ColdFile, ...]],
    ) -> Any:
        """Make views of the pinned tables on the cursor; returns what lets their files go."""
        attached: list[Any] = []
        names = [s.name for one in pins for s in one.segments]
        names += [f.name for one in pins for f in kept.get(one.table.entry.id, one.cold)]
        self.in_use.add(names)

        def release() -> None:
            self.in_use.remove(names)
            for path in attached:
                self._engine.release(path)

        try:
            for one in pins:
                view = self._view(cursor, one, kept.get(one.table.entry.id, one.cold), attached)
                name = quoting.identifier(one.table.entry.name)
                cursor.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS {view}")
        except BaseException:
            release()
            raise
        return release

    def _view(
        self,
        cursor: duckdb.DuckDBPyConnection,
        one: TablePin,
        cold: Sequence[ColdFile],
        attached: list[Any],
    ) -> str:
        table = one.table
        columns = quoting.identifiers(table.schema.names)
        parts, parquet = [], [table.cold_url(file) for file in cold]
        if one.buffered.num_rows:
            name = f"lakestore_buffer_{table.entry.id}"
            cursor.register(name, one.buffered)
            parts.append(f"SELECT {columns} FROM {name}")
        for segment in one.segments:
            path = hot.duckdb_path(table.hot_folder, segment.name)
            try:
                alias = self._engine.attach(path) if segment.has_duckdb else None
            except StorageError:  # the DuckDB file is expendable; its Parquet twin is not
                alias = None
            if alias is None:
                parquet.append(str(table.segment_path(segment)))
            else:
                attached.append(path)
                parts.append(f"SELECT {columns} FROM {alias}.{hot.EVENTS}")
        if parquet:
            parts.append(_read_parquet(columns, parquet))
        return _union(parts, one)

    def _check(self, statement: str) -> str:
        """The statement, when it is exactly one and it reads."""
        try:
            statements = self._engine.cursor().extract_statements(statement)
        except duckdb.Error as error:
            raise InvalidInputError(_message(error)) from error
        if len(statements) != 1:
            raise InvalidInputError(
                f"sql() takes one statement, this has {len(statements)}; "
                "lake.connect() gives a DuckDB connection that runs anything"
            )
        kind = statements[0].type.name
        if kind not in ("SELECT", "EXPLAIN"):
            raise InvalidInputError(
                f"sql() only reads, and this is {kind}; "
                "lake.connect() gives a DuckDB connection that runs anything"
            )
        return str(statements[0].query).strip().rstrip(";")


def _fetch(cursor: duckdb.DuckDBPyConnection, statement: str, parameters: Parameters) -> pa.Table:
    relation = cursor.sql(statement, params=parameters)
    return relation.to_arrow_table()


def mentioned(statement: str) -> set[str]:
    """Every name that a statement may refer to, in lower case."""
    return {
        (quoted.replace('""', '"') or plain).casefold()
        for quoted, plain in _NAME.findall(statement)
    }


def _named(statement: str, tables: Sequence[TableContext]) -> list[TableContext]:
    names = mentioned(statement)
    return [table for table in tables if table.entry.name.casefold() in names]


def _read_parquet(columns: str, paths: Sequence[str]) -> str:
    return (
        f"SELECT {columns} FROM read_parquet({quoting.literals(paths)}, hive_partitioning = false)"
    )


def _parquet_parts(one: TablePin) -> list[str]:
    table = one.table
    paths = [table.cold_url(f) for f in one.cold]
    paths += [str(table.segment_path(s)) for s in one.segments]
    return [_read_parquet(quoting.identifiers(table.schema.names), paths)] if paths else []


def _union(parts: Sequence[str], one: TablePin) -> str:
    if parts:
        return " UNION ALL ".join(parts)
    nulls = ", ".join(
        f"CAST(NULL AS {plan.queried_type(c.sql_type)}) AS {quoting.identifier(c.name)}"
        for c in one.table.schema.columns
    )
    return f"SELECT {nulls} LIMIT 0"


def _tiers(
    pins: Sequence[TablePin], kept: Mapping[int, tuple[ColdFile, ...]]
) -> tuple[TierPlan, ...]:
    tiers = []
    for one in pins:
        name, cold = one.table.entry.name, kept.get(one.table.entry.id, one.cold)
        rows, size = one.buffered.num_rows, one.buffered.nbytes
        tiers.append(TierPlan(name, "buffer", 0, 0, size, size, rows))
        size = sum(s.info.bytes for s in one.segments)
        rows, count = sum(s.info.rows for s in one.segments), len(one.segments)
        tiers.append(TierPlan(name, "hot", count, count, size, size, rows))
        tiers.append(
            TierPlan(
                name,
                "cold",
                len(one.cold),
                len(cold),
                sum(f.info.bytes for f in one.cold),
                sum(f.info.bytes for f in cold),
                sum(f.info.rows for f in one.cold),
            )
        )
    return tuple(tiers)


def _registrable(frame: Any) -> Any:
    if hasattr(frame, "collect") and hasattr(frame, "collect_schema"):  # a Polars LazyFrame
        frame = frame.collect()
    if hasattr(frame, "__arrow_c_stream__") and not isinstance(frame, pa.Table):
        return pa.RecordBatchReader.from_stream(frame).read_all()
    return frame


def _message(error: BaseException) -> str:
    return str(error).strip()


def _translated(error: Exception, statement: str, tables: Sequence[TableContext]) -> Exception:
    if isinstance(error, duckdb.CatalogException) and "Table with name" in str(error):
        names = ", ".join(table.entry.name for table in tables) or "none yet"
        first = _message(error).split("\n", 1)[0]
        return NotFoundError(f"{first} The lake's tables: {names}")
    if isinstance(error, duckdb.OutOfMemoryException):
        return StorageError(f"the query needs more memory than memory_bytes allows: {error}")
    return InvalidInputError(_message(error))
