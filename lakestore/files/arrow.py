"""Parquet and Arrow IPC files, in chunks of 65,536 rows."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from lakestore.coerce import FRAME_ROWS
from lakestore.errors import InvalidInputError
from lakestore.files.mapping import Options, targets
from lakestore.files.rejects import Chunk, Rejects
from lakestore.files.source import Source
from lakestore.schema import TableSchema


def infer(source: Source) -> pa.Schema:
    """Names and types of the columns."""
    try:
        return _open(source)[0]
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(source, error) from error


def count(source: Source) -> int | None:
    """How many rows a file has, where it says so; raises as `infer`."""
    if source.format != "parquet":
        return None
    try:
        return int(pq.read_metadata(source.path).num_rows)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(source, error) from error


def chunks(
    source: Source,
    schema: TableSchema,
    options: Options,
    rejects: Rejects,
    rows: int = FRAME_ROWS,
    after: int = 0,
) -> Iterator[Chunk]:
    """The file's rows; the line of a row is its number, from 1.

    Args:
        rows: of each chunk.
        after: pass over so many rows, most of them unread.

    Raises:
        SchemaError: the columns do not fit the table.
        InvalidInputError: the file is torn, or of another format.
    """
    try:
        found, batches = _open(source, rows, after)
        taken = targets(found.names, schema, options, source.name)
        first = 1 + after
        for table in rechunk(batches, rows):
            chosen = table.select(list(taken)).rename_columns(list(taken.values()))
            yield Chunk(chosen, range(first, first + table.num_rows))
            first += table.num_rows
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(source, error) from error


def rechunk(batches: Iterable[pa.RecordBatch], rows: int = FRAME_ROWS) -> Iterator[pa.Table]:
    """The same rows in tables of exactly `rows`, but for the last: the same file, the same cuts."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += batch.num_rows
        while count >= rows:
            table = pa.Table.from_batches(held)
            yield table.slice(0, rows)
            held = table.slice(rows).to_batches()
            count -= rows
    if count:
        yield pa.Table.from_batches(held)


def _open(
    source: Source, rows: int = FRAME_ROWS, after: int = 0
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    if source.gzipped:
        raise InvalidInputError(
            f"{source.name}: {source.format} has its own compression: gunzip it"
        )
    if source.format == "parquet":
        file = pq.ParquetFile(source.path, memory_map=True)
        counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        first, after = _beginning(counts, after)
        groups = range(first, len(counts))
        return file.schema_arrow, _behind(file.iter_batches(rows, row_groups=groups), after)
    mapped = pa.memory_map(str(source.path), "r")
    if mapped.read(6) == b"ARROW1":
        reader = ipc.open_file(mapped)
        parts = range(reader.num_record_batches)
        return reader.schema, _behind((reader.get_batch(at) for at in parts), after)
    mapped.seek(0)
    stream = ipc.open_stream(mapped)
    return stream.schema, _behind(stream, after)


def _beginning(counts: Sequence[int], after: int) -> tuple[int, int]:
    """The first group that has a row after so many, and how many of its own are passed over."""
    for group, rows in enumerate(counts):
        if after < rows:
            return group, after
        after -= rows
    return len(counts), 0


def _behind(batches: Iterable[Any], after: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        if batch.num_rows > after:
            yield batch.slice(after)
        after = max(0, after - batch.num_rows)


def _unreadable(source: Source, error: Exception) -> InvalidInputError:
    return InvalidInputError(f"{source.name}: not a whole {source.format} file: {error}")
