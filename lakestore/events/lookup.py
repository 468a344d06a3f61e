"""Lookup: events by id. Hashes of ids say which files can hold one, and only those are opened."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakestore import quoting
from lakestore.clock import EPOCH
from lakestore.context import TableContext
from lakestore.errors import InvalidInputError
from lakestore.idhash import Hashes, hash_ids, on_day
from lakestore.query.reader import EVENTS, Reader
from lakestore.snapshot import ColdFile, FileInfo, Segment

_DAY = timedelta(days=1)
_DAYS_MAX = 366
"""A file of more days is opened rather than asked for each."""


def lookup(reader: Reader, ids: Sequence[Any]) -> pa.Table:
    """The events that have one of these ids, the newest first.

    Raises:
        InvalidInputError: an id is not of the column's type.
    """
    table = reader.pin.table
    wanted = _ids(ids, table)
    asked = _Asked(table, wanted)
    pin = reader.pin
    here = pc.is_in(pin.buffered.column(table.schema.event_id), value_set=wanted)
    views = replace(
        pin,
        buffered=pin.buffered.filter(here),
        segments=tuple(s for s in pin.segments if asked.may_be_in(s)),
        cold=tuple(f for f in pin.cold if asked.may_be_in(f)),
    )
    id = quoting.identifier(table.schema.event_id)
    marks = ", ".join(f"$id{i}" for i in range(len(wanted)))
    found = reader.fetch(
        f"SELECT * FROM {EVENTS} WHERE {id} IN ({marks})",
        {f"id{i}": value for i, value in enumerate(wanted.to_pylist())},
        {EVENTS: views},
    )
    return found.sort_by([(table.schema.event_time, "descending")])


def _ids(ids: Sequence[Any], table: TableContext) -> pa.Array:
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
        self._by_day: dict[int, Hashes] = {}

    def may_be_in(self, file: Segment | ColdFile) -> bool:
        """Whether a file can hold one of the ids, by the hashes of those that it holds."""
        table = self._table
        hashes = self._of(file.info)
        if hashes is None:
            return True
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
        first, last = ((t - EPOCH) // _DAY for t in (info.min_time, info.max_time))
        if not first <= last < first + _DAYS_MAX:
            return None
        days = [self._on_day(day) for day in range(first, last + 1)]
        return days[0] if len(days) == 1 else np.concatenate(days)

    def _on_day(self, day: int) -> Hashes:
        if day not in self._by_day:
            self._by_day[day] = on_day(self._hashes, day)
        return self._by_day[day]
