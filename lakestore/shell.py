"""`lake.duckdb`: views for any DuckDB shell, with explicit lists of Parquet files.

It is made anew after each publish and put in place by a rename, so a shell sees exactly one
snapshot: two globs over a changing lake doubled rows in every read that was tried. Only Parquet
is listed, hot and cold: `read_duckdb()` gave NULL for the fields of structs (DuckDB 1.5). Of a lake
in a store the cold tier alone is listed, for the hot one is on this host. Beside each table are
views of its rollups, `<table>_rollup_<name>`: of partials where there are some, else of rows.
Failpoints: views.1 lock taken    .2 file staged    .3 put in place
"""

import fcntl
import io
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC
from uuid import uuid4

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from lakestore import datafile, quoting, rollup
from lakestore.context import TableContext, states
from lakestore.document import Rollup
from lakestore.errors import StorageError
from lakestore.failpoint import reach
from lakestore.layout import VIEWS_FILE, schema_key
from lakestore.opensite import SiteContext
from lakestore.payloadview import hot_paths, payload_names, select, view_name
from lakestore.schema import TableSchema
from lakestore.snapshot import ColdFile, Segment, TableState
from lakestore.storage.local import discard, refusals, storage_error
from lakestore.versions import take_up

_PATIENCE_S = 2.0


def publish(site: SiteContext, list_tables: Callable[[], Sequence[TableContext]]) -> None:
    """Make `lake.duckdb` show what is published now.

    Raises:
        StorageError: the disk refused; the older file stands.
    """
    shown = -1
    while shown < site.catalog.version():
        with _turn(site):
            shown = _publish(site, list_tables)


@contextmanager
def _turn(site: SiteContext) -> Iterator[None]:
    """Hold `views.lock`: one process at a time makes `lake.duckdb`, or an older could come last.

    A process that was stopped while it holds the lock is passed by: what it puts in place when it
    goes on is older for a moment, for it looks again.
    """
    path = site.layout.local / "views.lock"
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise storage_error(f"cannot open {str(path)!r}", error) from error
    try:
        patience = time.monotonic() + _PATIENCE_S
        while not _locked(lock) and time.monotonic() < patience:
            time.sleep(0.002)
        reach("views.1")
        yield
    finally:
        os.close(lock)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _publish(site: SiteContext, list_tables: Callable[[], Sequence[TableContext]]) -> int:
    """Make `lake.duckdb`; returns the version of the catalog that it shows at least."""
    version = site.catalog.version()
    tables = list_tables()
    published = states(site, tables)
    tables = [take_up(table, published[table.entry.id].schema_version) for table in tables]
    staged = site.staging / f"views-{uuid4().hex}.duckdb"
    names = {table.entry.name.casefold() for table in tables}

    def fill(cursor: duckdb.DuckDBPyConnection, alias: str) -> None:
        for table in tables:
            view = f"{alias}.{quoting.identifier(table.entry.name)}"
            cursor.execute(f"CREATE VIEW {view} AS {_view(table, published[table.entry.id])}")
            if table.schema.has_references and view_name(table.entry.name).casefold() not in names:
                view = f"{alias}.{quoting.identifier(view_name(table.entry.name))}"
                of_payload = _payload_urls(table, published[table.entry.id])
                cursor.execute(f"CREATE VIEW {view} AS {select(table.accepts, of_payload)}")
        for name, (table, one) in _rollup_views(tables).items():
            _create_rollup_view(
                cursor, f"{alias}.{quoting.identifier(name)}", table, published[table.entry.id], one
            )
        cursor.execute(f"CREATE VIEW {alias}._lake AS {_facts(site, published)}")

    try:
        try:
            if site.storage.remote:
                site.engine.build_over(_empty_files(tables, published), staged, fill)
            else:
                site.engine.build(staged, fill)
        except duckdb.Error as error:
            raise StorageError(f"cannot make {VIEWS_FILE}: {error}") from error
        reach("views.2")
        site.storage.replace(VIEWS_FILE, staged)
        reach("views.3")
    finally:
        discard(staged)
    return version


def _view(table: TableContext, state: TableState) -> str:
    names = table.schema.names
    groups = table.lineage.grouped(_with_empty(table, _listed(table, state)))
    return " UNION ALL ".join(how.read(names, paths) for how, paths in groups)


def _with_empty(
    table: TableContext, files: Mapping[str, Segment | ColdFile]
) -> list[tuple[int, str]]:
    """What a view reads: the zero-row file of the newest version first, then the files."""
    listed = [(file.schema_version, url) for url, file in files.items()]
    return [(table.entry.schema_version, _empty_url(table)), *listed]


def _listed(table: TableContext, state: TableState) -> dict[str, Segment | ColdFile]:
    """The files that a view lists, by what a shell opens."""
    files: dict[str, Segment | ColdFile] = {table.cold_url(file): file for file in state.cold}
    if not table.site.storage.remote:  # else nobody but this host could open them
        files |= {str(table.segment_path(one).absolute()): one for one in state.hot}
    return files


