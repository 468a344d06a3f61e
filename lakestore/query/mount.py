"""Mount: pinned tables as views on a cursor, over the files that a statement is to read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import duckdb

from lakestore import hot, quoting
from lakestore.columns import queried_type
from lakestore.context import TableContext
from lakestore.engine import buffered_source
from lakestore.errors import StorageError
from lakestore.filecache import Wanted
from lakestore.opensite import SiteContext
from lakestore.payloadview import payload_names
from lakestore.query.payloads import make_view
from lakestore.query.pin import FilesInUse, TablePin
from lakestore.snapshot import ColdFile
from lakestore.storage.local import require_file


class Mounts:
    """Views of pinned tables, whose files are held as long as a view may read them."""

    def __init__(self, site: SiteContext, in_use: FilesInUse) -> None:
        self._site = site
        self._engine = site.engine
        self._in_use = in_use

    @contextmanager
    def sources(
        self,
        cursor: duckdb.DuckDBPyConnection,
        pins: Mapping[str, TablePin],
        heavy: Sequence[TablePin] = (),
        *,
        test: str = "",
        columns: Sequence[str] | None = None,
        parquet_only: bool = False,
    ) -> Iterator[dict[str, str]]:
        """A SELECT of the rows of each pin, for the cursor; within the `with` no file goes.

        Args:
            heavy: pins whose payload files are to stay too.
            test: an expression; only rows that pass it are selected.
            columns: those that are selected; by default all.
        """
        where = f" WHERE {test}" if test else ""
        attached: list[tuple[Path, str]] = []
        names = [s.name for one in pins.values() for s in one.segments]
        names += [f.name for one in pins.values() for f in one.cold]
        for one in heavy:
            names += [*payload_names(one.segments), *payload_names(one.cold)]
        self._in_use.add(names)
        try:
            yield {
                name: self._source(
                    cursor,
                    f"lakestore_buffer_{number}",
                    one,
                    None if parquet_only else attached,
                    where,
                    one.table.schema.names if columns is None else columns,
                )
                for number, (name, one) in enumerate(pins.items(), 1)
            }
        finally:
            self._in_use.remove(names)
            for path, alias in attached:
                self._engine.release(path, alias)

    def mount(
        self,
        cursor: duckdb.DuckDBPyConnection,
        pins: Mapping[str, TablePin],
        heavy: Sequence[TablePin] = (),
        *,
        parquet_only: bool = False,
    ) -> Callable[[], None]:
        """Make a view of each pin on the cursor, by name; returns what lets their files go.

        Args:
            heavy: pins of which a view of payloads is wanted too: not pruned, for it is of all.
        """
        with ExitStack() as stack:
            sources = self.sources(cursor, pins, heavy, parquet_only=parquet_only)
            for name, source in stack.enter_context(sources).items():
                cursor.execute(
                    f"CREATE OR REPLACE TEMP VIEW {quoting.identifier(name)} AS {source}"
                )
            for one in heavy:
                make_view(cursor, one, self.files)
            return stack.pop_all().close

    def parquet_view(self, one: TablePin, buffered: str | None) -> str:
        """The statement of a view over Parquet alone, for a DuckDB that shares nothing with us.

        Args:
            buffered: the name that buffered rows are registered by, if there are any.
        """
        columns = quoting.identifiers(one.table.schema.names)
        parts = [f"SELECT {columns} FROM {buffered_source(buffered)}"] if buffered else []
        files = self._cold_sources(one.table, one.cold)
        files += [(s.schema_version, str(one.table.segment_path(s))) for s in one.segments]
        groups = one.table.lineage.grouped(files)
        parts += [how.read(one.table.schema.names, paths) for how, paths in groups]
        return _union(parts, one)

    def _source(
        self,
        cursor: duckdb.DuckDBPyConnection,
        buffered: str,
        one: TablePin,
        attached: list[tuple[Path, str]] | None,
        where: str,
        columns: Sequence[str],
    ) -> str:
        table = one.table
        parts, parquet = [], self._cold_sources(table, one.cold)
        if one.buffered.num_rows:
            cursor.register(buffered, one.buffered)
            shown = quoting.identifiers(columns)
            parts.append(f"SELECT {shown} FROM {buffered_source(buffered)}{where}")
        for segment in one.segments:
            path = hot.duckdb_path(table.hot_folder, segment.name)
            alias = None
            if segment.has_duckdb and attached is not None:
                with suppress(StorageError):  # the DuckDB file is expendable; its twin is not
                    alias = self._engine.attach(path)
                    attached.append((path, alias))
            if alias is None:
                parquet.append((segment.schema_version, str(table.segment_path(segment))))
            else:
                how = table.lineage.stored(segment.schema_version)
                parts.append(how.select(columns, f"{alias}.{hot.EVENTS}", where))
        for _, source in parquet:
            if not source.startswith("s3://"):
                require_file(Path(source))
        groups = table.lineage.grouped(parquet)
        parts += [how.read(columns, paths, where) for how, paths in groups]
        return _union(parts, one)

    def files(self, wanted: Sequence[Wanted]) -> list[str]:
        """What DuckDB opens for sealed files: their URLs if it can, else copies of them."""
        if self._site.reads_store:
            return [self._site.storage.url(one.key) for one in wanted]
        return [str(path) for path in self._site.files.paths(wanted)]

    def _cold_sources(self, table: TableContext, cold: Sequence[ColdFile]) -> list[tuple[int, str]]:
        """What DuckDB opens for cold files, each with the version of its rows."""
        sources = self.files([table.wanted(file) for file in cold])
        return [(file.schema_version, source) for file, source in zip(cold, sources, strict=True)]


def _union(parts: Sequence[str], one: TablePin) -> str:
    if parts:
        return " UNION ALL ".join(parts)
    nulls = ", ".join(
        f"CAST(NULL AS {queried_type(c.sql_type)}) AS {quoting.identifier(c.name)}"
        for c in one.table.schema.columns
    )
    return f"SELECT {nulls} LIMIT 0"
