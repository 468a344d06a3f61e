"""Seal: hot segments → cold files, in segment order.

Order of effects, numbered as their failpoints are:

    seal.1 segments' bytes checked    .2 one sorted file a day staged (more past the target size)
    .3 rows and ids checked, and the payload files that the rows refer to put in the root
    (`payload.4`)    .4 a file published    .5 all of them    .6 listed in the catalog
    (of a Delta table: `delta.1` and `.2`)    .7 committed    .8 caches of ids brought up to date

The commit lists the files and moves `sealed_through`, so at no instant is a row in both tiers or
in neither. A crash before it leaves
files that nothing names; the next seal writes the same rows under names of their own.
"""

import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from tempfile import mkdtemp
from uuid import uuid4

import duckdb
import numpy as np
import pyarrow as pa

from lakestore import datafile, hot, payload, quoting
from lakestore.clock import micros
from lakestore.context import TableContext
from lakestore.duplicates import RepeatedError, SealedElsewhere
from lakestore.engine import SORT_BYTES, sorter
from lakestore.errors import CorruptionError, StorageError
from lakestore.failpoint import reach
from lakestore.fileids import read_hashes
from lakestore.idhash import Hashes, days, hash_batch, id_sum
from lakestore.layout import LAKE_FILE, ColdName
from lakestore.marks import RETIRED, UNKNOWN
from lakestore.schema import TableSchema
from lakestore.settings import GIB, MIB, Settings
from lakestore.snapshot import ColdFile, FileInfo, Segment
from lakestore.storage.local import refusals, storage_error
from lakestore.watermark import Promise, is_behind, promise

_BATCH_ROWS = 65_536
_BATCH_BYTES = 32 * MIB
_SEAL_BYTES_MAX = 512 * MIB
_MORE_SORT_BYTES = (SORT_BYTES, 1 * GIB, 4 * GIB)
_EPOCH = date(1970, 1, 1)
_NO_HASHES = np.empty(0, dtype=np.uint64)


def is_due(hot_bytes: int, oldest_age_s: float, settings: Settings) -> bool:
    """Whether the hot tier is worth sealing now. Pure."""
    return hot_bytes > 0 and (
        hot_bytes >= settings.seal_bytes or oldest_age_s >= settings.seal_age_s
    )


def choose(segments: Sequence[Segment]) -> Sequence[Segment]:
    """The oldest segments, as many as one seal should take: at least one, then up to 512 MiB.

    None while no segment has a row: there would be no file whose footer says what they took.
    """
    if not any(segment.info.rows for segment in segments):
        return ()
    total = 0
    for count, segment in enumerate(segments):
        total += segment.info.bytes
        if total > _SEAL_BYTES_MAX and any(s.info.rows for s in segments[:count]):
            return segments[:count]
    return segments


def seal(table: TableContext) -> list[ColdFile]:
    """Seal every hot segment; the caller holds `table.sealing`.

    Raises:
        ConflictError: another process sealed meanwhile; its result stands.
        CorruptionError: a segment's bytes are not those that were published.
        StorageError: the disk refused; nothing more was committed.
    """
    files: list[ColdFile] = []
    if table.site.storage.remote:  # before hours of work: does it answer?
        table.site.storage.size(LAKE_FILE)
    while True:
        promised = promise(table)
        segments = choose(table.state().hot)
        if not segments:
            return files
        try:
            files += _seal_some(table, segments, promised, SORT_BYTES)
        except duckdb.OutOfMemoryException:  # rows so wide that one segment is work enough
            filled = next(i for i, segment in enumerate(segments) if segment.info.rows)
            files += _seal_one(table, segments[: filled + 1], promised)


def say_so(table: TableContext, *, asked: bool) -> None:
    """Move the watermark of a site with nothing to seal, where it lags by what a seal may wait.

    Args:
        asked: by the caller, who wants to know; else only others that are held back.

    Raises: as `seal`.
    """
    site, marks = table.site, table.cold.marks()
    if marks.get(site.catalog.site) == RETIRED:  # by another site, which took it to be gone
        table.cold.join()
        marks = table.cold.marks()
    if site.catalog.site not in marks:  # it could not join when it was opened
        promised = promise(table)
        table.cold.promise(promised.moment if promised.is_kept else UNKNOWN)
        return
    now = micros(site.clock.now()) if asked else None
    known = is_behind(marks, site.catalog.site, site.settings.seal_age_s, now)
    if known is not None and (promised := promise(table)).is_kept:
        table.cold.promise(min(promised.moment, known))


