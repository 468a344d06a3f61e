"""Export: rows of one snapshot → a file of the caller's, or a folder of files by day.

Order of effects, numbered as their failpoints are:

    export.1 rows staged beside the target    .2 durable    .3 in place

What is at the target is whole, or was there before: it is staged under a name of its own, and gets
the target's by one call. A crash leaves what was staged, whose name begins with a dot and ends in
`.partial`; nothing reads it, and whoever finds it may delete it.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from uuid import uuid4

import duckdb
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from lakestore import quoting
from lakestore.datafile import ROW_GROUP_BYTES, ROW_GROUP_ROWS
from lakestore.engine import duckdb_error
from lakestore.errors import InvalidInputError
from lakestore.events.filters import Filter
from lakestore.failpoint import reach
from lakestore.instances import QUIET, start
from lakestore.query.reader import EVENTS, Reader
from lakestore.storage.local import fsync_file, fsync_folder, refusals

FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".arrow": "arrow",
    ".feather": "arrow",
}
_BATCH_ROWS = 65_536
_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    rows: int
    bytes: int
    files: int


@dataclass(frozen=True)
class Target:
    """Where an export goes to."""

    path: Path
    overwrite: bool

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of Parquet files, one for each day."""
        return not self.path.suffix

    def check(self) -> None:
        """Refuse what nothing can be exported to, before anything is read.

        Raises:
            InvalidInputError: there is something, or the name tells no format.
        """
        path = self.path
        if str(path).startswith("s3:"):
            raise InvalidInputError("an export is to this machine: copy it to the store")
        if not self.is_folder and path.suffix.lower() not in FORMATS:
            raise InvalidInputError(
                f"{str(path)!r}: its name does not tell a format: use {', '.join(FORMATS)}, or no "
                "suffix for a folder of Parquet files by day"
            )
        if self.is_folder and path.exists():
            raise InvalidInputError(f"{str(path)!r} is there: name another folder, or remove it")
        self.refuse_existing()
        if path.is_dir():
            raise InvalidInputError(f"{str(path)!r} is a folder, and is to become a file")

    def refuse_existing(self) -> None:
        """Raise `InvalidInputError` when something is there that is not to be replaced."""
        if self.path.exists() and not self.overwrite:
            raise InvalidInputError(
                f"{str(self.path)!r} is there: overwrite=True (--overwrite) replaces it"
            )


@dataclass(frozen=True)
class Wanted:
    """What is exported, and where to."""

    target: Target
    filter: Filter
    columns: Sequence[str]

    @property
    def arrow(self) -> pa.Schema:
        """Of the rows."""
        fields = [self.filter.schema.arrow.field(name) for name in self.columns]
        return pa.schema([field.with_nullable(True) for field in fields])


