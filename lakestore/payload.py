"""Payload files: heavy values of events, kept out of their rows; one file a flush and day.

A row of one is an event that has a payload, in the order of the events: its id, its time, its
payload columns and their sha256. Of events of one flush and day whose payloads are all the same,
one row has them, and the others say which (`same_as`). Row groups are small, so that whoever looks
for one payload reads little. Payload before row, always: a file is published before the segment
that refers to it is listed, and is in the root before the cold files that do are.
Failpoints: payload.1 a file written    .2 fsynced    .3 linked to its name    .4 put in the root
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lakestore.datafile import UNREADABLE, DataFileWriter, sha256
from lakestore.errors import CorruptionError, StorageError
from lakestore.failpoint import reach
from lakestore.idhash import days
from lakestore.kept import SAME_AS, sha256_name
from lakestore.layout import PayloadName
from lakestore.policy import sha256s, sizes
from lakestore.schema import TableSchema
from lakestore.settings import MIB
from lakestore.storage import Storage
from lakestore.storage.local import (
    discard,
    fsync_file,
    publish_new,
    raise_refusal,
    refusals,
    require_file,
    storage_error,
)

ROW_GROUP_BYTES = 1 * MIB
_EPOCH = date(1970, 1, 1)

Numbers = npt.NDArray[np.int64]


@dataclass
class StagedPayload:
    """Payload files that are written, checked and fsynced, but have no final names yet."""

    files: dict[str, Path] = field(default_factory=dict)
    """By the names they will have."""

    def discard(self) -> None:
        """Remove what is still staged."""
        for path in self.files.values():
            discard(path)


def stage(
    staging: Path, schema: TableSchema, rows: pa.Table, footer: Mapping[str, Any]
) -> tuple[StagedPayload, pa.Array]:
    """Write the payloads of buffered rows to files under `staging`, one for each day.

    Args:
        schema: the table's, in any form that has its payload columns.
        rows: in any order.
        footer: what every file of the table says of itself, and what is of this flush alone: the
            same payloads must never make a file of the same name again.

    Returns:
        The files, and for each row its reference: null where the event has no payload.

    Raises:
        StorageError: the disk refused.
    """
    staged = StagedPayload()
    references = np.full(rows.num_rows, None, dtype=object)
    source = _Source(rows, schema)
    try:
        for day, order in source.by_day():
            path = staging / f"{uuid4().hex}.parquet"
            staged.files[path.name] = path
            site = str(footer["site"])
            facts = dict(footer, tier="payload", day=day.isoformat())
            writer = DataFileWriter(
                path,
                schema.payload_file,
                facts,
                bloom=True,
                row_group_bytes=ROW_GROUP_BYTES,
                unsearched=schema.payload_file.names[2:-1],
            )
            try:
                kept = _write(writer, schema.payload_file, source, order)
            except BaseException:
                writer.abandon()
                raise
            info = writer.close(rows=len(kept))
            reach("payload.1")
            fsync_file(path)
            reach("payload.2")
            name = str(PayloadName(day, site, info.bytes, info.sha256[:12]))
            staged.files[name] = staged.files.pop(path.name)
            references[order] = [f"{name}#{row}" for row in kept.tolist()]
    except BaseException as error:
        staged.discard()
        if isinstance(error, OSError):
            raise storage_error("cannot write payload files", error) from error
        raise
    return staged, pa.array(references, pa.string())


class _Source:
    """Buffered rows that have payloads: in event order, a little at a time.

    They are taken batch by batch, and never put together: their texts may be more than the 2 GiB
    that an Arrow array of text can hold, and would be in memory twice.
    """

    def __init__(self, rows: pa.Table, schema: TableSchema) -> None:
        self._columns = [schema.event_id, schema.event_time, *schema.buffered.payload]
        self._batches = rows.select(self._columns).to_batches()
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])[:-1]
        self._sizes = np.zeros(rows.num_rows, dtype=np.int64)
        filled = np.zeros(rows.num_rows, dtype=np.bool_)
        for name in self._columns[2:]:
            size = sizes(rows.column(name))
            filled |= np.asarray(pc.is_valid(size))
            self._sizes += np.asarray(pc.fill_null(size, 0))
        keys = [(name, "ascending") for name in schema.sort]
        order = np.asarray(pc.sort_indices(rows.select(schema.sort), sort_keys=keys))
        self._order: Numbers = order.astype(np.int64)[filled[order]]
        self._days = days(rows.column(schema.event_time))

    def by_day(self) -> Iterator[tuple[date, Numbers]]:
        """Days, and of each the rows in order."""
        numbers = self._days[self._order]
        for number in np.unique(numbers).tolist():
            yield _EPOCH + timedelta(days=number), self._order[numbers == number]

    def pieces(self, order: Numbers) -> Iterator[pa.RecordBatch]:
        """The rows with these numbers, in that order, about a quarter of a row group at a time."""
        piece = np.cumsum(self._sizes[order]) // (ROW_GROUP_BYTES // 4)
        for numbers in np.split(order, np.flatnonzero(np.diff(piece)) + 1):
            yield self._take(numbers)

    def _take(self, numbers: Numbers) -> pa.RecordBatch:
        batch_of = np.searchsorted(self._starts, numbers, side="right") - 1
        parts, places = [], []
        for index in np.unique(batch_of).tolist():
            here = np.flatnonzero(batch_of == index)
            parts.append(self._batches[index].take(pa.array(numbers[here] - self._starts[index])))
            places.append(here)
        if len(parts) == 1:
            return parts[0]
        together = pa.Table.from_batches(parts).combine_chunks().to_batches()[0]
        return together.take(pa.array(np.argsort(np.concatenate(places))))


def _write(writer: DataFileWriter, schema: TableSchema, source: _Source, order: Numbers) -> Numbers:
    """Write rows; returns for each the number of the row that has its payload."""
    seen: dict[tuple[str | None, ...], int] = {}
    kept: list[int] = []
    for batch in source.pieces(order):
        payloads = batch.columns[2:]
        digests = [sha256s(values) for values in payloads]
        first = len(kept)
        kept += [
            seen.setdefault(key, first + row)
            for row, key in enumerate(zip(*(d.to_pylist() for d in digests), strict=True))
        ]
        rows = np.arange(first, len(kept))
        holders = np.asarray(kept[first:])
        own = holders == rows
        same_as = pa.array(holders, mask=own)
        if not own.all():
            chosen = pa.array(np.arange(len(rows)), mask=~own)
            payloads, digests = ([c.take(chosen) for c in some] for some in (payloads, digests))
        columns = [*batch.columns[:2], *payloads, *digests, same_as]
        writer.write(pa.RecordBatch.from_arrays(columns, schema=schema.arrow))
    return np.asarray(kept, dtype=np.int64)


def publish(staged: StagedPayload, folder: Path) -> None:
    """Give staged files their names among those of a table's segments; raises `StorageError`."""
    for name, path in staged.files.items():
        publish_new(path, folder / name)
        reach("payload.3")


