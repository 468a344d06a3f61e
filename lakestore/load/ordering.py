"""The order of rows in cold files: by day, then in the table's sort order; where files end."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakestore.datafile import ROW_GROUP_ROWS
from lakestore.idhash import Hashes, days
from lakestore.schema import TableSchema

_DAY = "lakestore_day"
_ROWS_MIN = ROW_GROUP_ROWS
"""Fewer are not worth two files."""


def order(rows: pa.Table, schema: TableSchema) -> pa.Array | None:
    """The numbers of the rows by day, then in the table's sort order; None when they are in it."""
    keys: dict[str, pa.ChunkedArray | pa.Array] = {n: rows.column(n) for n in schema.sort}
    if schema.sort[0] != schema.event_time:
        keys = {_DAY: pa.array(days(rows.column(schema.event_time)))} | keys
    if _is_in_order(list(keys.values())):
        return None
    return pc.sort_indices(pa.table(keys), sort_keys=[(name, "ascending") for name in keys])


def _is_in_order(keys: Sequence[pa.ChunkedArray | pa.Array]) -> bool:
    """Whether no row is less than the one before it; False where nulls might decide."""
    if len(keys[0]) < 2:
        return True
    pairs = None  # those that are equal in the keys so far
    for values in keys:
        if values.null_count:
            return False
        before, after = values.slice(0, len(values) - 1), values.slice(1)
        if pairs is not None:
            before, after = before.take(pairs), after.take(pairs)
        if pc.any(pc.greater(before, after)).as_py():
            return False
        equal = np.flatnonzero(np.asarray(pc.equal(before, after)))
        if not len(equal):
            return True
        pairs = pa.array(equal) if pairs is None else pairs.take(pa.array(equal))
    return True


def by_file(
    rows: pa.Table, schema: TableSchema, hashes: Hashes, files: int
) -> Iterator[tuple[int, pa.Table, Hashes]]:
    """Rows in order, cut into those of each file: (day number, rows of that day, their hashes).

    Args:
        files: at least so many, so that as many can be written at a time; none has more than its
            share of the rows.
    """
    numbers = days(rows.column(schema.event_time))
    step = max(_ROWS_MIN, -(-rows.num_rows // files))
    borders = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), rows.num_rows]
    for start, end in itertools.pairwise(borders):
        for at in range(start, end, step):
            to = min(at + step, end)
            yield int(numbers[start]), rows.slice(at, to - at), hashes[at:to]
