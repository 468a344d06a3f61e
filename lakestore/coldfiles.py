"""Write cold files: rows sorted within each day, to files of the target size, and publish them."""

import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeVar
from uuid import uuid4

import duckdb
import numpy as np
import pyarrow as pa

from lakestore import datafile, quoting
from lakestore.catalog.records import GarbageKind
from lakestore.clock import EPOCH
from lakestore.context import TableContext
from lakestore.engine import SORT_BYTES, sorter
from lakestore.errors import ConflictError, LakestoreError, StorageError
from lakestore.idhash import NO_HASHES, Hashes, days
from lakestore.layout import ColdName
from lakestore.lineage import Lineage
from lakestore.partialfiles import Parts
from lakestore.replacement import Replacement
from lakestore.schema import TableSchema
from lakestore.settings import GIB, MIB
from lakestore.snapshot import ColdFile, FileInfo
from lakestore.storage.local import refusals, storage_error

_BATCH_ROWS = 65_536
_BATCH_BYTES = 32 * MIB
_SORT_BYTES = (SORT_BYTES, 1 * GIB, 4 * GIB)
_AT_A_TIME = 2
Done = TypeVar("Done")


@dataclass(frozen=True)
class Written:
    """A cold file that is written and checked, but has no name yet."""

    day: date
    path: Path
    info: FileInfo
    hashes: Hashes
    """Of its rows' ids, in file order."""


@dataclass(frozen=True)
class Rows:
    """Rows of some Parquet files of a table: all, or those for which a condition holds."""

    files: Sequence[tuple[int, Path]]
    """Each with the version of its schema."""
    condition: str = ""
    """A WHERE clause on the relation `sealed`."""
    relations: Mapping[str, pa.Table] = field(default_factory=dict)
    """What the condition names beside it."""
    numbered: bool = False
    """Whether `sealed` also has the columns `filename` and `file_row_number`."""
    values: Mapping[str, str] = field(default_factory=dict)
    """Expressions in the place of columns."""


