"""Chunks: so many rows of the sources as fit in memory, as the table takes them.

A source is read from its beginning to its end, always in the same order, so how many of its rows
were loaded says which. Where a chunk ends is then nobody's business, and may depend on memory.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from lakestore.coerce import to_batches
from lakestore.errors import InvalidInputError, SchemaError
from lakestore.policy import to_buffered
from lakestore.schema import TableSchema
from lakestore.settings import MIB

CHUNK_ROWS = 1 << 20
CHUNK_BYTES = 96 * MIB
"""Two chunks are in memory at a time, and one of them once more while it is sorted."""


class Fitting(list[pa.RecordBatch]):
    """Batches that have been made to fit the table already."""


@dataclass(frozen=True)
class Source:
    """Something that is read from its beginning to its end: a file, or a stream."""

    name: str
    """What the user calls it."""
    producer: str
    """Under which its rows are accepted, once; empty for one that nobody can name again."""
    read: Callable[[int], Iterator[Any]]
    """Its rows but for so many at the beginning: pieces in any form that can be appended."""
    rows: int | None = None
    bytes: int | None = None


@dataclass
class Chunk:
    """Rows that are loaded by one commit."""

    batches: list[pa.RecordBatch] = field(default_factory=list)
    """In the form that a buffer holds."""
    rows: int = 0
    bytes: int = 0
    sent: dict[str, int] = field(default_factory=dict)
    """How many rows of each source are loaded with it, and before."""
    finished: list[Source] = field(default_factory=list)
    """Sources that end in it."""

    def take(self, batches: Iterable[pa.RecordBatch], producer: str, through: int) -> None:
        """Take more rows of a source, which go up to row `through` of it."""
        for batch in batches:
            self.batches.append(batch)
            self.rows += batch.num_rows
            self.bytes += batch.nbytes
        if producer:
            self.sent[producer] = through

    @property
    def is_full(self) -> bool:
        """Whether it is time to load it."""
        return self.rows >= CHUNK_ROWS or self.bytes >= CHUNK_BYTES


def chunks(
    sources: Iterable[Source], known: Mapping[str, int], schema: TableSchema
) -> Generator[Chunk, None, None]:
    """The rows of the sources that were not loaded yet.

    Args:
        known: how many rows of a source were, by producer.
        schema: the table's, in the form that an append takes.

    Raises:
        SchemaError: a value does not fit; names source, row, column and value.
    """
    chunk = Chunk()
    for source in sources:
        row = known.get(source.producer, 0)
        for piece in _pieces(source, row):
            batches = _fitting(piece, schema, source, row)
            row += sum(batch.num_rows for batch in batches)
            if batches:
                chunk.take(batches, source.producer, row)
            if chunk.is_full:
                yield chunk
                chunk = Chunk()
        chunk.finished.append(source)
    yield chunk


def _pieces(source: Source, after: int) -> Iterator[Any]:
    """What the source gives; raises `InvalidInputError` where it is damaged."""
    try:
        yield from source.read(after)
    except pa.ArrowException as error:
        raise InvalidInputError(f"{source.name}: cannot be read: {error}") from error


def _fitting(piece: Any, schema: TableSchema, source: Source, row: int) -> list[pa.RecordBatch]:
    try:
        batches = piece if isinstance(piece, Fitting) else to_batches(piece, schema)
        return [to_buffered(batch, schema) for batch in batches]
    except SchemaError as error:
        raise SchemaError(f"{source.name}, after row {row:,}: {error}") from error
