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


def days(times: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """UTC day numbers (days since 1970-01-01) of event times in microseconds."""
    micros: npt.NDArray[np.int64] = np.asarray(pc.cast(times, pa.int64()))
    return micros // _DAY_US


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


def repeated(hashes: Hashes) -> npt.NDArray[np.bool_]:
    """For each hash, whether it is there more than once."""
    order = np.argsort(hashes)
    ordered = hashes[order]
    same = ordered[1:] == ordered[:-1]
    result = np.zeros(len(hashes), dtype=np.bool_)
    if same.any():
        result[order[1:][same]] = True
        result[order[:-1][same]] = True
    return result


def id_sum(hashes: Hashes) -> int:
    """The sum modulo 2**64: equal for equal rows in any order."""
    return int(np.sum(hashes, dtype=np.uint64)) if len(hashes) else 0


class IdIndex:
    """A growing set of hashes, as sorted runs: 8 bytes a row, lookups by binary search.

    Each run is at least four times as long as the next, so n hashes are in log4(n) runs and each
    was merged as often (a log-structured merge). One thread at a time.
    """

    def __init__(self) -> None:
        self._runs: list[Hashes] = []

    def __len__(self) -> int:
        return sum(len(run) for run in self._runs)

    def add(self, hashes: Hashes) -> None:
        """Put hashes in; they need not be sorted or new."""
        if len(hashes) == 0:
            return
        run = np.sort(hashes)
        while self._runs and len(self._runs[-1]) < 4 * len(run):
            run = np.concatenate((self._runs.pop(), run))
            run.sort()
        self._runs.append(run)

    def contains(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """For each hash, whether it is in the set."""
        found = np.zeros(len(hashes), dtype=np.bool_)
        if not self._runs or len(hashes) == 0:
            return found
        order = np.argsort(hashes)  # sorted probes stay in the cache: a third of the time
        probes = hashes[order]
        for run in self._runs:
            found |= in_sorted(run, probes)
        result = np.empty_like(found)
        result[order] = found
        return result


def in_sorted(run: Hashes, probes: Hashes) -> npt.NDArray[np.bool_]:
    """For each of `probes`, whether the sorted `run` holds it."""
    at = np.searchsorted(run, probes)
    at[at == len(run)] = 0
    same: npt.NDArray[np.bool_] = run[at] == probes
    return same