def _rollup_views(tables: Sequence[TableContext]) -> dict[str, tuple[TableContext, Rollup]]:
    """A view for each rollup, but where a table has its name, or a table's payloads."""
    taken = {table.entry.name.casefold() for table in tables}
    heavy = [table for table in tables if table.schema.has_references]
    taken |= {view_name(table.entry.name).casefold() for table in heavy}
    views = {}
    for table in tables:
        for one in table.schema.document.rollups:
            name = f"{table.entry.name}_rollup_{one.name}"
            if name.casefold() not in taken:
                views[name] = (table, one)
                taken.add(name.casefold())
    return views


def _create_rollup_view(
    cursor: duckdb.DuckDBPyConnection,
    view: str,
    table: TableContext,
    state: TableState,
    one: Rollup,
) -> None:
    """A view of the partials of exactly the files that the table's view lists.

    Of those without, and of all when a damaged one keeps the view from being made, of their rows.
    """
    files = _listed(table, state)
    urls = {url: table.partials.files.url(one, file) for url, file in files.items()}
    partials = [partial for partial in urls.values() if partial is not None]
    without = [url for url, partial in urls.items() if partial is None]

    def rows_of(paths: Sequence[str]) -> str:
        listed = {path: files[path] for path in paths}
        source = table.lineage.relation(_with_empty(table, listed))
        return rollup.partial_sql(one, table.schema, source)

    names = rollup.arrow_schema(one, table.schema).names
    parts = [f"SELECT {quoting.identifiers(names)} FROM {_parquet(partials)}"] if partials else []
    try:
        query = " UNION ALL ".join([*parts, rows_of(without)])
        cursor.execute(f"CREATE VIEW {view} AS {query}")
    except duckdb.Error:
        cursor.execute(f"CREATE VIEW {view} AS {rows_of(list(files))}")


def _parquet(paths: Sequence[str]) -> str:
    return f"read_parquet({quoting.literals(paths)}, hive_partitioning = false)"


def _payload_urls(table: TableContext, state: TableState) -> list[str]:
    """What other engines open for the payload files of a table, and one of no rows first."""
    storage = table.site.storage
    urls = [storage.url(table.payload_key(name)) for name in payload_names(state.cold)]
    if not storage.remote:
        urls += hot_paths(table, state.hot)
    return [_empty_url(table, "payload.parquet"), *urls]


def _empty_url(table: TableContext, suffix: str = "parquet") -> str:
    entry = table.entry
    return table.site.storage.url(schema_key(entry.folder, entry.schema_version, suffix))


def _empty_schemas(table: TableContext) -> dict[str, TableSchema]:
    """Of what a table's zero-row files are, by the ends of their names."""
    if not table.schema.has_references:
        return {"parquet": table.schema}
    return {"parquet": table.schema, "payload.parquet": table.accepts.payload_file}


def _empty_files(
    tables: Sequence[TableContext], published: dict[int, TableState]
) -> dict[str, bytes]:
    """What the first file of each list looks like, without asking the store."""
    files = {}
    for table in tables:
        for suffix, schema in _empty_schemas(table).items():
            files[_empty_url(table, suffix)] = _empty(schema.arrow)
        listed = [(f.schema_version, f) for f in published[table.entry.id].cold]
        for how, group in table.lineage.grouped(listed):
            if not how.is_plain:  # the first of each list is opened, and of a rollup's any may be
                older = _empty(table.lineage.stored_in(group[0].schema_version).arrow)
                files |= {table.cold_url(file): older for file in group}
        for one in table.schema.document.rollups:
            arrow = rollup.arrow_schema(one, table.schema)
            urls = (table.partials.files.url(one, file) for file in published[table.entry.id].cold)
            first = next(filter(None, urls), None)
            files |= {first: _empty(arrow)} if first is not None else {}
    return files


def _empty(schema: pa.Schema) -> bytes:
    sink = io.BytesIO()
    pq.write_table(schema.empty_table(), sink)
    return sink.getvalue()


def _facts(site: SiteContext, published: dict[int, TableState]) -> str:
    """Generation, rows and publish time as literals: what this very file shows."""
    rows, version = 0, 0
    for state in published.values():
        version = max(version, state.version)
        rows += sum(f.info.rows for f in state.cold)
        rows += 0 if site.storage.remote else sum(s.info.rows for s in state.hot)
    now = site.clock.now().astimezone(UTC).isoformat()
    return (
        f"SELECT {version}::BIGINT AS generation, {rows}::BIGINT AS n_rows, "
        f"TIMESTAMPTZ {quoting.literal(now)} AS published_at"
    )


def write_empty(table: TableContext) -> None:
    """Publish the zero-row files that keep the views of an empty table well-formed."""
    staged = table.site.staging / f"{uuid4().hex}.parquet"
    footer = table.footer(tier="schema", document=table.schema.text)
    if not table.lineage.is_single:
        footer["versions"] = list(table.lineage.versions)  # a rebuild reads which it was made from
    for suffix, schema in _empty_schemas(table).items():
        key = schema_key(table.entry.folder, table.entry.schema_version, suffix)
        try:
            with refusals(f"cannot write {str(staged)!r}"):
                datafile.write(staged, schema, (), footer)
            table.site.storage.put_new(key, staged)
        finally:
            staged.unlink(missing_ok=True)
