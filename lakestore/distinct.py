"""Distinct: which columns hardly repeat a value, by a sample of their rows.

Of such a column pyarrow fills a dictionary of a megabyte, which then overflows: whoever looks for
one row reads it for nothing, and the file is the larger by it.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakestore.settings import MIB

_RUNS, _RUN_ROWS = 16, 128
"""The sample: runs of neighbours, for single rows would not show that neighbours are alike."""
_SAMPLE_BYTES = 4 * MIB
"""Of wide values fewer are looked at, for the sample is in memory a second time."""
_VALUES_MIN = 1_024
"""A dictionary of fewer costs nothing worth a look."""
_SHARE = 3 / 4


def hardly_repeats(column: pa.ChunkedArray) -> bool:
    """Whether a column has about three values for four rows, or more, as far as it is filled.

    The same rows always say the same, however they are cut into chunks: a file that is written
    again after a failure must have the same bytes, for its name holds their hash.
    """
    values = len(column) - column.null_count
    if values < _VALUES_MIN or pa.types.is_nested(column.type) or pa.types.is_boolean(column.type):
        return False
    neighbours = column.slice(len(column) // 2, _RUN_ROWS)  # rules most columns out for little
    if pc.count_distinct(neighbours).as_py() * 2 < len(neighbours) - neighbours.null_count:
        return False
    sample = _sample(column)
    counts = np.asarray(pc.value_counts(sample.drop_null()).field("counts"))
    distinct = float(len(counts))
    if len(sample) < len(column):
        distinct += _unseen(counts)
    return bool(distinct >= _SHARE * values)


def _sample(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Rows of a column, in runs that are spaced evenly."""
    rows, size = len(column), 0
    if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
        size = pc.sum(pc.binary_length(column)).as_py()  # not `nbytes`, which chunks alter
    fitting = _SAMPLE_BYTES * rows // max(1, size) // _RUNS
    run, step = max(1, min(_RUN_ROWS, fitting)), rows // _RUNS
    if step <= run:
        return column
    slices = (column.slice(number * step, run) for number in range(_RUNS))
    return pa.chunked_array([chunk for one in slices for chunk in one.chunks], column.type)


def _unseen(counts: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
    """How many values there are beside those of a sample, which holds each so many times.

    The share of values seen twice tells: of 19,500 values that 131,072 rows have, a sample of
    2,048 rows shows 1,900, which looks like a column of unique ones.

    Source: Chao, Nonparametric estimation of the number of classes in a population (1984).
    """
    once, twice = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
    return float(once * (once - 1) / (2 * (twice + 1)))
