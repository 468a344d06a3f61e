"""Files as sources: each is one of its own, known by its path, its size and its time of change.

So of a folder that files are added to, the new ones are loaded.
"""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from lakestore.coerce import FRAME_ROWS
from lakestore.datafile import row_bytes
from lakestore.errors import InvalidInputError, NotFoundError
from lakestore.files import READERS, arrow
from lakestore.files.mapping import Options
from lakestore.files.rejects import Chunk, Rejects, sift
from lakestore.files.source import SUFFIXES, open_source
from lakestore.files.source import Source as File
from lakestore.load.chunks import Fitting, Source
from lakestore.load.streams import tables
from lakestore.schema import TableSchema
from lakestore.settings import MIB
from lakestore.storage.local import refusals

_CHUNK_BYTES = 32 * MIB
_SAMPLE_BYTES = MIB
_HELP = "`lakestore ingest` with --skip-rejects takes the rest"


@dataclass(frozen=True)
class Reading:
    """How files are to be read."""

    schema: TableSchema
    """The table's, in the form that an append takes."""
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
    return [Source(name, producer, lambda after: _chained(sources, after), rows, sum(sizes))]


def _chained(sources: Sequence[Source], after: int) -> Iterator[Any]:
    """Rows of one file after the other; of those whose number is known, passed over unread."""
    for source in sources:
        if source.rows is not None and after >= source.rows:
            after -= source.rows
            continue
        if source.rows is not None:
            yield from source.read(after)
            after = 0
            continue
        for piece in source.read(0):
            count = sum(batch.num_rows for batch in piece)
            if count > after:
                yield Fitting(_behind(piece, after))
            after = max(0, after - count)


def _source(path: Path, reading: Reading) -> Source:
    with refusals(f"cannot read {str(path)!r}"):
        stat = path.stat()
    read_as = (reading.format, reading.options.key())
    what = (str(path.resolve()), stat.st_size, stat.st_mtime_ns, *read_as)
    producer = f"load:{xxhash.xxh3_128_hexdigest(repr(what).encode())}"
    with open_source(str(path), reading.format) as file:
        rows = arrow.count(file)

    def read(after: int) -> Iterator[Fitting]:
        with open_source(str(path), reading.format) as file:
            yield from _read(file, reading, after)

    return Source(str(path), producer, read, rows, stat.st_size)


def _read(file: File, reading: Reading, after: int) -> Iterator[Fitting]:
    """The rows of a file after so many.

    Raises:
        InvalidInputError: lines cannot be read; what came before was given out.
    """
    rejects = Rejects()
    more: dict[str, int] = {"rows": _rows_of_chunk(file)}
    if file.format in ("parquet", "arrow"):
        more["after"], after = after, 0
    is_damaged, line = False, None
    for chunk in READERS[file.format](file, reading.schema, reading.options, rejects, **more):
        batches = sift(chunk, reading.schema, rejects)
        lacks = file.format == "csv" and _lacks_lines(chunk, line)
        line = chunk.lines[-1] if len(chunk.lines) else line
        is_damaged = is_damaged or bool(rejects.count) or lacks
        if is_damaged:  # to the end, so that every line is named that cannot be read
            continue
        count = sum(batch.num_rows for batch in batches)
        if count > after:
            yield Fitting(_behind(batches, after))
        after = max(0, after - count)
    if rejects.count:
        raise InvalidInputError(rejects.message(file.name, "not all of it was loaded", _HELP))


def _lacks_lines(chunk: Chunk, before: int | None) -> bool:
    """Whether lines of a CSV file are missing in a chunk, or right before it."""
    if not len(chunk.lines):
        return True
    first, last = chunk.lines[0], chunk.lines[-1]
    return last - first + 1 != len(chunk.lines) or first != (before + 1 if before else 2)


def _behind(batches: Sequence[pa.RecordBatch], after: int) -> list[pa.RecordBatch]:
    if not after:
        return list(batches)
    return [batch for table in tables(batches, after) for batch in table.to_batches()]


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
