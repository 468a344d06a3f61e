"""One Parquet file: write it, check it, read its footer. The only Parquet writer of the project.

Pages carry checksums, because Parquet readers give wrong values for most single flipped bits
(40 of 60 with snappy, 42 of 60 with zstd); the page index and bloom filters serve lookups.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lakestore.distinct import hardly_repeats
from lakestore.errors import CorruptionError
from lakestore.idhash import NO_HASHES, Hashes, hash_ids, id_sum
from lakestore.kept import REFERENCE
from lakestore.schema import TableSchema
from lakestore.settings import MIB
from lakestore.snapshot import ColumnRange, FileInfo
from lakestore.storage.local import open_to_read, raise_refusal, require_file

ROW_GROUP_ROWS = 131_072
ROW_GROUP_BYTES = 64 * MIB
_PAGE_BYTES = MIB // 8
_BATCH_ROWS, _BATCH_BYTES = 1_024, MIB
FOOTER_KEY = b"lakestore"
_PAYLOAD = "payload"
"""Where a footer lists the payload files that the rows refer to."""
UNREADABLE = (
    pa.ArrowException, OSError, LookupError, ValueError, TypeError, AttributeError,
    StopIteration, MemoryError,
)  # fmt: skip
"""What reading damaged bytes raises."""
_NO_MIN, _NO_MAX = datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)
_RANGE_CHARS = 256
"""Longer least or greatest strings are not kept: they would cost more than they prune."""


class DataFileWriter:
    """Writes one Parquet file of a table's events, in the order they are given.

    Row groups end at 131,072 rows or 64 MiB of Arrow, whichever comes first, so that wide rows
    do not make row groups that no reader has the memory for. The footer of rows that refer to
    payload files names these files, whoever writes it.
    """

    def __init__(
        self,
        path: Path,
        schema: TableSchema,
        footer: Mapping[str, Any],
        *,
        codec: str = "zstd",
        bloom: bool = False,
        row_group_bytes: int = ROW_GROUP_BYTES,
        unsearched: Collection[str] = (),
    ) -> None:
        """A writer of the file at `path`.

        Args:
            bloom: make bloom filters of the schema's id columns.
            row_group_bytes: about as many bytes of Arrow in each row group at most.
            unsearched: columns whose values nobody looks for or repeats: they get neither
                statistics nor dictionaries.
        """
        self._path = path
        self._schema = schema
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._pending_bytes = 0
        self.rows = 0
        self.id_sum = 0
        self._min: datetime | None = None
        self._max: datetime | None = None
        self._footer = dict(footer)
        self._codec = codec
        self._bloom = bloom
        self._row_group_bytes = row_group_bytes
        self._unsearched = frozenset(unsearched)
        self._payload: set[str] = set()
        self._sink = pa.OSFile(str(path), "wb")
        self._writer: pq.ParquetWriter | None = None

    def _open(self, first: pa.Table) -> pq.ParquetWriter:
        """The writer for row groups like the first, whose rows bloom filters are made for.

        Made for pyarrow's default of a million values, each would cost 10 ms however few rows
        there are. Pages are of about 128 KiB, for one row costs whoever looks for it a page of
        each column. pyarrow looks at their size once a batch, so that those of wide values are of
        up to a megabyte: with a page for each value of 300 kB, a query of 120 MB of them did not
        get by with 160 MB any more.
        """
        schema = self._schema
        # Ids are unique: a dictionary of them is built, overflows and is thrown away.
        plain = {c.name for c in schema.columns if pa.types.is_nested(c.arrow_type)}
        plain |= self._unsearched | set(schema.bloom)
        plain |= {n for n in schema.names if n not in plain and hardly_repeats(first.column(n))}
        rows = max(1, first.num_rows)
        # Statistics pass over NaN, which SQL holds to be the greatest: readers would skip it.
        ordered = leaves(schema.arrow, pa.types.is_floating, wanted=False)
        filters = [
            name
            for name in (schema.bloom if self._bloom else ())
            if not pa.types.is_boolean(schema.column(name).arrow_type)
        ]
        return pq.ParquetWriter(
            self._sink,
            schema.arrow,
            compression=self._codec,
            use_dictionary=[name for name in schema.names if name not in plain],
            write_statistics=[path for path in ordered if path not in self._unsearched],
            write_page_index=True,
            write_page_checksum=True,
            sorting_columns=pq.SortingColumn.from_ordering(
                schema.arrow, [(name, "ascending") for name in schema.sort]
            ),
            bloom_filter_options={key: {"fpp": 0.01, "ndv": rows} for key in filters} or None,
            data_page_size=_PAGE_BYTES,
            write_batch_size=min(_BATCH_ROWS, max(1, _BATCH_BYTES * rows // max(1, first.nbytes))),
        )

    def write(self, batch: pa.RecordBatch, hashes: Hashes | None = None) -> Hashes:
        """Add rows, in file order; returns the hashes of their ids, which may be known already."""
        if batch.num_rows == 0:
            return NO_HASHES
        schema = self._schema
        times = batch.column(schema.event_time)
        span = pc.min_max(times).as_py()
        low, high = _utc(span["min"]), _utc(span["max"])
        self._min = low if self._min is None else min(self._min, low)
        self._max = high if self._max is None else max(self._max, high)
        if hashes is None:
            hashes = hash_ids(batch.column(schema.event_id), times, schema.dedup)
        self.id_sum = (self.id_sum + id_sum(hashes)) % 2**64
        if schema.has_references:
            self._payload |= files_referred_to(batch.column(REFERENCE))
        fitting = self._row_group_bytes * batch.num_rows // max(1, batch.nbytes)
        step = min(ROW_GROUP_ROWS, max(1, fitting))
        for start in range(0, batch.num_rows, step):
            self._hold(batch.slice(start, step))
        return hashes

    @property
    def bytes(self) -> int:
        """Bytes in the file so far; what is held back for the next row group does not count."""
        return int(self._sink.tell())

    def close(self, **more: object) -> FileInfo:
        """Finish the file; returns what it holds. The bytes are not yet fsynced.

        Args:
            more: facts for the footer that were not known before.

        Raises:
            CorruptionError: read back, the file does not hold what was written.
        """
        self._write_row_group()
        if self._writer is None:
            self._writer = self._open(self._schema.arrow.empty_table())
        payload = tuple(sorted(self._payload))
        said = self._footer | more | ({_PAYLOAD: payload} if self._schema.has_references else {})
        self._writer.add_key_value_metadata({FOOTER_KEY: json.dumps(said)})
        self._writer.close()
        self._sink.close()
        info = FileInfo(
            rows=self.rows,
            bytes=self._path.stat().st_size,
            sha256=sha256(self._path),
            min_time=self._min or _NO_MIN,
            max_time=self._max or _NO_MAX,
            ranges=_ranges(pq.read_metadata(self._path), self._schema),
            payload=payload,
        )
        check(self._path, self._schema, info.rows, self.id_sum)
        return info

    def abandon(self) -> None:
        """Close what is open, after a failure; the staged file stays for the sweep."""
        if self._writer is not None:
            self._writer.close()
        self._sink.close()

    def _hold(self, batch: pa.RecordBatch) -> None:
        if (
            self._pending_rows + batch.num_rows > ROW_GROUP_ROWS
            or self._pending_bytes + batch.nbytes > self._row_group_bytes
        ):
            self._write_row_group()
        self._pending.append(batch)
        self._pending_rows += batch.num_rows
        self._pending_bytes += batch.nbytes

    def _write_row_group(self) -> None:
        if not self._pending:
            return
        table = pa.Table.from_batches(self._pending)
        if self._writer is None:
            self._writer = self._open(table)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self.rows += table.num_rows
        self._pending, self._pending_rows, self._pending_bytes = [], 0, 0


def write(
    path: Path,
    schema: TableSchema,
    batches: Iterable[pa.RecordBatch],
    footer: Mapping[str, Any],
    *,
    codec: str = "zstd",
    bloom: bool = False,
) -> FileInfo:
    """Write all of `batches` to one file; as `DataFileWriter`."""
    writer = DataFileWriter(path, schema, footer, codec=codec, bloom=bloom)
    try:
        for batch in batches:
            writer.write(batch)
    except BaseException:
        writer.abandon()
        raise
    return writer.close()


def check(path: Path, schema: TableSchema, rows: int, expected_id_sum: int | None) -> None:
    """Read a whole file back, page checksums and all.

    Raises:
        CorruptionError: a page is damaged, or rows or ids are not those expected.
    """
    found, total = 0, 0
    try:
        metadata = pq.read_metadata(path)
        repeated = _in_dictionaries(metadata, {schema.event_id, schema.event_time})
        with pq.ParquetFile(
            path, metadata=metadata, read_dictionary=repeated, page_checksum_verification=True
        ) as file:
            groups = (metadata.row_group(g).num_rows for g in range(metadata.num_row_groups))
            # Threads would take a third more of the processors, which others have a use for.
            for batch in file.iter_batches(batch_size=max(groups, default=1), use_threads=False):
                found += batch.num_rows
                if expected_id_sum is not None:
                    times = batch.column(schema.event_time)
                    ids = batch.column(schema.event_id)
                    total += id_sum(hash_ids(ids, times, schema.dedup))
    except (OSError, pa.ArrowException) as error:
        raise_refusal(f"cannot read back {str(path)!r}", error)
        raise CorruptionError(f"{str(path)!r} cannot be read back: {error}") from error
    if found != rows:
        raise CorruptionError(f"{str(path)!r} holds {found:,} rows, not {rows:,}")
    if expected_id_sum is not None and total % 2**64 != expected_id_sum:
        raise CorruptionError(f"{str(path)!r} does not hold the ids that were written to it")


def _in_dictionaries(metadata: pq.FileMetaData, besides: Set[str]) -> list[str]:
    """Texts that have dictionaries: read as those, they are not spelled out, and take a third."""
    found: dict[str, bool] = {}
    for group in (metadata.row_group(g) for g in range(metadata.num_row_groups)):
        for column in (group.column(index) for index in range(group.num_columns)):
            name, is_text = column.path_in_schema, column.physical_type == "BYTE_ARRAY"
            has_one = is_text and "RLE_DICTIONARY" in column.encodings and "." not in name
            found[name] = found.get(name, True) and has_one
    return [name for name, has_one in found.items() if has_one and name not in besides]


def read_footer(path: Path) -> dict[str, Any]:
    """What lakestore wrote into a file's footer; raises `CorruptionError`."""
    try:
        require_file(path)
        metadata = pq.read_metadata(path).metadata or {}
        footer = json.loads(metadata[FOOTER_KEY])
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise_refusal(f"cannot read the footer of {str(path)!r}", error)
        raise CorruptionError(f"{str(path)!r} has no lakestore footer: {error!r}") from error
    if not isinstance(footer, dict):
        raise CorruptionError(f"{str(path)!r} has a footer that is no object")
    return footer


