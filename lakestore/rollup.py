"""Rollups: what a partial of a file's rows is, as SQL; pure.

A rollup groups events by a bucket of time and by columns. Its partial of a file has one row a group
and only what can be merged exactly: counts, exact sums, greatest values, and histograms of bins
whose width grows with the value. Partials of several files are merged by adding them up:

    bucket, <by …>, n, sum_<c>, n_<c> (values that are not null), max_<c>, hist_<c>

A column that is declared NOT NULL has no n_<c>, which would be n.

A percentile is the middle of its bin, whether it comes from partials or from rows: it is wrong by
at most 1 % of the value, and does not depend on how rows lie in files.
"""

import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakestore import quoting
from lakestore.document import BUCKET, COUNT, HISTOGRAM, Rollup, count_of, sum_of
from lakestore.errors import NotFoundError
from lakestore.schema import TableSchema

GAMMA = 1.02
"""Each bin is so many times as wide as the one before it."""
RELATIVE_ERROR = (GAMMA - 1) / (GAMMA + 1)
"""How far a percentile is from the value it stands for, at most: 0.99 % of it."""
_MIDDLE = 40_000  # the bin of 1.0; those of all doubles are between 2,000 and 76,000
_INFINITE, _NAN = 100_000, 100_001
_BIN_BITS = 18  # hold a bin, from the greatest down to its mirror image
_LN_GAMMA = f"{math.log(GAMMA)!r}::DOUBLE"
_LN_CENTRE = f"{math.log(2 / (1 + GAMMA))!r}::DOUBLE"  # of a bin, below its upper end
_LN_MAX = f"({math.log(sys.float_info.max) - 1e-12!r}::DOUBLE)"
_FORMAT = 2


def find(schema: TableSchema, name: str) -> Rollup:
    """The rollup of that name; raises `NotFoundError`."""
    for rollup in schema.document.rollups:
        if rollup.name == name:
            return rollup
    raise NotFoundError(f"no rollup {name!r}")


def arrow_schema(rollup: Rollup, schema: TableSchema) -> pa.Schema:
    """Names and types of a partial's columns."""
    return pa.schema(rollup.fields({c.name: c for c in schema.columns}))


def fingerprint(rollup: Rollup, schema: TableSchema) -> str:
    """Eight hex digits that change whenever a partial of the same rows would."""
    told = [_FORMAT, GAMMA, rollup.every_us, schema.event_time, str(arrow_schema(rollup, schema))]
    told.append(rollup.model_dump(exclude={"name", "every"}))
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:8]


def uncounted(rollup: Rollup, schema: TableSchema) -> list[str]:
    """The columns of which a partial takes every row for a value."""
    return [name for name in rollup.sums if not schema.column(name).nullable]


def partial_sql(rollup: Rollup, schema: TableSchema, source: str) -> str:
    """A SELECT that gives the partial of a relation, in no order.

    Args:
        source: what stands after FROM: a table function, a name, a subquery in parentheses. It
            has the table's columns that the rollup reads.
    """
    named = {name: quoting.identifier(name) for name in rollup.sources}
    columns = {c.name: c for c in schema.columns}
    kept = [f"{bucket_sql(rollup, quoting.identifier(schema.event_time))} AS {BUCKET}"]
    kept += [named[name] for name in rollup.by]
    kept.append(f"count(*) AS {COUNT}")
    for name in rollup.sums:
        total = f"CAST(sum({named[name]}) AS DECIMAL(38, {sum_of(columns[name]).scale}))"
        kept.append(f"{total} AS {quoting.identifier(f'sum_{name}')}")
        if columns[name].nullable:
            kept.append(f"count({named[name]}) AS {quoting.identifier(count_of(columns[name]))}")
    for name in rollup.max:
        kept.append(f"max({named[name]}) AS {quoting.identifier(f'max_{name}')}")
    for name in rollup.histograms:
        counts = f"map_entries(histogram({bin_sql(named[name])}))"
        made = f"[{{'bin': e.key, 'n': CAST(e.value AS BIGINT)}} FOR e IN {counts}]"
        kept.append(f"{made} AS {quoting.identifier(f'hist_{name}')}")
    keys = ", ".join(str(i + 1) for i in range(1 + len(rollup.by)))
    return f"SELECT {', '.join(kept)} FROM {source} GROUP BY {keys}"