def put_staged(storage: Storage, staged: StagedPayload, key_of: Callable[[str], str]) -> None:
    """Put staged files in the root, and nowhere else; raises `StorageError`."""
    for name, path in staged.files.items():
        _put(storage, key_of(name), PayloadName.parse(name), path)


def put(storage: Storage, key: str, name: str, folder: Path, staging: Path) -> None:
    """Put a segment's payload file in the root, unless it is there; it stays where it is, too.

    Raises:
        CorruptionError: it is gone, or not what was published.
        StorageError: it is not certain to be there.
    """
    parsed, path = PayloadName.parse(name), folder / name
    if why := damage(path, parsed):
        raise CorruptionError(f"payload file {str(path)!r} {why}; restore it from a copy")
    staged = staging / f"{uuid4().hex}.parquet"
    try:
        with refusals(f"cannot stage {str(path)!r}"):
            os.link(path, staged)
        _put(storage, key, parsed, staged)
    finally:
        discard(staged)


def _put(storage: Storage, key: str, name: PayloadName, staged: Path) -> None:
    if not storage.put_new(key, staged) and storage.size(key) != name.bytes:
        raise StorageError(f"{key!r} exists and has another size; nothing was committed")
    reach("payload.4")


def damage(path: Path, name: PayloadName) -> str | None:
    """Why a payload file is not what was published; None when it is. Reads all of it."""
    try:
        if path.stat().st_size != name.bytes:
            return f"has {path.stat().st_size:,} bytes of {name.bytes:,}"
        if not sha256(path).startswith(name.sha12):
            return "was altered: its sha256 is not that of its name"
    except FileNotFoundError:
        return "is gone"
    except OSError as error:
        raise_refusal(f"cannot read {str(path)!r}", error)
        return f"cannot be read: {error}"
    return None


def read_rows(path: Path, columns: Sequence[str], rows: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Payloads of some rows of a file, each held against its sha256; reads their row groups.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptionError: it cannot be read, has no such row, or has another value than was written.
    """
    found: dict[int, dict[str, Any]] = {}
    wanted = [*columns, *(sha256_name(name) for name in columns), SAME_AS]
    try:
        require_file(path)
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            counts = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            starts = np.cumsum([0, *counts])
            groups = np.searchsorted(starts, rows, side="right") - 1
            for group in np.unique(groups).tolist():
                table = file.read_row_group(group, columns=wanted)
                for row in [r for r, g in zip(rows, groups, strict=True) if g == group]:
                    found[row] = _values(table, columns, row - int(starts[group]))
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise_refusal(f"cannot read {str(path)!r}", error)
        raise CorruptionError(
            f"payload file {str(path)!r} cannot be read: {error!r}; restore it from a copy"
        ) from error
    return found


def _values(table: pa.Table, columns: Sequence[str], row: int) -> dict[str, Any]:
    """One row; raises ValueError when it is not what was written."""
    if table.column(SAME_AS)[row].is_valid:
        raise ValueError(f"another row has the payload of row {row}")
    values = {}
    for name in columns:
        value = table.column(name).slice(row, 1).combine_chunks()
        if not sha256s(value).equals(
            table.column(sha256_name(name)).slice(row, 1).combine_chunks()
        ):
            raise ValueError(f"column {name!r} of a row has another sha256 than was written")
        values[name] = value[0].as_py()
    return values
