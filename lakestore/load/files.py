"""Files as sources: each is one of its own, known by its path, its size and its time of change.

So of a folder that files are added to, the new ones are loaded.
"""

import glob
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import xxhash

from lakestore.coerce import FRAME_ROWS
from lakestore.datafile import row_bytes
from lakestore.errors import InvalidInputError, NotFoundError
from lakestore.files import READERS, arrow, infer
from lakestore.files.mapping import Options
from lakestore.files.rejects import Chunk, Reject, Rejects, sift
from lakestore.files.source import SUFFIXES, open_source
from lakestore.files.source import Source as File
from lakestore.load.chunks import Fitting, Source, Target
from lakestore.naming import NewColumnsError
from lakestore.settings import MIB
from lakestore.storage.local import refusals

_CHUNK_BYTES = 32 * MIB
_SAMPLE_BYTES = MIB
_HELP = "`lakestore ingest` with --skip-rejects takes the rest"


@dataclass(frozen=True)
class Reading:
    """How files are to be read."""

    target: Target
    options: Options
    format: str | None = None
    """Of all files; None where their names tell."""


def are_files(source: Any) -> bool:
    """Whether a source that a caller names is a path, a glob, or a list of these."""
    if isinstance(source, list | tuple):
        return bool(source) and all(isinstance(one, str | PathLike) for one in source)
    return isinstance(source, str | PathLike)


def found(source: Any) -> list[Path]:
    """The files that paths, folders and globs name, in order; those of a folder by their names.

    Raises:
        NotFoundError: one of them names no file.
    """
    paths: dict[Path, None] = {}
    for one in source if isinstance(source, list | tuple) else [source]:
        some = _expanded(fspath(one))
        if not some:
            raise NotFoundError(f"no file {fspath(one)!r}")
        paths |= dict.fromkeys(some)
    return list(paths)