def read_columns(path: Path, columns: Collection[str]) -> pa.Table:
    """Some columns of a file, its page checksums checked; raises `CorruptionError`."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read(columns=list(columns))
    except (OSError, pa.ArrowException) as error:
        raise_refusal(f"cannot read {str(path)!r}", error)
        raise CorruptionError(f"{str(path)!r} cannot be read: {error}") from error


def measure(path: Path, schema: TableSchema) -> FileInfo:
    """What a finished file holds, as its writer measured it: from its bytes and its statistics.

    Raises:
        CorruptionError: it cannot be read as the table's Parquet.
    """
    try:
        metadata = pq.read_metadata(path)
        groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
        times = [_statistics(group, schema.event_time) for group in groups]
        return FileInfo(
            rows=metadata.num_rows,
            bytes=path.stat().st_size,
            sha256=sha256(path),
            min_time=min((_utc(s.min) for s in times), default=_NO_MIN),
            max_time=max((_utc(s.max) for s in times), default=_NO_MAX),
            ranges=_ranges(metadata, schema),
            payload=_told_payload(metadata) if schema.has_references else (),
        )
    except UNREADABLE as error:
        raise_refusal(f"cannot read {str(path)!r}", error)
        raise CorruptionError(f"{str(path)!r} cannot be read: {error!r}") from error


def files_referred_to(references: pa.Array | pa.ChunkedArray) -> set[str]:
    """Names of the payload files that a column of references names."""
    names = pc.replace_substring_regex(references, "#[^#]*$", "")
    return {name for name in pc.unique(names).to_pylist() if name is not None}


def _told_payload(metadata: pq.FileMetaData) -> tuple[str, ...]:
    return tuple(str(name) for name in json.loads(metadata.metadata[FOOTER_KEY])[_PAYLOAD])


def _statistics(group: pq.RowGroupMetaData, column: str) -> pq.Statistics:
    columns = (group.column(index) for index in range(group.num_columns))
    return next(c.statistics for c in columns if c.path_in_schema == column)


def row_bytes(path: str | Path) -> int:
    """Bytes of an average row, before compression; at least one."""
    metadata = pq.read_metadata(path)
    total = sum(metadata.row_group(g).total_byte_size for g in range(metadata.num_row_groups))
    return int(max(1, total // max(1, metadata.num_rows)))


def sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open_to_read(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def leaves(schema: pa.Schema, test: Callable[[pa.DataType], bool], *, wanted: bool) -> list[str]:
    """Paths of the Parquet columns whose type passes the test, or (not `wanted`) does not."""
    paths = []

    def visit(path: str, arrow: pa.DataType) -> None:
        if pa.types.is_struct(arrow):
            for child in (arrow.field(i) for i in range(arrow.num_fields)):
                visit(f"{path}.{child.name}", child.type)
        elif pa.types.is_map(arrow):
            visit(f"{path}.key_value.key", arrow.key_type)
            visit(f"{path}.key_value.value", arrow.item_type)
        elif pa.types.is_list(arrow):
            visit(f"{path}.list.element", arrow.value_type)
        elif bool(test(arrow)) == wanted:
            paths.append(path)

    for field in schema:
        visit(field.name, field.type)
    return paths


def _utc(time: datetime) -> datetime:
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)


def _ranges(metadata: pq.FileMetaData, schema: TableSchema) -> dict[str, ColumnRange]:
    """The range of each plain column, from the statistics of its row groups.

    Floats are left out: Parquet's statistics pass over NaN, which SQL holds to be the greatest.
    """
    kept = {
        c.name
        for c in schema.columns
        if not (
            pa.types.is_nested(c.arrow_type)
            or pa.types.is_floating(c.arrow_type)
            or pa.types.is_binary(c.arrow_type)
        )
    }
    ranges = {}
    for index in range(metadata.num_columns):
        name = metadata.schema.column(index).path
        if name in kept and metadata.num_row_groups:
            groups = (metadata.row_group(g) for g in range(metadata.num_row_groups))
            ranges[name] = _merge([group.column(index).statistics for group in groups])
    return ranges


def _merge(statistics: list[pq.Statistics | None]) -> ColumnRange:
    known = [s for s in statistics if s is not None]
    if len(known) < len(statistics) or not all(s.has_null_count for s in known):
        return ColumnRange(None, None, -1)
    nulls = sum(s.null_count for s in known)
    filled = [s for s in known if s.num_values]
    if not filled or not all(s.has_min_max for s in filled):
        return ColumnRange(None, None, nulls if not filled else -1)
    try:
        low, high = min(s.min for s in filled), max(s.max for s in filled)
    except (OverflowError, ValueError):  # a date beyond the year 9999, which Python has not
        return ColumnRange(None, None, -1)
    if isinstance(low, str) and max(len(low), len(high)) > _RANGE_CHARS:
        return ColumnRange(None, None, -1)
    return ColumnRange(str(low), str(high), nulls)