def _seal_one(
    table: TableContext, segments: Sequence[Segment], promised: Promise
) -> list[ColdFile]:
    """Seal the first segment that has rows, and those without before it."""
    for memory_bytes in _MORE_SORT_BYTES:
        try:
            return _seal_some(table, segments, promised, memory_bytes)
        except duckdb.OutOfMemoryException as error:
            failure = error
    raise StorageError(
        f"segment {segments[-1].name!r} cannot be sorted in {_MORE_SORT_BYTES[-1] >> 20:,} MiB"
    ) from failure


def _seal_some(
    table: TableContext, segments: Sequence[Segment], promised: Promise, memory_bytes: int
) -> list[ColdFile]:
    table.cold.claim(segments, segments[-1].last)
    with table.conflict_if_superseded(segments):
        for segment in segments:
            hot.check_intact(table.segment_path(segment), segment.info)
        reach("seal.1")
        with refusals("cannot stage cold files"):
            # No TemporaryDirectory: a process forked meanwhile would delete it as it ends.
            folder = Path(mkdtemp(dir=table.site.staging, prefix="seal-"))
        repeated = None
        try:
            while True:
                try:
                    return _seal_in(folder, table, segments, promised, memory_bytes, repeated)
                except RepeatedError as error:
                    repeated = pa.concat_tables([error.rows, *([repeated] if repeated else [])])
        finally:  # what cannot be removed is found by the sweep of this writer
            shutil.rmtree(folder, ignore_errors=True)


def _seal_in(
    folder: Path,
    table: TableContext,
    segments: Sequence[Segment],
    promised: Promise,
    memory_bytes: int,
    repeated: pa.Table | None,
) -> list[ColdFile]:
    """Seal what is not among the rows that another site has sealed; raises `RepeatedError`."""
    first, last = segments[0].first, segments[-1].last
    written = list(_write_files(folder, table, segments, memory_bytes, repeated))
    reach("seal.2")
    ids = np.concatenate([read_hashes(table.segment_path(s), table.schema) for s in segments])
    if repeated is not None:
        ids = ids[~np.isin(ids, hash_batch(repeated, table.schema))]
    found = sum(w.info.rows for w in written)
    if found != len(ids) or id_sum(ids) != sum(id_sum(w.hashes) for w in written) % 2**64:
        raise CorruptionError(
            f"sealing segments {first} to {last} gave {found:,} rows of {len(ids):,}; "
            "nothing was committed"
        )
    reach("seal.3")
    named = [(_cold_file(table, w, first, last, part), w) for part, w in enumerate(written)]
    examine = SealedElsewhere(table, [(file, w.path, w.hashes) for file, w in named])
    examine(table.state().cold)
    site = table.site
    for name in sorted({name for file, _ in named for name in file.info.payload}):
        key = table.payload_key(name)
        payload.put(site.storage, key, name, table.payload_folder, site.staging)
    parts = table.partials.files.of_segments(segments)
    for file, one in named:
        table.site.files.put(table.wanted(file), one.path)
        table.partials.files.put(file, one.path, folder, parts)
        _publish(table, file, one.path)
    reach("seal.5")
    files = [file for file, _ in named]
    complete = promised.moment if last >= promised.last else None
    table.cold.publish(segments, files, last, complete, examine)
    reach("seal.7")
    for file, one in named:
        table.file_ids.remember(file.name, one.hashes)
    for segment in segments:
        table.file_ids.forget(segment.name)
    reach("seal.8")
    return files


@dataclass(frozen=True)
class _Written:
    day: date
    path: Path
    info: FileInfo
    hashes: Hashes