def counted(
    groups: npt.NDArray[np.int64],
    bins: npt.NDArray[np.int32],
    count: int,
    values: npt.NDArray[np.int64] | None = None,
) -> pa.ListArray:
    """The histograms of so many groups, of a group's number and a bin for each value.

    A group without a value has null, as in `partial_sql`.

    Args:
        values: how many are in the bin each time, where it is not one.
    """
    keys = (groups << _BIN_BITS) + bins + _NAN  # in 64 bits, and above 0
    if values is None:
        keys.sort()
    else:
        order = np.argsort(keys, kind="stable")
        keys, values = keys[order], values[order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    if values is None:
        counts = np.diff(starts, append=len(keys))
    else:
        counts = np.add.reduceat(values, starts) if len(starts) else values
    found, of = (keys[starts] & ((1 << _BIN_BITS) - 1)) - _NAN, keys[starts] >> _BIN_BITS
    offsets = np.searchsorted(of, np.arange(count + 1)).astype(np.int32)
    entries = [pa.array(found.astype(np.int32)), pa.array(counts.astype(np.int64))]
    return pa.ListArray.from_arrays(
        pa.array(offsets),
        pa.StructArray.from_arrays(entries, fields=list(HISTOGRAM.value_type)),
        type=HISTOGRAM,
        mask=pa.array(np.diff(offsets) == 0),
    )


def bucket_sql(rollup: Rollup, event_time: str) -> str:
    """The start of the bucket of a time, whatever the zone of the session: TIMESTAMPTZ."""
    micros, every = f"epoch_us({event_time})", rollup.every_us
    return f"make_timestamptz({micros} - (({micros} % {every} + {every}) % {every}))"


def bin_sql(number: str) -> str:
    """The bin of a number (INTEGER); bins have the order of their numbers, and nulls have none.

    Positive numbers up to GAMMA ^ k, from where the bin before it ends, are in bin 40,000 + k;
    negative ones are mirrored, 0 is alone, NaN is the greatest.
    """
    d = f"CAST({number} AS DOUBLE)"
    # DuckDB raises for the logarithm of 0, wherever an optimizer may put it.
    size = f"ceil(ln(nullif(abs({d}), 0)) / {math.log(GAMMA)!r})"
    return (
        f"CASE WHEN {d} = 0 THEN 0 "
        f"WHEN isfinite({d}) THEN CAST(sign({d}) * ({_MIDDLE} + {size}) AS INTEGER) "
        f"WHEN isnan({d}) THEN {_NAN} WHEN {d} > 0 THEN {_INFINITE} "
        f"WHEN {d} < 0 THEN -{_INFINITE} END"
    )


def bin_value_sql(bin: str) -> str:
    """The number that stands for a bin (DOUBLE): off by `RELATIVE_ERROR` of any in it, at most."""
    size = f"exp(least((abs({bin}) - {_MIDDLE}) * {_LN_GAMMA} + {_LN_CENTRE}, {_LN_MAX}))"
    return (
        f"CASE WHEN {bin} = 0 THEN 0::DOUBLE WHEN {bin} = {_NAN} THEN 'NaN'::DOUBLE "
        f"WHEN abs({bin}) = {_INFINITE} THEN sign({bin}) * 'Infinity'::DOUBLE "
        f"ELSE sign({bin}) * {size} END"
    )


def bins_of_partials(column: str, source: str, keys: Sequence[str] = ()) -> str:
    """A SELECT of (keys, bin, n): the histograms of partials, merged.

    Args:
        column: one of the rollup's `histograms`.
        source: the partials, as in `partial_sql`; a subquery where some are left out.
        keys: quoted names of its columns.
    """
    hist = quoting.identifier(f"hist_{column}")
    flat = f"SELECT {''.join(f'{key}, ' for key in keys)}unnest({hist}) AS h FROM {source}"
    return (
        f"SELECT {''.join(f'{key}, ' for key in keys)}h.bin AS bin, "
        f"CAST(sum(h.n) AS BIGINT) AS n FROM ({flat}) GROUP BY ALL"
    )


def bins_of_rows(column: str, source: str, keys: Sequence[str] = ()) -> str:
    """A SELECT of (keys, bin, n): the histograms of rows; as `bins_of_partials`."""
    name = quoting.identifier(column)
    return (
        f"SELECT {''.join(f'{key}, ' for key in keys)}{bin_sql(name)} AS bin, count(*) AS n "
        f"FROM {source} WHERE {name} IS NOT NULL GROUP BY ALL"
    )


def quantiles_sql(bins: str, at: Mapping[str, float], keys: Sequence[str] = ()) -> str:
    """A SELECT of (keys, a DOUBLE per quantile), by nearest rank, as `quantile_disc` of bins.

    Args:
        bins: rows of (keys, bin, n), as in `partial_sql`; a bin may come several times.
        at: 0 to 1, by the name of the column that it gives.
        keys: quoted names of columns of `bins`.
    """
    head = "".join(f"{key}, " for key in keys)
    whole = f"PARTITION BY {', '.join(keys)}" if keys else ""
    merged = f"SELECT {head}bin, sum(n) AS n FROM {bins} GROUP BY ALL"
    ranked = (
        f"SELECT {head}bin, sum(n) OVER ({whole} ORDER BY bin) AS upto, sum(n) OVER ({whole}) AS "
        f"total FROM ({merged})"
    )
    values = []
    for name, q in at.items():
        rank = f"greatest(1, total - floor(total - {q!r}::DOUBLE * total))"
        least = f"min(bin) FILTER (upto >= {rank})"
        values.append(f"{bin_value_sql(f'({least})')} AS {quoting.identifier(name)}")
    group = f" GROUP BY {', '.join(keys)}" if keys else ""
    return f"SELECT {head}{', '.join(values)} FROM ({ranked}){group}"