def _expanded(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        inside = sorted(path.rglob("*"))
        hidden = (p for p in inside if p.relative_to(path).parts[0].startswith((".", "_")))
        unwanted = set(hidden)
        return [p for p in inside if p.is_file() and p not in unwanted and _is_of_events(p)]
    if path.exists():
        return [path]
    return [Path(one) for one in sorted(glob.glob(name, recursive=True)) if Path(one).is_file()]


def _is_of_events(path: Path) -> bool:
    plain = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return plain.suffix.lower() in (*SUFFIXES, ".zip")


def file_sources(paths: Sequence[Path], reading: Reading, producer: str) -> list[Source]:
    """The sources that files are; one of all of them, where the caller names it.

    Raises:
        InvalidInputError: a name tells no format.
        StorageError: a file cannot be read.
    """
    sources = [_source(path, reading) for path in paths]
    if not producer:
        return sources
    sizes, counts = [s.bytes or 0 for s in sources], [s.rows for s in sources]
    rows = None if None in counts else sum(count or 0 for count in counts)
    name = f"{len(paths)} files" if len(paths) > 1 else str(paths[0])

    def read(after: int) -> Iterator[Fitting]:
        """Rows of one file after the other; of those whose number is known, passed over unread."""
        for at, (path, count) in enumerate(zip(paths, counts, strict=True)):
            if count is not None and after >= count:
                after -= count
            else:  # what the file is called may be another the next time
                after = yield from _read(path, reading, after, f"{producer}/{at}")

    return [Source(name, producer, read, rows, sum(sizes))]


def _source(path: Path, reading: Reading) -> Source:
    with refusals(f"cannot read {str(path)!r}"):
        stat = path.stat()
    read_as = (reading.format, reading.options.key())
    what = (str(path.resolve()), stat.st_size, stat.st_mtime_ns, *read_as)
    producer = f"load:{xxhash.xxh3_128_hexdigest(repr(what).encode())}"
    with open_source(str(path), reading.format) as file:
        rows = arrow.count(file)

    def read(after: int) -> Iterator[Fitting]:
        return _read(path, reading, after, producer)

    return Source(str(path), producer, read, rows, stat.st_size)


def _read(path: Path, reading: Reading, after: int, producer: str) -> Generator[Fitting, None, int]:
    """The rows of a file after so many; returns how many more there were to pass over.

    Raises:
        InvalidInputError: lines cannot be read; what came before was given out.
    """
    target, options = reading.target, reading.options
    with open_source(str(path), reading.format) as file:
        if target.grows and not options.ignore_unknown:
            target.add(infer.new_columns(file, target.schema, options))
        while True:
            pieces = _Pieces(file, reading, after, producer)
            try:
                yield from pieces
                return pieces.left
            except NewColumnsError as error:  # a line has one that those before it had not
                target.grow(error)
                after += pieces.given


class _Pieces:
    """Rows of a file, as the table is now."""

    def __init__(self, file: File, reading: Reading, after: int, producer: str) -> None:
        self._file = file
        self._reading = reading
        self._producer = producer
        self.left = after
        """So many are yet to be passed over."""
        self.given = 0
        self._seen_to = False
        """Whether all rejects are kept already."""

    def __iter__(self) -> Iterator[Fitting]:
        file, table = self._file, self._reading.target.table
        rejects, schema = self._rejects(), table.accepts
        more = {}
        if file.format == "parquet":
            more["after"], self.left = self.left, 0
        is_damaged, line = False, None
        for chunk in self._chunks(rejects, **more):
            lacks = file.format == "csv" and _lacks_lines(chunk, line)
            line = chunk.lines[-1] if len(chunk.lines) else line
            rest = self._behind(chunk)
            batches = sift(rest, schema, rejects)
            is_damaged = is_damaged or bool(rejects.count) or lacks
            if rejects.are_kept and is_damaged:
                self._see_to(rejects, rest)
            if rest.count and (rejects.are_kept or not is_damaged):
                self.given += rest.count
                yield Fitting(table, batches, rest.count)
            # Where it is damaged, to the end, so that every line is named that cannot be read.
        rejects.hand_on()
        if rejects.count and not rejects.are_kept:
            raise InvalidInputError(rejects.message(file.name, "not all of it was loaded", _HELP))

    def _chunks(self, rejects: Rejects, **more: int) -> Iterator[Chunk]:
        schema, options = self._reading.target.schema, self._reading.options
        rows = _rows_of_chunk(self._file)
        return READERS[self._file.format](self._file, schema, options, rejects, rows=rows, **more)

    def _rejects(self) -> Rejects:
        return Rejects(keep=self._keep) if self._reading.target.keeps else Rejects()

    def _keep(self, some: Sequence[Reject]) -> None:
        if not self._seen_to:
            self._reading.target.keep(some, self._producer, self._file.name)

    def _see_to(self, rejects: Rejects, rest: Chunk) -> None:
        """Have those kept that the rows to come go with: of a chunk that was loaded, they are."""
        if self._file.format == "csv":  # which tells what its lines are when it is at its end
            if not self._seen_to:
                ahead = self._rejects()
                for chunk in self._chunks(ahead):
                    sift(chunk, self._reading.target.schema, ahead)
                ahead.hand_on()
                self._seen_to = True
        elif rest.count:
            rejects.hand_on()
        else:
            rejects.drain()

    def _behind(self, chunk: Chunk) -> Chunk:
        """A chunk without the rows that are to be passed over."""
        passed = min(self.left, chunk.count)
        self.left -= passed
        return chunk.after(passed)


def _lacks_lines(chunk: Chunk, before: int | None) -> bool:
    """Whether lines of a CSV file are missing in a chunk, or right before it."""
    if not len(chunk.lines):
        return True
    first, last = chunk.lines[0], chunk.lines[-1]
    return last - first + 1 != len(chunk.lines) or first != (before + 1 if before else 2)


def _rows_of_chunk(file: File) -> int:
    """So many rows as are worth one look: fewer where they are wide."""
    if file.format == "arrow":
        return FRAME_ROWS
    if file.format == "parquet":
        width = row_bytes(file.path)
    else:
        with file.open() as opened:
            sample = opened.read(_SAMPLE_BYTES)
        width = len(sample) // max(1, sample.count(b"\n"))
    return max(64, min(FRAME_ROWS, _CHUNK_BYTES // max(1, width)))
