"""Partials made by numpy: rows are sorted once by one number a row, and columns added up in runs.

The number is of the row's bucket and of a code for each key, so no text is compared but where a
column is encoded. It gives the rows that `rollup.partial_sql` gives, and gives up (None) where it
could not be exact: sums that 64 bits might not hold, kinds of columns that it does not know, more
rows than fit the memory of one thread. Columns are read one at a time.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lakestore import rollup
from lakestore.columns import Column
from lakestore.document import BUCKET, COUNT, HISTOGRAM, Rollup, count_of, sum_of
from lakestore.schema import TableSchema

ROWS_MAX = 4_000_000
"""Of more rows, DuckDB makes the partial, which spills; these take about 150 bytes each."""
_CODES_MAX = 1 << 62
_NEAR = 1 << 18
"""Integers from 0 whose bins are remembered: milliseconds up to four minutes, in 1 MiB."""
Integers = npt.NDArray[np.int64]
Bins = npt.NDArray[np.int32]


class Unsupported(Exception):
    """What is left to DuckDB."""


@dataclass(frozen=True)
class Codes:
    """A column as numbers from 0; equal values have the same."""

    numbers: npt.NDArray[Any]
    values: pa.Array
    """By number; null has one too, where there are nulls."""


class Columns:
    """The columns of some rows; codes are kept for the next rollup of the same rows."""

    def __init__(self, rows: pa.Table) -> None:
        self.rows = rows.num_rows
        self._table = rows
        self._forget()

    def _forget(self) -> None:
        self._codes: dict[str, Codes] = {}
        self._times: Integers | None = None

    def read(self, name: str) -> pa.ChunkedArray:
        """A column; of texts that are keys, perhaps as a dictionary."""
        return self._table.column(name)

    def codes(self, name: str) -> Codes:
        """The codes of a column."""
        if name not in self._codes:
            self._codes[name] = _encoded(self.read(name))
        return self._codes[name]

    def times(self, name: str) -> Integers:
        """The microseconds of the column of event times, which are kept too."""
        if self._times is None:
            self._times = _micros(self.read(name))
        return self._times


class FileColumns(Columns):
    """The columns of a Parquet file, read when they are asked for."""

    def __init__(self, path: Path, rows: int, keys: Iterable[str]) -> None:
        """Nothing is read yet, so nothing fails.

        Args:
            keys: columns to be read as Parquet's own dictionaries, where these are of text.
        """
        self.rows = rows
        self._path = path
        self._keys = list(keys)
        self._file: pq.ParquetFile | None = None
        self._forget()

    def read(self, name: str) -> pa.ChunkedArray:
        """As `Columns.read`, from the file."""
        if self._file is None:
            self._file = pq.ParquetFile(self._path, read_dictionary=self._keys)
        return self._file.read(columns=[name], use_threads=False).column(name)

    def close(self) -> None:
        """Close the file; a removed one takes up room until then."""
        if self._file is not None:
            self._file.close()


class Binner:
    """The bins of numbers, by the SQL that bins rows in a scan: so percentiles are the same."""

    def __init__(self, run: Callable[[str, pa.Table], pa.Table]) -> None:
        """As `Engine.aggregated` runs a query, of what it calls `rows`."""
        self._run = run

    def of(self, values: pa.Array) -> Bins:
        """The bin of each number; of a null, any."""
        signed = pa.types.is_integer(values.type) and values.type != pa.uint64()
        if not signed:
            return self._by_sql(values)
        numbers, near = _integers(values), self._near
        bins = near.take(numbers, mode="clip")
        far = numbers.view(np.uint64) >= len(near)  # negative ones are the greatest there
        if far.any():
            bins[far] = self._by_sql(pa.array(numbers[far]))
        return bins

    @cached_property
    def _near(self) -> Bins:
        return self._by_sql(pa.array(np.arange(_NEAR)))

    def _by_sql(self, values: pa.Array) -> Bins:
        query = f"SELECT {rollup.bin_sql('x')} AS bin FROM rows"
        bins = self._run(query, pa.table({"x": values})).column("bin")
        if len(bins) != len(values) or bins.null_count != values.null_count:
            raise Unsupported  # a null would be counted as some bin
        return np.array(pc.fill_null(bins, 0), dtype=np.int32)


def partial(one: Rollup, schema: TableSchema, columns: Columns, binner: Binner) -> pa.Table | None:
    """The partial of rows, ordered by bucket; None when it is left to DuckDB."""
    arrow = rollup.arrow_schema(one, schema)
    if not columns.rows:
        return arrow.empty_table()
    if columns.rows > ROWS_MAX:
        return None
    try:
        groups, made = _grouped(one, schema, columns, schema.event_time)
        for name in dict.fromkeys((*one.sums, *one.max, *one.histograms)):
            values = columns.read(name).combine_chunks()
            made |= _states(one, schema.column(name), values, groups, binner)
        return pa.table([made[name] for name in arrow.names], schema=arrow)
    except (Unsupported, MemoryError):
        return None


def merged(one: Rollup, schema: TableSchema, partials: pa.Table) -> pa.Table | None:
    """Partials added up to one, ordered by bucket; None when it is left to whoever has the rows."""
    arrow = rollup.arrow_schema(one, schema)
    if not partials.num_rows:
        return arrow.empty_table()
    try:
        groups, made = _grouped(one, schema, Columns(partials), BUCKET)
        for name in (COUNT, *(count_of(schema.column(name)) for name in one.sums)):
            made[name] = pa.array(groups.total(_integers(_whole(partials, name))[groups.order]))
        for name in one.sums:
            values = _integers(_whole(partials, f"sum_{name}"))[groups.order]
            none = made[count_of(schema.column(name))].to_numpy() == 0
            made[f"sum_{name}"] = _sums(values, groups, sum_of(schema.column(name)), none)
        for name in (f"max_{name}" for name in one.max):
            made[name] = _greatest(_whole(partials, name), groups)
        for name in (f"hist_{name}" for name in one.histograms):
            made[name] = _merged_histograms(_whole(partials, name), groups)
        return pa.table([made[name] for name in arrow.names], schema=arrow)
    except (Unsupported, MemoryError):
        return None


def _whole(table: pa.Table, name: str) -> pa.Array:
    return table.column(name).combine_chunks()


class _Groups:
    """Rows in the order of their groups."""

    def __init__(self, keys: Integers, below: int) -> None:
        """Groups of equal keys, which are from 0 and `below` a bound."""
        bits = len(keys).bit_length()
        if below << bits <= _CODES_MAX:  # the sort of numbers is several times as fast as argsort
            packed = (keys << bits) | np.arange(len(keys))
            packed.sort()
            self.order = packed & ((1 << bits) - 1)
            packed >>= bits
        else:
            self.order = np.argsort(keys, kind="stable")
            packed = keys[self.order]
        self.starts = np.flatnonzero(np.diff(packed, prepend=-1))
        self.sizes = np.diff(self.starts, append=len(keys))

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def firsts(self) -> Integers:
        """A row of each group."""
        return self.order[self.starts]

    def numbers(self) -> Integers:
        """The number of its group, for each row in order."""
        return np.repeat(np.arange(len(self)), self.sizes)

    def ranked(self) -> Integers:
        """The number of its group, for each row as they came."""
        ranks = np.empty(len(self.order), np.int64)
        ranks[self.order] = self.numbers()
        return ranks

    def total(self, numbers: npt.NDArray[Any]) -> Integers:
        """Sums by group of what stands in order."""
        return np.add.reduceat(numbers, self.starts, dtype=np.int64)


def _grouped(
    one: Rollup, schema: TableSchema, columns: Columns, time: str
) -> tuple[_Groups, dict[str, pa.Array]]:
    """The groups, and their columns of a partial so far: the keys, and how many rows."""
    buckets = columns.times(time) // one.every_us  # downwards before 1970 too
    least = int(buckets.min())
    keys = buckets - least
    below = int(keys.max()) + 1
    codes = {name: columns.codes(name) for name in one.by}
    for name, code in codes.items():
        if code.values.type != schema.column(name).arrow_type:
            raise Unsupported
        if below * len(code.values) > _CODES_MAX:
            dense = _Groups(keys, below)
            keys, below = dense.ranked(), len(dense)
        if len(code.values) > 1:
            keys *= len(code.values)
            keys += code.numbers
            below *= len(code.values)
    groups = _Groups(keys, below)
    firsts = groups.firsts
    starts = pa.array(buckets[firsts] * one.every_us)
    made = {BUCKET: starts.view(pa.timestamp("us", "UTC"))}
    made |= {name: c.values.take(pa.array(c.numbers[firsts])) for name, c in codes.items()}
    return groups, made | {COUNT: pa.array(groups.sizes)}


def _micros(times: pa.ChunkedArray) -> Integers:
    if times.null_count or not pa.types.is_timestamp(times.type) or times.type.unit != "us":
        raise Unsupported
    micros = _integers(times.combine_chunks())
    if max(-int(micros.min()), int(micros.max())) >= 1 << 62:  # infinite ones are DuckDB's to say
        raise Unsupported
    return micros


def _encoded(column: pa.ChunkedArray) -> Codes:
    """Codes of a column in the smallest numbers that hold them, so that those of many fit."""
    if not pa.types.is_dictionary(column.type):
        if pa.types.is_floating(column.type) or pa.types.is_nested(column.type):
            raise Unsupported
        column = column.dictionary_encode()
    whole = column.combine_chunks()  # chunks may have dictionaries of their own
    values, numbers = whole.dictionary, whole.indices
    if numbers.null_count:
        numbers = pc.fill_null(numbers, pa.scalar(len(values), numbers.type))
        values = pa.concat_arrays([values, pa.nulls(1, values.type)])
    return Codes(numbers.to_numpy().astype(np.min_scalar_type(len(values))), values)


def _states(
    one: Rollup, column: Column, values: pa.Array, groups: _Groups, binner: Binner
) -> dict[str, pa.Array]:
    """What a partial keeps of a column."""
    name, made = column.name, dict[str, pa.Array]()
    if values.type != column.arrow_type:
        raise Unsupported
    if column.nullable and values.null_count == len(values):
        return _of_nulls(one, column, len(groups))
    valid = None
    counts = groups.sizes
    if values.null_count:
        valid = values.is_valid().to_numpy(zero_copy_only=False)[groups.order]
        counts = groups.total(valid)
    if name in one.histograms:
        made[f"hist_{name}"] = _histograms(binner.of(values)[groups.order], valid, groups)
    if name in one.sums:
        numbers = _integers(values)[groups.order]
        made[f"sum_{name}"] = _sums(numbers, groups, sum_of(column), counts == 0)
        if column.nullable:
            made[count_of(column)] = pa.array(counts)
    if name in one.max:
        made[f"max_{name}"] = _greatest(values, groups)
    return made


def _of_nulls(one: Rollup, column: Column, count: int) -> dict[str, pa.Array]:
    """What is kept of a column that is not filled, as many are: nothing need be added up."""
    name, made = column.name, dict[str, pa.Array]()
    if name in one.sums:
        made[f"sum_{name}"] = pa.nulls(count, sum_of(column))
        made[count_of(column)] = pa.array(np.zeros(count, np.int64))
    if name in one.max:
        made[f"max_{name}"] = pa.nulls(count, column.arrow_type)
    if name in one.histograms:
        made[f"hist_{name}"] = pa.nulls(count, HISTOGRAM)
    return made


def _sums(
    numbers: Integers, groups: _Groups, kind: pa.DataType, none: npt.NDArray[Any]
) -> pa.Array:
    """Sums of numbers in the order of their groups, null where there are `none`."""
    greatest = max(-int(numbers.min()), int(numbers.max()))
    if greatest * int(groups.sizes.max()) >= 1 << 63:
        raise Unsupported
    return _restored(groups.total(numbers), kind, none)


def _greatest(values: pa.Array, groups: _Groups) -> pa.Array:
    """The greatest value of each group, null where it has none."""
    numbers = _integers(values)[groups.order]
    none = np.zeros(len(groups), np.bool_)
    if values.null_count:
        valid = values.is_valid().to_numpy(zero_copy_only=False)[groups.order]
        numbers[~valid] = np.iinfo(np.int64).min
        none = groups.total(valid) == 0
    return _restored(np.maximum.reduceat(numbers, groups.starts), values.type, none)


def _histograms(bins: Bins, valid: npt.NDArray[Any] | None, groups: _Groups) -> pa.Array:
    numbers = groups.numbers()
    if valid is not None:
        bins, numbers = bins[valid], numbers[valid]
    return rollup.counted(numbers, bins, len(groups))


def _merged_histograms(lists: pa.ListArray, groups: _Groups) -> pa.Array:
    sizes = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    bins, values = (lists.flatten().field(name).to_numpy() for name in ("bin", "n"))
    return rollup.counted(np.repeat(groups.ranked(), sizes), bins, len(groups), values)


def _integers(values: pa.Array) -> Integers:
    """Values in 64 bits, in their order; 0 for nulls."""
    kind = values.type
    if pa.types.is_decimal128(kind):
        return _unscaled(values)
    if pa.types.is_date32(kind) or pa.types.is_time32(kind):
        values = values.view(pa.int32())
    elif pa.types.is_timestamp(kind) or pa.types.is_time64(kind):
        values = values.view(pa.int64())
    elif not pa.types.is_integer(kind):
        raise Unsupported
    numbers = (pc.fill_null(values, 0) if values.null_count else values).to_numpy()
    if kind == pa.uint64() and int(numbers.max()) >= 1 << 63:
        raise Unsupported
    return np.asarray(numbers, dtype=np.int64)


def _unscaled(values: pa.Array) -> Integers:
    """The integers of decimals, which have 128 bits each, as long as 64 of them tell all."""
    halves = np.frombuffer(values.buffers()[1], dtype=np.int64).reshape(-1, 2)
    low, high = halves[values.offset : values.offset + len(values)].T
    if values.null_count:
        valid = values.is_valid().to_numpy(zero_copy_only=False)
        low, high = np.where(valid, low, 0), np.where(valid, high, 0)
    if not np.array_equal(high, low >> 63):
        raise Unsupported
    return np.asarray(low, dtype=np.int64)


def _restored(numbers: Integers, kind: pa.DataType, null: npt.NDArray[Any]) -> pa.Array:
    """The inverse of `_integers`."""
    mask = null if null.any() else None
    if pa.types.is_decimal128(kind):
        bits = pa.array(numbers, mask=mask).buffers()[0]
        halves = np.stack([numbers, numbers >> 63], axis=1)
        return pa.Array.from_buffers(kind, len(numbers), [bits, pa.py_buffer(halves)])
    if pa.types.is_integer(kind):
        return pa.array(numbers, mask=mask).cast(kind, safe=False)  # what null stands on is any
    width = np.int32 if kind.bit_width == 32 else np.int64
    return pa.array(numbers.astype(width), mask=mask).view(kind)
