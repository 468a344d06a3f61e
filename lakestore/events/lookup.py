"""Lookup: events by id. Hashes of ids say which files can hold one, and only those are opened."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakestore import quoting
from lakestore.context import TableContext
from lakestore.errors import InvalidInputError
from lakestore.idhash import Hashes, hash_ids, in_sorted, on_day
from lakestore.query.reader import Reader
from lakestore.snapshot import ColdFile, FileInfo, Segment

File = TypeVar("File", Segment, ColdFile)

_DAYS_MAX = 366
"""A file of more days is opened rather than asked for each."""


def lookup(reader: Reader, wanted: pa.Array) -> pa.Table:
    """The events that have one of these ids, as `ids_of` gives them, the newest first."""
    table = reader.pin.table
    asked = _Asked(table, wanted)
    pin = reader.pin
    here = pc.is_in(pin.buffered.column(table.schema.event_id), value_set=wanted)
    parts = replace(
        pin,
        buffered=pin.buffered.filter(here),
        segments=asked.those_that_may_hold(pin.segments),
        cold=asked.those_that_may_hold(pin.cold),
    )
    id = quoting.identifier(table.schema.event_id)
    marks = ", ".join(f"$id{i}" for i in range(len(wanted)))
    values = {f"id{i}": value for i, value in enumerate(wanted.to_pylist())}
    found = reader.rows(f"{id} IN ({marks})", values, parts)
    if found.num_rows < 2:  # as a rule; a sort of 71 columns takes 0.2 ms
        return found
    return found.sort_by([(table.schema.event_time, "descending")])


def that_may_hold(
    table: TableContext, files: Sequence[File], ids: Sequence[Any]
) -> tuple[File, ...]:
    """Files that can hold one of some ids, by the hashes of those that they hold."""
    return _Asked(table, ids_of(ids, table)).those_that_may_hold(files)


def ids_of(ids: Sequence[Any], table: TableContext) -> pa.Array:
    """What a caller takes for ids, in the type of the table's.

    Raises:
        InvalidInputError: an id is not of the column's type.
    """
    column = table.schema.column(table.schema.event_id)
    try:
        found = pa.array(ids, column.arrow_type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise InvalidInputError(f"ids are {column.sql_type}, which {ids!r} are not") from error
    if found.null_count:
        raise InvalidInputError("no event has the id None")
    return found


class _Asked:
    """Ids that are looked for, and which files can hold one."""

    def __init__(self, table: TableContext, wanted: pa.Array) -> None:
        self._table = table
        self._hashes = hash_ids(wanted, wanted, "none")
        self._by_days: dict[tuple[int, int], Hashes | None] = {}

    def those_that_may_hold(self, files: Sequence[File]) -> tuple[File, ...]:
        """Files that can hold one of the ids, by the hashes of those that they hold."""
        runs = self._table.file_ids.in_memory([file.name for file in files])
        return tuple(f for f, run in zip(files, runs, strict=True) if self._may_be_in(f, run))

    def _may_be_in(self, file: Segment | ColdFile, run: Hashes | None) -> bool:
        """Whether a file can hold one of the ids; `run` are its hashes, if they are in memory."""
        hashes = self._of(file.info)
        if hashes is None:
            return True
        if run is None:
            return self._may_be_in_unloaded(file, hashes)
        return len(run) > 0 and bool(np.count_nonzero(in_sorted(run, hashes)))

    def _may_be_in_unloaded(self, file: Segment | ColdFile, hashes: Hashes) -> bool:
        table = self._table
        if isinstance(file, Segment):
            source = partial(table.segment_path, file)
        elif table.site.storage.remote and table.file_ids.cached(file.name) is None:
            return True  # to fetch a whole column would take longer than the file's Bloom filter
        else:
            source = partial(table.cold_path, file)
        return bool(table.file_ids.contains(file.name, source, hashes).any())

    def _of(self, info: FileInfo) -> Hashes | None:
        """The hashes that a file has of the ids, if it holds them; None when it may be any."""
        if not info.rows:
            return self._hashes[:0]
        if self._table.schema.dedup != "day":
            return self._hashes
        if info.days not in self._by_days:
            self._by_days[info.days] = self._on_days(*info.days)
        return self._by_days[info.days]

    def _on_days(self, first: int, last: int) -> Hashes | None:
        if not first <= last < first + _DAYS_MAX:
            return None
        return np.concatenate([on_day(self._hashes, day) for day in range(first, last + 1)])
