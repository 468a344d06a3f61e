"""Hashes of event ids, vectorised: no Python per row.

A hash only ever says "maybe the same"; whoever acts on one compares the ids themselves. So a
collision costs time, never a row. The hashes are polars' and may change with its version: what
is written to disk says which version made it.
"""

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from lakestore.schema import Dedup, TableSchema

Hashes = npt.NDArray[np.uint64]
HASH_VERSION = f"polars-{pl.__version__}"
_DAY_US = 86_400_000_000
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


def micros(times: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Event times, which are never null, as microseconds since 1970."""
    if isinstance(times, pa.Array):
        values: npt.NDArray[np.int64] = times.view(pa.int64()).to_numpy()
        return values
    return np.asarray(pc.cast(times, pa.int64()))


def days(times: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """UTC day numbers (days since 1970-01-01) of event times in microseconds."""
    return micros(times) // _DAY_US


def hash_ids(
    ids: pa.Array | pa.ChunkedArray, times: pa.Array | pa.ChunkedArray, scope: Dedup
) -> Hashes:
    """One 64-bit hash a row of what makes an event unique: its id, and in scope `day` its day."""
    hashes: Hashes = pl.Series(values=ids).hash().to_numpy()
    if scope == "day":
        hashes = hashes + days(times).view(np.uint64) * _SPREAD
    return hashes


def hash_batch(rows: pa.RecordBatch | pa.Table, schema: TableSchema) -> Hashes:
    """Hashes of what makes each event unique in the table's scope."""
    return hash_ids(rows.column(schema.event_id), rows.column(schema.event_time), schema.dedup)


def identities(rows: pa.RecordBatch | pa.Table, schema: TableSchema) -> list[object]:
    """What makes each event unique: its id, and in scope `day` the day too."""
    ids: list[object] = rows.column(schema.event_id).to_pylist()
    if schema.dedup != "day":
        return ids
    return list(zip(ids, days(rows.column(schema.event_time)).tolist(), strict=True))


def repeated(hashes: Hashes) -> npt.NDArray[np.intp]:
    """Indices of the hashes that are there more than once."""
    ordered = np.sort(hashes)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice) == 0:
        return np.empty(0, dtype=np.intp)
    return np.flatnonzero(in_sorted(twice, hashes))


def id_sum(hashes: Hashes) -> int:
    """The sum modulo 2**64: equal for equal rows in any order."""
    return int(np.sum(hashes, dtype=np.uint64)) if len(hashes) else 0


class IdIndex:
    """A growing set of hashes: 16 bytes a row or less, vectorised. One thread at a time.

    Sorted runs, each at least four times as long as the next, so n hashes are in log4(n) runs
    and each was merged as often (a log-structured merge). Before them a map of which slots, named
    by a hash's highest bits, hold any: it answers for seven hashes in eight that are not there.
    """

    def __init__(self) -> None:
        self._runs: list[Hashes] = []
        self._bits = 16
        self._taken = np.zeros(1 << self._bits, dtype=np.bool_)

    def __len__(self) -> int:
        return sum(len(run) for run in self._runs)

    def add(self, hashes: Hashes) -> None:
        """Put hashes in; they need not be sorted or new."""
        if len(hashes) == 0:
            return
        run = np.sort(hashes)
        self._taken[self._slots(run)] = True
        while self._runs and len(self._runs[-1]) < 4 * len(run):
            run = np.concatenate((self._runs.pop(), run))
            run.sort()
        self._runs.append(run)
        if len(self) * 8 > len(self._taken):
            self._grow()

    def find(self, hashes: Hashes) -> npt.NDArray[np.intp]:
        """Indices of the hashes that are in the set."""
        maybe = np.flatnonzero(self._taken[self._slots(hashes)])
        if len(maybe) == 0:
            return maybe
        probes = hashes[maybe]
        found = np.zeros(len(maybe), dtype=np.bool_)
        for run in self._runs:
            found |= in_sorted(run, probes)
        return maybe[found]

    def _slots(self, hashes: Hashes) -> npt.NDArray[np.intp]:
        return (hashes >> np.uint64(64 - self._bits)).astype(np.intp)

    def _grow(self) -> None:
        self._bits = max(self._bits, (16 * len(self) - 1).bit_length())
        self._taken = np.zeros(1 << self._bits, dtype=np.bool_)
        for run in self._runs:
            self._taken[self._slots(run)] = True


def in_sorted(run: Hashes, probes: Hashes) -> npt.NDArray[np.bool_]:
    """For each of `probes`, whether the sorted `run` holds it."""
    at = np.searchsorted(run, probes)
    at[at == len(run)] = 0
    same: npt.NDArray[np.bool_] = run[at] == probes
    return same