def _write_files(
    folder: Path,
    table: TableContext,
    segments: Sequence[Segment],
    memory_bytes: int,
    repeated: pa.Table | None,
) -> Iterator[_Written]:
    """Write the rows of the segments, sorted within each day, to files in `folder`.

    Their footers say of which seal they are, and the last one's how many there are and what they
    took: files that are not a whole seal are nothing to a rebuild. So a seal whose rows are all
    known has a file without rows.
    """
    footer = table.footer(
        tier="cold", seal=uuid4().hex, first=segments[0].first, last=segments[-1].last
    )
    took = hot.taken(datafile.read_footer(table.segment_path(s)) for s in segments)
    remembered = table.site.catalog.sent(table.entry.id, {(p, seq) for p, seq in took["sent"]})
    took["sent"] = sorted(remembered)
    writer: datafile.DataFileWriter | None = None
    path, day, part = folder, 0, -1
    hashes: list[Hashes] = []

    def begin(number: int) -> datafile.DataFileWriter:
        nonlocal path, day, hashes, part
        path, day, hashes = folder / f"{uuid4().hex}.parquet", number, []
        part += 1
        return datafile.DataFileWriter(path, table.schema, footer, bloom=True)

    def finish(**more: object) -> Iterator[_Written]:
        if writer is not None:
            info = writer.close(part=part, **more)
            found = np.concatenate([_NO_HASHES, *hashes])
            yield _Written(_EPOCH + timedelta(days=day), path, info, found)

    try:
        for number, batch in _by_day(folder, table, segments, memory_bytes, repeated):
            full = writer is not None and writer.bytes >= table.site.settings.cold_file_bytes
            if writer is None or number != day or full:
                yield from finish()
                writer = begin(number)
            writer.write(batch)
            hashes.append(hash_batch(batch, table.schema))
        if writer is None:
            filled = next(s for s in segments if s.info.rows)
            writer = begin((filled.info.min_time.date() - _EPOCH).days)
        yield from finish(parts=part + 1, **took)
    except OSError as error:
        raise storage_error("cannot write cold files", error) from error


def _by_day(
    folder: Path,
    table: TableContext,
    segments: Sequence[Segment],
    memory_bytes: int,
    repeated: pa.Table | None,
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Rows of the segments by day, then in sort order: (day number, rows of that day alone)."""
    schema = table.schema
    paths = [str(table.segment_path(s)) for s in segments]
    day = f"CAST({quoting.identifier(schema.event_time)} AS DATE)"
    order = quoting.identifiers(schema.sort)
    if schema.sort[0] != schema.event_time:
        order = f"{day}, {order}"
    width = max(datafile.row_bytes(path) for path in paths)
    with sorter(folder / "spill", memory_bytes) as con:
        if repeated is not None:
            con.register("repeated", repeated)
        reader = con.sql(
            f"SELECT {quoting.identifiers(schema.names)} "
            f"FROM read_parquet({quoting.literals(paths)}, hive_partitioning = false) AS sealed "
            f"{_without_repeated(schema) if repeated is not None else ''} ORDER BY {order}"
        ).to_arrow_reader(max(1, min(_BATCH_ROWS, _BATCH_BYTES // width)))
        for batch in _until_out_of_memory(reader):
            rows = pa.Table.from_batches([batch]).cast(schema.arrow).to_batches()[0]
            numbers = days(rows.column(schema.event_time))
            borders = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), rows.num_rows]
            for start, end in itertools.pairwise(borders):
                yield int(numbers[start]), rows.slice(start, end - start)


def _until_out_of_memory(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """The batches; DuckDB's lack of memory, which Arrow hands on as an OSError, as what it is."""
    try:
        yield from reader
    except (OSError, pa.ArrowException) as error:
        if "Out of Memory" in str(error):
            raise duckdb.OutOfMemoryException(str(error)) from error
        raise


def _without_repeated(schema: TableSchema) -> str:
    """A join that leaves rows out whose event is in `repeated`."""
    id, time = quoting.identifier(schema.event_id), quoting.identifier(schema.event_time)
    same = f"repeated.{id} = sealed.{id}"
    if schema.dedup == "day":
        same += f" AND CAST(repeated.{time} AS DATE) = CAST(sealed.{time} AS DATE)"
    return f"WHERE NOT EXISTS (FROM repeated WHERE {same})"


def _cold_file(
    table: TableContext, written: _Written, first: int, last: int, part: int
) -> ColdFile:
    site = table.site.catalog.site
    sha12 = written.info.sha256[:12]
    name = str(ColdName(written.day, site, first, last, part, sha12, table.cold.partition))
    return ColdFile(name, written.day, first, last, table.entry.schema_version, written.info)


def _publish(table: TableContext, file: ColdFile, path: Path) -> None:
    key = table.cold_key(file)
    if (
        not table.site.storage.put_new(key, path)
        and table.site.storage.size(key) != file.info.bytes
    ):
        raise StorageError(f"{key!r} exists and has another size; nothing was committed")
    reach("seal.4")
