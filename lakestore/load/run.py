"""The load of sources, chunk after chunk: while one is committed, the next is read."""

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass

from lakestore.catalog.records import AcceptedError
from lakestore.errors import ConflictError
from lakestore.load.chunks import Chunk, Source, Target, chunks
from lakestore.load.commit import compare, load_chunk
from lakestore.snapshot import ColdFile

_ATTEMPTS = 10


@dataclass(frozen=True)
class Progress:
    """How far a load is: what is loaded, or was before; totals where they are known."""

    rows: int
    rows_total: int | None
    bytes: int
    """Of sources that have a size."""
    bytes_total: int | None


@dataclass(frozen=True)
class Part:
    """A source, as a load found it."""

    name: str
    rows: int | None
    """Where that is known before it is read."""
    bytes: int | None
    skipped: int
    """Rows that a former load had loaded."""


@dataclass(frozen=True)
class Loaded:
    """What a load did."""

    rows: int
    """That are new in the table."""
    duplicates: int
    """That the table had, or the load twice."""
    skipped: int
    """That a former load of the same source had loaded."""
    files: int
    bytes: int
    """Of the cold files."""
    chunks: int
    rejected: int = 0
    """That did not fit, and are where the schema says; without those of a former load."""
    sources: tuple[Part, ...] = ()


class _Track:
    """Counts what is done, and tells who wants to know."""

    def __init__(
        self, sources: Sequence[Source], known: Mapping[str, int], tell: Callable[[Progress], None]
    ) -> None:
        self._tell = tell
        self._sources = {source.producer: source for source in sources}
        self._done = dict(known)
        self._rows = sum(known.values())
        self._ended: set[str] = set()
        self._told: Progress | None = None
        self._rows_total = _sum(source.rows for source in sources)
        self._bytes_total = _sum(source.bytes for source in sources)

    def take(self, chunk: Chunk) -> None:
        """A chunk is loaded."""
        self._done |= chunk.sent
        self._rows += chunk.rows
        self._ended |= {source.producer for source in chunk.finished}
        self.tell()

    def tell(self) -> None:
        size = sum(self._bytes_of(source) for source in self._sources.values())
        progress = Progress(self._rows, self._rows_total, size, self._bytes_total)
        if progress != self._told:
            self._told = progress
            self._tell(progress)

    def _bytes_of(self, source: Source) -> int:
        size = source.bytes or 0
        if source.producer in self._ended or not source.rows:
            return size if source.producer in self._ended else 0
        return size * self._done.get(source.producer, 0) // source.rows


def _sum(values: Iterator[int | None]) -> int | None:
    known = list(values)
    return sum(v for v in known if v is not None) if None not in known else None


def load(
    target: Target,
    sources: Sequence[Source],
    turn: Callable[[], AbstractContextManager[None]],
    progress: Callable[[Progress], None],
    *,
    dry_run: bool = False,
) -> Loaded:
    """Load what was not loaded yet.

    Args:
        turn: takes the table's seals for this thread.
        progress: told after each chunk.
        dry_run: only say what there is to load.

    Raises: as `load_chunk` and `chunks`; what was loaded before stays.
    """
    known = target.table.cold.accepted([source.producer for source in sources if source.producer])
    parts = tuple(Part(s.name, s.rows, s.bytes, known.get(s.producer, 0)) for s in sources)
    skipped = sum(known.values())
    if dry_run:
        return Loaded(0, 0, skipped, 0, 0, 0, sources=parts)
    track = _Track(sources, known, progress)
    track.tell()
    rows = loaded = files = size = count = 0
    passed_over: dict[str, int] = {}  # by chunks that had nothing new
    for chunk in _ahead(chunks(sources, known, target)):
        rows += chunk.rows
        chunk.sent = passed_over | chunk.sent
        made = _load_chunk(chunk, turn) if chunk.rows else []
        passed_over = {} if made else chunk.sent
        loaded += sum(file.info.rows for file in made)
        files, size = files + len(made), size + sum(file.info.bytes for file in made)
        count += bool(made)
        track.take(chunk)
    duplicates, rejected = rows - loaded, target.rejected
    return Loaded(loaded, duplicates, skipped, files, size, count, rejected, parts)


def _load_chunk(
    chunk: Chunk, turn: Callable[[], AbstractContextManager[None]]
) -> Collection[ColdFile]:
    """Load a chunk, though others seal by hand at the same time."""
    for attempt in range(_ATTEMPTS):
        try:
            with turn():
                return load_chunk(chunk)
        except AcceptedError:
            raise
        except ConflictError:  # what another process sealed stands; the chunk comes after it
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def _ahead(found: Generator[Chunk, None, None]) -> Iterator[Chunk]:
    """The chunks, one of them read and compared while the one before it is written."""

    def ahead() -> Chunk | None:
        chunk = next(found, None)
        if chunk is not None and chunk.rows:
            compare(chunk)
        return chunk

    with closing(found), ThreadPoolExecutor(1, "lakestore-load") as pool:
        waiting = pool.submit(ahead)
        while (chunk := waiting.result()) is not None:
            waiting = pool.submit(ahead)
            yield chunk
            del chunk