def export(reader: Reader, wanted: Wanted, progress: Callable[[int], None]) -> Exported:
    """Write the rows of a snapshot.

    Args:
        progress: told how many rows are written.

    Raises:
        InvalidInputError: no columns; something came to be there meanwhile.
        StorageError: the disk refused.
        duckdb.Error, OSError: as `Reader.stream`.
    """
    if not wanted.columns:
        raise InvalidInputError("an export without columns has no rows")
    told = _Counted(progress)
    path = wanted.target.path
    staged = path.with_name(f".{path.name}.{uuid4().hex}.partial")
    days = _days(reader, wanted) if wanted.target.is_folder else []
    try:
        with refusals(f"cannot export to {str(path)!r}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            files = _stage(reader, wanted, days, staged, told)
            size = sum(file.stat().st_size for file in files)
            reach("export.1")
            _make_durable(staged, files)
            reach("export.2")
            _put(staged, wanted)
            reach("export.3")
    except Exception as error:
        if told.failure is not None:  # of a file of the lake, and not of the target
            raise told.failure from error
        raise
    finally:
        _discard(staged)
    return Exported(told.rows, size, len(files))


class _Counted:
    """Counts rows, and tells."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self.rows = 0
        self.failure: Exception | None = None
        """Why the rows could not be read."""
        self._tell = tell

    def counting(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The batches, each told of once it is written."""
        found = iter(batches)
        while True:
            try:
                batch = next(found, None)
            except Exception as error:
                self.failure = error
                raise
            if batch is None:
                return
            yield batch
            self.rows += batch.num_rows
            self._tell(self.rows)


def _statement(wanted: Wanted, day: date | None = None) -> tuple[str, dict[str, object]]:
    """What selects the rows, of a day if one is given, and the values of its parameters."""
    chosen, condition = quoting.identifiers(wanted.columns), wanted.filter.condition
    if day is not None:
        begins = datetime.combine(day, time(), UTC)
        window = (begins, begins + _DAY)
        schema = wanted.filter.schema
        condition += f" AND {Filter.of(schema, None, *window).condition}"
    statement = f"SELECT {chosen} FROM {EVENTS} WHERE {condition}"
    return statement, wanted.filter.bound(statement)


def _days(reader: Reader, wanted: Wanted) -> list[date]:
    """UTC days that there are rows of, in order."""
    event_time = quoting.identifier(wanted.filter.schema.event_time)
    statement = (
        f"SELECT DISTINCT CAST({event_time} AS DATE) AS day FROM {EVENTS} "
        f"WHERE {wanted.filter.condition} ORDER BY day"
    )
    days: list[date] = reader.fetch(statement, wanted.filter.bound(statement))["day"].to_pylist()
    return days


def _stage(
    reader: Reader, wanted: Wanted, days: Sequence[date], staged: Path, told: _Counted
) -> list[Path]:
    """Write what is wanted; returns the files."""
    if not wanted.target.is_folder:
        form = FORMATS[wanted.target.path.suffix.lower()]
        with reader.stream(*_statement(wanted), _BATCH_ROWS) as batches:
            _write(staged, form, wanted, told.counting(batches))
        return [staged]
    staged.mkdir()
    files = []
    for day in days:
        file = staged / f"day={day.isoformat()}" / "0.parquet"
        file.parent.mkdir()
        with reader.stream(*_statement(wanted, day), _BATCH_ROWS) as batches:
            _write(file, "parquet", wanted, told.counting(batches))
        files.append(file)
    return files


def _write(path: Path, form: str, wanted: Wanted, batches: Iterator[pa.RecordBatch]) -> None:
    """Write rows to a file; raises `StorageError`, OSError."""
    typed = (
        pa.Table.from_batches([batch]).cast(wanted.arrow) for batch in batches if batch.num_rows
    )
    if form == "parquet":
        _write_parquet(path, wanted.arrow, typed)
    elif form == "arrow":
        with pa.OSFile(str(path), "wb") as sink, ipc.new_file(sink, wanted.arrow) as writer:
            for rows in typed:
                writer.write_table(rows)
    else:
        _write_text(path, form, wanted.target.path.suffix.lower(), wanted.arrow, typed)


def _write_parquet(path: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
    held: list[pa.Table] = []
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_index=True) as writer:

        def write() -> None:
            writer.write_table(pa.concat_tables(held), row_group_size=ROW_GROUP_ROWS)
            held.clear()

        for rows in tables:
            held.append(rows)
            size = sum(one.nbytes for one in held)
            if sum(map(len, held)) >= ROW_GROUP_ROWS or size >= ROW_GROUP_BYTES:
                write()
        if held:
            write()


def _write_text(
    path: Path, form: str, suffix: str, schema: pa.Schema, tables: Iterator[pa.Table]
) -> None:
    """By DuckDB, which has a text for every type; what an instance of its own reads is streamed."""
    batches = (batch for rows in tables for batch in rows.to_batches())
    options = "FORMAT json"
    if form == "csv":
        options = "FORMAT csv, HEADER" + (", DELIMITER '\t'" if suffix == ".tsv" else "")
    with start(threads=1, python_enable_replacements=False) as con:
        con.execute("SET GLOBAL TimeZone = 'UTC'")
        con.execute(QUIET)
        con.register("answer", pa.RecordBatchReader.from_batches(schema, batches))
        try:
            con.execute(f"COPY answer TO {quoting.literal(str(path))} ({options})")
        except duckdb.Error as error:
            raise duckdb_error(f"cannot write {str(path)!r}", error) from error


def _make_durable(staged: Path, files: Sequence[Path]) -> None:
    for file in files:
        fsync_file(file)
    if staged.is_dir():
        for folder in sorted({file.parent for file in files}):
            fsync_folder(folder)
        fsync_folder(staged)


def _put(staged: Path, wanted: Wanted) -> None:
    """Give what is staged the target's name; never in the place of what came meanwhile."""
    path = wanted.target.path
    if wanted.target.is_folder:
        wanted.target.refuse_existing()
        os.rename(staged, path)  # fails where a folder with files is by now
    elif wanted.target.overwrite:
        os.replace(staged, path)
    else:
        try:
            os.link(staged, path)
        except FileExistsError:
            wanted.target.refuse_existing()
            raise
    fsync_folder(path.parent)


def _discard(staged: Path) -> None:
    if staged.is_dir():
        shutil.rmtree(staged, ignore_errors=True)
    else:
        staged.unlink(missing_ok=True)
