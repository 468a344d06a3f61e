"""Chunks: so many rows of the sources as fit in memory, as the table takes them.

A source is read from its beginning to its end, always in the same order, so how many of its rows
were loaded says which. Where a chunk ends is then nobody's business, and may depend on memory.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from lakestore.coerce import to_batches
from lakestore.context import TableContext
from lakestore.deadletters import Origin, sift_all
from lakestore.errors import InvalidInputError, SchemaError
from lakestore.files.rejects import Reject
from lakestore.load.fresh import Fresh
from lakestore.naming import NewColumnsError
from lakestore.policy import to_buffered
from lakestore.schema import TableSchema
from lakestore.settings import MIB

CHUNK_ROWS = 1 << 20
CHUNK_BYTES = 96 * MIB
"""Two chunks are in memory at a time, and one of them once more while it is sorted."""


@dataclass
class Target:
    """The table that rows are made to fit, in a version of its schema that they may change."""

    table: TableContext
    evolve: Callable[[Mapping[str, str]], TableContext]
    """Adds columns, and returns the table that has them."""
    put: Callable[[Sequence[Reject], Origin], int]
    """Has rejects on the disk, and returns how many are new there."""
    rejected: int = 0
    """So many were."""

    @property
    def keeps(self) -> bool:
        """Whether rows that do not fit are kept, and are no error."""
        return self.schema.document.rejects is not None

    def keep(self, rejects: Sequence[Reject], producer: str, file: str | None = None) -> None:
        """Keep rows that do not fit."""
        origin = Origin(self.table, producer or None, None, file)
        self.rejected += self.put(rejects, origin) if rejects else 0

    @property
    def schema(self) -> TableSchema:
        """What an append takes by now."""
        return self.table.accepts

    @property
    def grows(self) -> bool:
        """Whether columns are added that a source brings."""
        return self.schema.document.on_new_column == "add"

    def add(self, declared: Mapping[str, str]) -> None:
        """Add columns."""
        if declared:
            self.table = self.evolve(declared)

    def grow(self, error: NewColumnsError) -> None:
        """Add those that rows have; raises `error` when the schema does not say to."""
        if not self.grows:
            raise error
        self.add(error.declared())


@dataclass(frozen=True)
class Fitting:
    """Rows that have been made to fit the table already."""

    table: TableContext
    batches: Sequence[pa.RecordBatch]
    rows: int
    """How many of the source they are."""


@dataclass(frozen=True)
class Source:
    """Something that is read from its beginning to its end: a file, or a stream."""

    name: str
    """What the user calls it."""
    producer: str
    """Under which its rows are accepted, once; empty for one that nobody can name again."""
    read: Callable[[int], Iterator[Any]]
    """Its rows but for so many at the beginning: pieces in any form that can be appended, or
    `Fitting` ones."""
    rows: int | None = None
    bytes: int | None = None


@dataclass
class Chunk:
    """Rows that are loaded by one commit."""

    table: TableContext
    """In the version of its schema that the rows have."""
    batches: list[pa.RecordBatch] = field(default_factory=list)
    """In the form that a buffer holds."""
    rows: int = 0
    bytes: int = 0
    sent: dict[str, int] = field(default_factory=dict)
    """How many rows of each source are loaded with it, and before."""
    finished: list[Source] = field(default_factory=list)
    """Sources that end in it."""
    fresh: Fresh | None = None
    """Its rows that were new when they were looked for."""

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
    sources: Iterable[Source], known: Mapping[str, int], target: Target
) -> Generator[Chunk, None, None]:
    """The rows of the sources that were not loaded yet.

    A chunk ends where the rows after it have columns that those before it have not.

    Args:
        known: how many rows of a source were, by producer.

    Raises:
        SchemaError: a value does not fit; names source, row, column and value.
    """
    chunk = Chunk(target.table)
    for source in sources:
        row = known.get(source.producer, 0)
        for piece in _pieces(source, row):
            fitting = _fitting(piece, target, source, row)
            row += fitting.rows
            if fitting.table is not chunk.table:
                sent, finished = chunk.sent, chunk.finished
                if chunk.rows:
                    yield chunk
                    sent, finished = {}, []
                chunk = Chunk(fitting.table, sent=sent, finished=finished)
            if fitting.rows:
                chunk.take(fitting.batches, source.producer, row)
            if chunk.is_full:
                yield chunk
                chunk = Chunk(target.table)
        chunk.finished.append(source)
    yield chunk


def _pieces(source: Source, after: int) -> Iterator[Any]:
    """What the source gives; raises `InvalidInputError` where it is damaged."""
    try:
        yield from source.read(after)
    except pa.ArrowException as error:
        raise InvalidInputError(f"{source.name}: cannot be read: {error}") from error


def _fitting(piece: Any, target: Target, source: Source, row: int) -> Fitting:
    """A piece of a source, in the form that a buffer holds."""
    try:
        while not isinstance(piece, Fitting):
            table = target.table
            try:
                batches = to_batches(piece, table.accepts)
                piece = Fitting(table, batches, sum(batch.num_rows for batch in batches))
            except SchemaError as error:
                if target.keeps:
                    piece = _sifted(piece, target, source, row)
                elif not isinstance(error, NewColumnsError):
                    raise
                else:
                    target.grow(error)
                    piece = error.rows
        schema = piece.table.accepts
        return replace(piece, batches=[to_buffered(batch, schema) for batch in piece.batches])
    except SchemaError as error:
        raise SchemaError(f"{source.name}, after row {row:,}: {error}") from error


def _sifted(piece: Any, target: Target, source: Source, row: int) -> Fitting:
    """The rows of a piece that fit, once the others are kept."""
    sifted = sift_all(target.table, piece, range(row, row + len(piece)), target.evolve)
    target.table = sifted.table
    target.keep(sifted.rejects, source.producer)
    return Fitting(sifted.table, sifted.batches, len(piece))
