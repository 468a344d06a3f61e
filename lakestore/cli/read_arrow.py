"""Parquet and Arrow IPC files, in chunks of 65,536 rows."""

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from lakestore.cli.mapping import Options, targets
from lakestore.cli.rejects import Chunk, Rejects
from lakestore.cli.source import Source
from lakestore.coerce import FRAME_ROWS
from lakestore.errors import InvalidInputError
from lakestore.schema import TableSchema


def infer(source: Source) -> pa.Schema:
    """Names and types of the columns."""
    try:
        return _open(source)[0]
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(source, error) from error


def chunks(
    source: Source, schema: TableSchema, options: Options, rejects: Rejects
) -> Iterator[Chunk]:
    """The file's rows; the line of a row is its number, from 1.

    Raises:
        SchemaError: the columns do not fit the table.
        InvalidInputError: the file is torn, or of another format.
    """
    try:
        found, batches = _open(source)
        taken = targets(found.names, schema, options, source.name)
        first = 1
        for table in rechunk(batches):
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


def _open(source: Source) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    if source.gzipped:
        raise InvalidInputError(
            f"{source.name}: {source.format} has its own compression: gunzip it"
        )
    if source.format == "parquet":
        file = pq.ParquetFile(source.path, memory_map=True)
        return file.schema_arrow, file.iter_batches(FRAME_ROWS)
    mapped = pa.memory_map(str(source.path), "r")
    if mapped.read(6) == b"ARROW1":
        reader = ipc.open_file(mapped)
        parts = range(reader.num_record_batches)
        return reader.schema, (reader.get_batch(at) for at in parts)
    mapped.seek(0)
    stream = ipc.open_stream(mapped)
    return stream.schema, iter(stream)


def _unreadable(source: Source, error: Exception) -> InvalidInputError:
    return InvalidInputError(f"{source.name}: not a whole {source.format} file: {error}")
