"""Files of partials: made from a data file's rows, kept beside it, read back.

All of them are caches: one that is missing, damaged, or of another definition is made again. Those
of cold files are siblings in the lake's root, for every site and shell; those of segments are
this site's, and so are copies, and partials of files whose makers made none.
Failpoints: rollup.1 rows aggregated    .2 file written    .3 put in its place
"""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from lakestore import grouping, partialfile, quoting, rollup
from lakestore.document import BUCKET, COUNT, Rollup
from lakestore.engine import Engine
from lakestore.errors import CorruptionError, LakestoreError
from lakestore.failpoint import reach
from lakestore.filecache import FileCache, Wanted
from lakestore.grouping import Binner, Columns, FileColumns
from lakestore.layout import PartialName, data_prefix, rollups_prefix
from lakestore.lineage import Lineage
from lakestore.snapshot import ColdFile, Segment
from lakestore.storage import Storage
from lakestore.storage.local import discard, make_folder
from lakestore.storage.s3 import S3Storage

log = logging.getLogger("lakestore")
DataFile = Segment | ColdFile
FAILURES = (LakestoreError, duckdb.Error, pa.ArrowException, OSError, ValueError)
"""What may go wrong with a cache."""
Parts = Mapping[str, pa.Table]
"""Partials of several files together, by rollup."""
_NO_PARTS: Parts = MappingProxyType({})
_PARTS_ROWS = 500_000
"""Partials of so many rows are not read to make others: it would take 100 MB."""