@contextmanager
def workplace(table: TableContext, verb: str) -> Iterator[Path]:
    """A folder to stage files in; what cannot be removed is found by the sweep of this writer."""
    with refusals("cannot stage cold files"):
        # No TemporaryDirectory: a process forked meanwhile would delete it as it ends.
        folder = Path(mkdtemp(dir=table.site.staging, prefix=f"{verb}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def conflict_if_replaced(table: TableContext, files: Sequence[ColdFile]) -> Iterator[None]:
    """Raise `ConflictError` for what fails because another process replaced a file.

    Its vacuum may have deleted it by now.
    """
    try:
        yield
    except ConflictError:
        raise
    except Exception as error:
        try:
            live = {file.name for file in table.state(newest=True).cold}
        except LakestoreError:  # the first one says more
            raise error from error.__cause__
        if all(file.name in live for file in files):
            raise
        days = ", ".join(sorted({str(file.day) for file in files}))
        raise ConflictError(
            f"cold files of {days} were replaced meanwhile; that result stands"
        ) from error


def sorting(what: str, do: Callable[[int], Done]) -> Done:
    """What `do` makes, which sorts within the bytes of memory that it is given.

    It is done again with more when rows are so wide that these are too few.

    Raises:
        StorageError: the most are too few for `what`.
        Others: as `do`.
    """
    for memory_bytes in _SORT_BYTES:
        try:
            return do(memory_bytes)
        except duckdb.OutOfMemoryException as error:
            failure = error
    raise StorageError(f"{what} cannot be sorted in {_SORT_BYTES[-1] >> 20:,} MiB") from failure


def by_day(
    folder: Path, lineage: Lineage, rows: Rows, memory_bytes: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows by day, then in the table's sort order: (day number, rows of that day alone).

    All are as the newest version of the schema has them.

    Args:
        folder: for what a sort does not hold in memory.

    Raises:
        duckdb.OutOfMemoryException: rows so wide that some of them do not fit.
    """
    schema = lineage.schema.stored
    day = f"CAST({quoting.identifier(schema.event_time)} AS DATE)"
    order = quoting.identifiers(schema.sort)
    if schema.sort[0] != schema.event_time:
        order = f"{day}, {order}"
    width = max(datafile.row_bytes(path) for _, path in rows.files)
    files = [(version, str(path)) for version, path in rows.files]
    source = lineage.relation(files, numbered=rows.numbered)
    with sorter(folder / "spill", memory_bytes) as con:
        for name, relation in rows.relations.items():
            con.register(name, relation)
        named = [(rows.values.get(name), quoting.identifier(name)) for name in schema.names]
        chosen = ", ".join(f"{made} AS {name}" if made else name for made, name in named)
        reader = con.sql(
            f"SELECT {chosen} FROM {source} AS sealed {rows.condition} ORDER BY {order}"
        ).to_arrow_reader(max(1, min(_BATCH_ROWS, _BATCH_BYTES // width)))
        for batch in _until_out_of_memory(reader):
            typed = pa.Table.from_batches([batch]).cast(schema.arrow).to_batches()[0]
            yield from _split(typed, schema)


def _split(batch: pa.RecordBatch, schema: TableSchema) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Pieces of a batch, each of one day."""
    numbers = days(batch.column(schema.event_time))
    borders = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), batch.num_rows]
    for start, end in itertools.pairwise(borders):
        yield int(numbers[start]), batch.slice(start, end - start)


def _until_out_of_memory(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """The batches; DuckDB's lack of memory, which Arrow hands on as an OSError, as what it is."""
    try:
        yield from reader
    except (OSError, pa.ArrowException) as error:
        if "Out of Memory" in str(error):
            raise duckdb.OutOfMemoryException(str(error)) from error
        raise


def write(
    folder: Path,
    schema: TableSchema,
    footer: Mapping[str, Any],
    rows: Iterable[tuple[int, pa.RecordBatch]],
    target_bytes: int,
    *,
    ending: Callable[[], Mapping[str, Any]] = dict,
    at_least_of: date | None = None,
) -> Iterator[Written]:
    """Write rows to files in `folder`, one for each day, and more past the target size.

    Their footers number them as parts, and that of the last says how many there are: files that
    are not all there are nothing to a rebuild.

    Args:
        footer: what each file says of itself.
        rows: as `by_day` gives them.
        ending: what the last one says besides.
        at_least_of: where there are no rows, there is one file without any, of this day.

    Raises:
        StorageError: the disk refused.
        CorruptionError: read back, a file does not hold what was written.
    """
    writer: datafile.DataFileWriter | None = None
    path, day, part = folder, 0, -1
    hashes: list[Hashes] = []

    def begin(number: int) -> datafile.DataFileWriter:
        nonlocal path, day, hashes, part
        path, day, hashes = folder / f"{uuid4().hex}.parquet", number, []
        part += 1
        return datafile.DataFileWriter(path, schema, footer, bloom=True)

    def finish(**more: object) -> Iterator[Written]:
        if writer is not None:
            info = writer.close(part=part, **more)
            found = np.concatenate([NO_HASHES, *hashes])
            yield Written(EPOCH.date() + timedelta(days=day), path, info, found)

    try:
        for number, batch in rows:
            full = writer is not None and writer.bytes >= target_bytes
            if writer is None or number != day or full:
                yield from finish()
                writer = begin(number)
            hashes.append(writer.write(batch))
        if writer is None and at_least_of is not None:
            writer = begin((at_least_of - EPOCH.date()).days)
        yield from finish(parts=part + 1, **ending())
    except OSError as error:
        raise storage_error("cannot write cold files", error) from error


def write_parts(
    folder: Path,
    schema: TableSchema,
    footer: Mapping[str, Any],
    parts: Sequence[tuple[int, pa.Table, Hashes]],
    ending: Mapping[str, Any],
) -> list[Written]:
    """Write rows that are in memory to files in `folder`, some at a time, the long ones first.

    Args:
        parts: of each file the number of its day, its rows in order, and the hashes of their ids.
        footer, ending: as in `write`.

    Raises: as `write`.
    """

    def write_one(part: int) -> Written:
        day, rows, hashes = parts[part]
        path = folder / f"{uuid4().hex}.parquet"
        more = {"parts": len(parts), **ending} if part == len(parts) - 1 else {}
        writer = datafile.DataFileWriter(path, schema, footer, bloom=True)
        try:
            at = 0
            for batch in rows.to_batches():
                writer.write(batch, hashes[at : at + batch.num_rows])
                at += batch.num_rows
            info = writer.close(part=part, **more)
        except BaseException:
            writer.abandon()
            raise
        return Written(EPOCH.date() + timedelta(days=day), path, info, hashes)

    longest_first = sorted(range(len(parts)), key=lambda part: -parts[part][1].num_rows)
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        try:
            written = dict(zip(longest_first, pool.map(write_one, longest_first), strict=True))
        except OSError as error:
            raise storage_error("cannot write cold files", error) from error
    return [written[part] for part in range(len(parts))]


def named(table: TableContext, written: Written, first: int, last: int, part: int) -> ColdFile:
    """The cold file that a written one becomes; `first` and `last` are 0 when it is of no seal."""
    site = table.site.catalog.site
    sha12 = written.info.sha256[:12]
    name = str(ColdName(written.day, site, first, last, part, sha12, table.cold.partition))
    return ColdFile(name, written.day, first, last, table.entry.schema_version, written.info)


def publish(
    table: TableContext,
    files: Sequence[tuple[ColdFile, Written]],
    folder: Path,
    parts: Parts,
    then: Callable[[], None],
) -> None:
    """Give files their names, some at a time, for a disk and a store make one wait.

    Args:
        folder: to stage in.
        parts: partials of what they were made from.
        then: called after each.

    Raises:
        StorageError: one was not published.
    """

    def publish_one(named: tuple[ColdFile, Written]) -> None:
        _publish(table, *named, folder, parts)
        then()

    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        for _ in pool.map(publish_one, files):  # what is not begun when a failure is met is left
            pass


def _publish(
    table: TableContext, file: ColdFile, written: Written, folder: Path, parts: Parts
) -> None:
    """Give a file its name, its partials before it, and a copy of it to the cache."""
    table.site.files.put(table.wanted(file), written.path)
    table.partials.files.put(file, written.path, folder, parts)
    key = table.cold_key(file)
    if (
        not table.site.storage.put_new(key, written.path)
        and table.site.storage.size(key) != file.info.bytes
    ):
        raise StorageError(f"{key!r} exists and has another size; nothing was committed")


def replace(
    table: TableContext,
    replacement: Replacement,
    written: Sequence[Written],
    garbage: Mapping[GarbageKind, Sequence[str]],
) -> None:
    """Commit published files in the place of others, and bring caches of ids up to date.

    Args:
        written: what the replacement adds, as it was written.
        garbage: files that nobody will name if another process was first.

    Raises: as `ColdTable.replace`.
    """
    try:
        table.cold.replace(replacement)
    except ConflictError:
        with table.site.catalog.commit() as commit:
            for kind, names in garbage.items():
                commit.condemn(table.entry.id, kind, names)
        raise
    for file, one in zip(replacement.added, written, strict=True):
        table.file_ids.remember(file.name, one.hashes)
    for file in replacement.removed:
        table.file_ids.forget(file.name)
