"""Hot segments: build one from sorted rows, publish it, take it away.

A segment is a Parquet file, which is the truth and which any engine reads, and beside it a
DuckDB file with the same rows, which is the fast path in this process and may be missing.
Failpoints: segment.1 Parquet written    .2 fsynced    .3 DuckDB file built    .4 fsynced
.5 Parquet linked to its name    .6 DuckDB file linked
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from lakestore import datafile, quoting
from lakestore.engine import SORT_BYTES, Engine, sorter
from lakestore.errors import CorruptionError, StorageError
from lakestore.failpoint import reach
from lakestore.layout import SegmentName
from lakestore.schema import TableSchema
from lakestore.settings import MIB
from lakestore.snapshot import FileInfo, Segment
from lakestore.storage.local import (
    discard,
    fsync_file,
    publish_new,
    raise_refusal,
    storage_error,
)

EVENTS = "events"
"""Name of the table in a segment's DuckDB file."""


_MERGE_ROWS_MAX = 1 << 19
_SORT_BYTES_MAX = 512 * MIB


@dataclass(frozen=True)
class StagedSegment:
    """A segment that is written and checked, but has no number and no final name yet."""

    parquet: Path
    duckdb: Path | None
    info: FileInfo

    def discard(self) -> None:
        """Remove what is still staged."""
        discard(self.parquet)
        if self.duckdb is not None:
            discard(self.duckdb)


def sorted_batches(rows: pa.Table, schema: TableSchema, spill: Path) -> Iterator[pa.RecordBatch]:
    """The rows in the table's sort order; many bytes are sorted by DuckDB, which spills."""
    if rows.nbytes <= _SORT_BYTES_MAX:
        order = [(name, "ascending") for name in schema.sort]
        yield from rows.combine_chunks().sort_by(order).to_batches()
        return
    with sorter(
        spill, rows.nbytes + SORT_BYTES
    ) as con:  # beyond 2 GiB, Arrow could not even hold a text column in one piece
        con.register("rows", rows)
        ordered = con.sql(f"FROM rows ORDER BY {quoting.identifiers(schema.sort)}")
        for batch in ordered.to_arrow_reader(8_192):
            yield from pa.Table.from_batches([batch]).cast(schema.arrow).to_batches()


def stage(
    staging: Path,
    stem: str,
    schema: TableSchema,
    rows: pa.Table,
    footer: Mapping[str, Any],
    engine: Engine | None,
) -> StagedSegment:
    """Write the files of a segment under `staging`, checked and fsynced.

    Args:
        stem: a file name that nobody else stages under.
        rows: in any order.
        engine: builds the DuckDB file; None for a segment that does without.

    Raises:
        StorageError: the disk refused.
    """
    parquet = staging / f"{stem}.parquet"
    try:
        batches = sorted_batches(rows, schema, staging / "spill")
        info = datafile.write(parquet, schema, batches, footer, codec="snappy")
        reach("segment.1")
        fsync_file(parquet)
        reach("segment.2")
    except BaseException as error:
        discard(parquet)
        if isinstance(error, OSError):
            raise storage_error(f"cannot write segment {str(parquet)!r}", error) from error
        raise
    if engine is None:
        return StagedSegment(parquet, None, info)
    target = staging / f"{stem}.duckdb"
    try:
        build_duckdb(engine, parquet, target, info.rows)
        reach("segment.3")
        fsync_file(target)
        reach("segment.4")
    except (duckdb.Error, StorageError, CorruptionError, OSError):
        # The Parquet file answers every query too, only slower.
        discard(target)
        return StagedSegment(parquet, None, info)
    return StagedSegment(parquet, target, info)


def build_duckdb(engine: Engine, parquet: Path, target: Path, rows: int) -> None:
    """Make a segment's DuckDB file from its Parquet file: one bulk CREATE TABLE AS, nothing else.

    Raises:
        CorruptionError: the file does not hold `rows` rows.
    """
    source = quoting.literals([str(parquet)])

    def fill(cursor: duckdb.DuckDBPyConnection, alias: str) -> None:
        cursor.execute(
            f"CREATE TABLE {alias}.{EVENTS} AS "
            f"FROM read_parquet({source}, hive_partitioning = false)"
        )
        found = cursor.execute(f"SELECT count(*) FROM {alias}.{EVENTS}").fetchall()[0][0]
        if found != rows:
            raise CorruptionError(f"{str(target)!r} holds {found} rows, not {rows}")

    engine.build(target, fill)


def publish(staged: StagedSegment, folder: Path, first: int, last: int) -> tuple[str, bool]:
    """Give a staged segment its final name; returns the name, and whether DuckDB has it too."""
    name = str(SegmentName(first, last, staged.info.sha256[:12]))
    publish_new(staged.parquet, folder / name)
    reach("segment.5")
    if staged.duckdb is None:
        return name, False
    try:
        publish_new(staged.duckdb, duckdb_path(folder, name))
    except StorageError:
        return name, False
    reach("segment.6")
    return name, True


def duckdb_path(folder: Path, name: str) -> Path:
    """The DuckDB file beside a segment's Parquet file."""
    return folder / name.replace(".parquet", ".duckdb")


def taken(footers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What several segments took together, for the footer of the file that takes their place."""
    covers, marks, sent = [], [], []
    for footer in footers:
        covers += footer["covers"]
        marks += footer["producers"].items()
        sent += footer["sent"]
    return {"covers": covers, "producers": highest(marks), "sent": sorted(sent)}


def compared_with(footers: Iterable[Mapping[str, Any]]) -> int:
    """Up to which segment cold files were looked into for the events of all these segments."""
    return min((int(footer.get("sealed", 0)) for footer in footers), default=0)


def highest(marks: Iterable[tuple[str, int]]) -> dict[str, int]:
    """The highest sequence number of each producer."""
    found: dict[str, int] = {}
    for producer, seq in marks:
        found[producer] = max(seq, found.get(producer, seq))
    return found


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name a segment that cannot be read.

    Raises:
        CorruptionError: it is missing or damaged.
        StorageError: it cannot be read for now.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise_refusal(f"cannot read segment {str(path)!r}", error)
        raise CorruptionError(f"segment {str(path)!r} cannot be read: {error}") from error


def check_intact(path: Path, info: FileInfo) -> None:
    """Refuse a segment that is not what was published: new checksums would hide the damage.

    Raises:
        CorruptionError: bytes of it changed.
        StorageError: it cannot be read for now.
    """
    with reading(path):
        intact = datafile.sha256(path) == info.sha256
    if not intact:
        raise CorruptionError(
            f"segment {str(path)!r} is not what was published; restore it from a copy"
        )


def delete(folder: Path, name: str) -> None:
    """Remove a superseded segment's files; `vacuum` calls this."""
    SegmentName.parse(name)
    for path in (duckdb_path(folder, name), folder / name):
        with suppress(FileNotFoundError):
            path.unlink()


def choose_merge(segments: Sequence[Segment], segments_max: int) -> Sequence[Segment]:
    """Neighbours worth merging into one: none while there are at most `segments_max`.

    Half of `segments_max` that follow each other and hold the fewest rows together; none when
    those are too many to sort in memory, for then a seal is near. Pure.
    """
    if len(segments) <= segments_max:
        return ()
    width = max(2, segments_max // 2)
    starts = range(len(segments) - width + 1)
    rows = {i: sum(s.info.rows for s in segments[i : i + width]) for i in starts}
    best = min(starts, key=lambda i: rows[i])
    return segments[best : best + width] if rows[best] <= _MERGE_ROWS_MAX else ()