class PartialFiles:
    """The partials of one table's files."""

    def __init__(
        self,
        lineage: Lineage,
        folder: str,
        local: Path,
        hot: Path,
        storage: Storage,
        files: FileCache,
        engine: Engine,
        *,
        reads_store: bool,
        writes: bool,
    ) -> None:
        """The partials of the table in `folder`.

        Args:
            local: where this site keeps partials.
            hot: where its segments are.
            reads_store: whether DuckDB opens the store's objects by their URLs.
            writes: whether partials are kept.
        """
        self._lineage = lineage
        self.schema = schema = lineage.schema.stored
        self.rollups = schema.document.rollups
        self._definitions = {one.name: rollup.fingerprint(one, schema) for one in self.rollups}
        self._types = {one.name: rollup.arrow_schema(one, schema) for one in self.rollups}
        self._folder = folder
        self._local = local
        self._hot = hot
        self._storage = storage
        self._files = files
        self._engine = engine
        self._binner = Binner(engine.aggregated)
        self._reads_store = reads_store
        self._writes = writes
        self._seen: dict[str, bool] = {}  # of a store's siblings: whether they are there

    def of_files(self, files: Sequence[DataFile]) -> Parts:
        """Partials of files that are about to become others, where all have theirs."""
        parts: dict[str, pa.Table] = {}
        for one in self.rollups:
            tables = [self._types[one.name].empty_table()]
            for file in files if sum(map(len, parts.values())) < _PARTS_ROWS else ():
                read = self.read(one, file)
                if read is None:
                    break
                tables.append(read)
            else:
                parts[one.name] = pa.concat_tables(tables)
        return parts

    def keep(self, segment: Segment, rows: pa.Table, parts: Parts = _NO_PARTS) -> None:
        """Make the partials of a segment just published, of its rows; a failure leaves none.

        Args:
            parts: of the segments that it was merged from.
        """
        columns = Columns(rows)
        for one in self.rollups:
            with _expendable(one, segment):
                made = self._merged(one, segment, parts.get(one.name))
                if made is None:
                    made = self._made(one, segment, columns, "rows", rows)
                self._keep(one, segment, made)

    def put(self, file: ColdFile, path: Path, staging: Path, parts: Parts = _NO_PARTS) -> None:
        """Make the partials of a cold file about to be listed; a failure leaves none.

        Args:
            path: where the file is staged.
            staging: a folder for theirs.
            parts: of the files that it was made from.
        """
        keys = dict.fromkeys(name for one in self.rollups for name in one.by)
        with closing(FileColumns(path, file.info.rows, keys)) as columns:
            for one in self.rollups:
                with _expendable(one, file):
                    made = self._merged(one, file, parts.get(one.name))
                    if made is None:
                        made = self._made(one, file, columns, _parquet(path))
                    self._put(one, file, made, staging / f"{uuid4().hex}.parquet")

    def _put(self, one: Rollup, file: ColdFile, made: pa.Table, staged: Path) -> None:
        key = self.key(one, file)
        place = functools.partial(self._storage.put_new, key, staged)
        self._write(one, file, made, staged, place)
        if self._storage.remote:
            self._seen[key] = True
            self._keep(one, file, made)

    def read(self, one: Rollup, file: DataFile) -> pa.Table | None:
        """A file's partial, if it has one that is its own."""
        with suppress(*FAILURES):  # such as a name by another engine that is no key of ours
            return self._found(one, file)
        return None

    def _found(self, one: Rollup, file: DataFile) -> pa.Table | None:
        for path in self._paths(one, file):
            partial = self.checked(one, file, path)
            if partial is not None:
                return partial
        if isinstance(file, ColdFile) and isinstance(self._storage, S3Storage):
            return self._fetched(one, file, self._local / self.name(one, file).flat)
        return None

    def _paths(self, one: Rollup, file: DataFile) -> list[Path]:
        """Where a file's partial may be on this machine."""
        paths = [self._local / self.name(one, file).flat]
        if isinstance(file, ColdFile) and not isinstance(self._storage, S3Storage):
            paths.insert(0, Path(self._storage.url(self.key(one, file))))
        return paths

    def read_all(self, one: Rollup, files: Sequence[DataFile]) -> list[pa.Table | None]:
        """As `read`; of a store, several at a time."""
        if not isinstance(self._storage, S3Storage):
            return [self.read(one, file) for file in files]
        by_name = {file.name: file for file in files}
        return list(self._storage.each(lambda name: self.read(one, by_name[name]), list(by_name)))

    def checked(self, one: Rollup, file: DataFile, path: Path) -> pa.Table | None:
        """What a file holds, when it is that partial."""
        partial = partialfile.read(path, self._types[one.name], self.footer(one, file))
        return partial if partial is not None and self._counts(file, partial) else None

    def intact(self, one: Rollup, file: DataFile) -> Path | None:
        """Where a file's partial is on this machine, whole; None when it is nowhere."""
        with suppress(*FAILURES):
            for path in self._paths(one, file):
                if partialfile.is_intact(path, self._types[one.name], self.footer(one, file)):
                    return path
        return None

    def make(self, one: Rollup, file: DataFile) -> pa.Table | None:
        """A file's partial, made from its rows and kept; None when its rows cannot be had."""
        partial = None
        with _expendable(one, file):
            source = self._lineage.relation([(file.schema_version, self._source(file))])
            self._refuse_nulls(one, file, source)
            partial = self._scanned(one, file, source)
            if self._writes:
                self._keep(one, file, partial)
        return partial

    def name(self, one: Rollup, file: DataFile) -> PartialName:
        """What a file's partial is called."""
        return PartialName(file.name, one.name, self._definitions[one.name])

    def key(self, one: Rollup, file: ColdFile) -> str:
        """The key of a cold file's sibling."""
        return rollups_prefix(self._folder) + str(self.name(one, file))

    def url(self, one: Rollup, file: DataFile) -> str | None:
        """What a shell opens for a file's partial; None when there is none for it."""
        if isinstance(file, Segment) or not self._storage.remote:
            paths = [self._local / self.name(one, file).flat]
            if isinstance(file, ColdFile):
                paths.insert(0, Path(self._storage.url(self.key(one, file))))
            return next((str(path.absolute()) for path in paths if path.is_file()), None)
        key = self.key(one, file)
        if not self._seen:
            self._seen = dict.fromkeys(self._storage.list(rollups_prefix(self._folder)), True)
        if key not in self._seen:
            self._seen[key] = self._storage.size(key) is not None
        return self._storage.url(key) if self._seen[key] else None

    def footer(self, one: Rollup, file: DataFile) -> Mapping[str, Any]:
        """What a file's partial says of itself."""
        return {
            "format": 1,
            "tier": "rollup",
            "rollup": one.name,
            "definition": self._definitions[one.name],
            "of": file.info.sha256 or f"{file.name} {file.info.bytes}",
        }

    def _made(
        self,
        one: Rollup,
        file: DataFile,
        columns: Columns,
        source: str,
        rows: pa.Table | None = None,
    ) -> pa.Table:
        """The partial of a file that is written, beside appends and queries.

        Args:
            source: the same rows for DuckDB, which calls those in memory `rows`.
        """
        partial = self._grouped(one, columns)
        if partial is not None:
            return self._settled(one, file, partial)
        try:
            return self._settled(one, file, self._engine.aggregated(self._query(one, source), rows))
        except duckdb.OutOfMemoryException:
            if rows is not None:
                raise
            return self._scanned(one, file, source)

    def _merged(self, one: Rollup, file: DataFile, parts: pa.Table | None) -> pa.Table | None:
        """The partial of a file, of those of the segments whose rows it holds.

        None when it does not hold all of them, of its day: some were known by then, or there is
        more than one file of the day.
        """
        if parts is None:
            return None
        if isinstance(file, ColdFile) and file.day is not None:
            start = datetime.combine(file.day, time(), UTC)
            ends = (start, start + timedelta(days=1))
            first, end = (pa.scalar(moment, parts.field(BUCKET).type) for moment in ends)
            buckets = parts.column(BUCKET)
            within = pc.and_(pc.greater_equal(buckets, first), pc.less(buckets, end))
            parts = parts.filter(within)
        if (pc.sum(parts.column(COUNT)).as_py() or 0) != file.info.rows:
            return None
        partial = grouping.merged(one, self.schema, parts)
        return None if partial is None else self._settled(one, file, partial)

    def _grouped(self, one: Rollup, columns: Columns) -> pa.Table | None:
        """The partial by numpy; None when it is left to DuckDB."""
        try:
            return grouping.partial(one, self.schema, columns, self._binner)
        except duckdb.OutOfMemoryException:
            return None

    def _scanned(self, one: Rollup, file: DataFile, source: str) -> pa.Table:
        """The partial of a file, with all the memory that queries have."""
        with self._engine.cursor() as cursor:
            return self._settled(one, file, cursor.sql(self._query(one, source)).to_arrow_table())

    def _refuse_nulls(self, one: Rollup, file: DataFile, source: str) -> None:
        """Leave a file to the scan, when another engine wrote nulls where there should be none."""
        tests = [f"{quoting.identifier(c)} IS NULL" for c in rollup.uncounted(one, self.schema)]
        if file.info.sha256 or not tests:  # ours has none
            return
        with self._engine.cursor() as cursor:
            query = f"SELECT 1 FROM {source} WHERE {' OR '.join(tests)} LIMIT 1"
            if cursor.execute(query).fetchall():
                raise CorruptionError(f"{file.name!r} has nulls in a column declared NOT NULL")

    def _query(self, one: Rollup, source: str) -> str:
        keys = ", ".join(str(i + 1) for i in range(1 + len(one.by)))
        return f"{rollup.partial_sql(one, self.schema, source)} ORDER BY {keys}"

    def _settled(self, one: Rollup, file: DataFile, partial: pa.Table) -> pa.Table:
        """What was made, in the partial's types; refused when a sum is beyond them."""
        partial = partial.combine_chunks().cast(self._types[one.name])
        partial.validate(full=True)  # DuckDB 1.5 lets a sum of 39 digits pass
        if not self._counts(file, partial):
            raise CorruptionError(f"{file.name!r} does not hold {file.info.rows:,} rows")
        reach("rollup.1")
        return partial

    def _counts(self, file: DataFile, partial: pa.Table) -> bool:
        known = bool(file.info.sha256)  # other engines need not say how many rows there are
        total = pc.sum(partial.column(COUNT)).as_py() or 0
        return total == file.info.rows or not known

    def _keep(self, one: Rollup, file: DataFile, partial: pa.Table) -> None:
        """Without an fsync, because a damaged one is noticed when it is read."""
        make_folder(self._local)
        path = self._local / self.name(one, file).flat
        staged = path.with_name(f".{uuid4().hex}")
        self._write(one, file, partial, staged, lambda: staged.replace(path))

    def _write(
        self,
        one: Rollup,
        file: DataFile,
        partial: pa.Table,
        staged: Path,
        place: Callable[[], object],
    ) -> None:
        try:
            # A segment is sealed soon, and a flush waits for no bytes; a cold file's is for good.
            codec = "lz4" if isinstance(file, Segment) else "zstd"
            partialfile.write(staged, partial, self.footer(one, file), codec=codec)
            reach("rollup.2")
            place()
            reach("rollup.3")
        finally:
            discard(staged)

    def _fetched(self, one: Rollup, file: ColdFile, local: Path) -> pa.Table | None:
        """A sibling in a store; it is kept here as it is."""
        staged = local.with_name(f".{uuid4().hex}")
        try:
            data = self._storage.read(self.key(one, file))
            make_folder(self._local)
            staged.write_bytes(data)
            partial = self.checked(one, file, staged)
            if partial is not None and self._writes:
                staged.replace(local)
            return partial
        except FAILURES:
            return None
        finally:
            discard(staged)

    def _source(self, file: DataFile) -> str:
        """What DuckDB opens for a data file."""
        if isinstance(file, Segment):
            return str(self._hot / file.name)
        key = data_prefix(self._folder) + file.name
        if self._reads_store:
            return self._storage.url(key)
        return str(self._files.path(Wanted(key, file.info.bytes, file.info.sha256)))


@contextmanager
def _expendable(one: Rollup, file: DataFile) -> Iterator[None]:
    """Do without a partial, when it cannot be made."""
    try:
        yield
    except FAILURES as error:
        log.warning("no partial %r of %r: %s", one.name, file.name, error)


def _parquet(path: str | Path) -> str:
    return f"read_parquet({quoting.literals([str(path)])}, hive_partitioning = false)"


def forget(folder: Path, files: Iterable[str]) -> None:
    """Delete the partials that a site keeps of files that are gone."""
    stems = {file.removesuffix(".parquet").replace("/", "-") for file in files}
    for path in folder.glob("*.parquet"):
        if path.name.split(".")[0] in stems:
            path.unlink(missing_ok=True)
