"""Hashes of event ids, vectorised: no Python per row.

A hash only ever says "maybe the same"; whoever acts on one compares the ids themselves. So a
collision costs time, never a row. Ids that are text are hashed here, in half the time of a call
into polars; others by polars, whose hashes may change with its version: what is written to disk
says which version made it.
"""

from functools import cache

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from lakestore.schema import Dedup, TableSchema

Hashes = npt.NDArray[np.uint64]
HASH_VERSION = f"multilinear-1, polars {pl.__version__}"
_DAY_US = 86_400_000_000
_NONE: Hashes = np.empty(0, dtype=np.uint64)
_SLOT_BITS = 25
_SLOT_SHIFT, _THREE, _SEVEN = np.uint64(64 - _SLOT_BITS), np.uint64(3), np.uint64(7)
_BITS = np.left_shift(np.uint8(1), np.arange(8, dtype=np.uint8))
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
    hashes: Hashes
    if pa.types.is_string(ids.type):
        chunks = [ids] if isinstance(ids, pa.Array) else ids.chunks
        parts = [_hash_text(chunk) for chunk in chunks]
        hashes = parts[0] if len(parts) == 1 else np.concatenate([_NONE, *parts])
    else:
        hashes = pl.Series(values=ids).hash().to_numpy()
    if scope == "day":
        hashes = hashes + days(times).view(np.uint64) * _SPREAD
    return hashes


def _hash_text(ids: pa.StringArray) -> Hashes:
    """Hashes of texts without nulls: a multilinear hash of their 8-byte words, then a finalizer.

    Source: Lemire and Kaser, Strongly universal string hashing is fast (2014), with fixed keys;
    the finalizer is MurmurHash3's.
    """
    rows = len(ids)
    if rows == 0:
        return _NONE
    _, offset_buffer, data_buffer = ids.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32, rows + 1, ids.offset * 4)
    data = np.frombuffer(data_buffer if data_buffer is not None else b"", np.uint8)
    lengths = np.diff(offsets)
    length = int(lengths[0])
    if (lengths == length).all():
        texts = data[offsets[0] : offsets[-1]].reshape(rows, length)
        return _hash_words(texts)
    hashes = np.empty(rows, dtype=np.uint64)
    for length in np.unique(lengths).tolist():
        which = np.flatnonzero(lengths == length)
        hashes[which] = _hash_words(data[offsets[which, None] + np.arange(length)])
    return hashes


def _hash_words(texts: npt.NDArray[np.uint8]) -> Hashes:
    """Hashes of texts of one length, a row each."""
    rows, length = texts.shape
    padded = np.zeros((rows, -(-length // 8) * 8), dtype=np.uint8)
    padded[:, :length] = texts
    hashes: Hashes = padded.view(np.uint64) @ _keys(padded.shape[1] // 8)
    hashes += np.uint64((length + 1) * int(_SPREAD) % 2**64)
    hashes ^= hashes >> np.uint64(33)
    hashes *= np.uint64(0xFF51AFD7ED558CCD)
    hashes ^= hashes >> np.uint64(33)
    return hashes


@cache
def _keys(count: int) -> Hashes:
    """So many fixed odd keys."""
    generator = np.random.Generator(np.random.PCG64(20_251_122))
    return generator.integers(0, 2**64, count, dtype=np.uint64) | np.uint64(1)


def hash_batch(rows: pa.RecordBatch | pa.Table, schema: TableSchema) -> Hashes:
    """Hashes of what makes each event unique in the table's scope."""
    return hash_ids(rows.column(schema.event_id), rows.column(schema.event_time), schema.dedup)


def identities(rows: pa.RecordBatch | pa.Table, schema: TableSchema) -> list[object]:
    """What makes each event unique: its id, and in scope `day` the day too."""
    ids: list[object] = rows.column(schema.event_id).to_pylist()
    if schema.dedup != "day":
        return ids
    return list(zip(ids, days(rows.column(schema.event_time)).tolist(), strict=True))


def twins(ordered: Hashes) -> Hashes:
    """Those of the hashes, which are sorted, that are there more than once."""
    same = ordered[1:] == ordered[:-1]
    return ordered[1:][same] if same.any() else ordered[:0]


def id_sum(hashes: Hashes) -> int:
    """The sum modulo 2**64: equal for equal rows in any order."""
    return int(np.sum(hashes, dtype=np.uint64)) if len(hashes) else 0


class IdIndex:
    """A growing set of hashes: about 8 bytes a row, vectorised. One thread at a time.

    Sorted runs, each at least four times as long as the next, so n hashes are in log4(n) runs
    and each was merged as often (a log-structured merge). Before them a bitmap of which slots,
    named by a hash's highest bits, hold any: with a million hashes it answers for 31 of 32 that
    are not there. Its size is fixed, so that no append has to rebuild it.
    """

    def __init__(self) -> None:
        self._runs: list[Hashes] = []
        self._taken = np.zeros(1 << (_SLOT_BITS - 3), dtype=np.uint8)  # 4 MiB, when it is full

    def __len__(self) -> int:
        return sum(len(run) for run in self._runs)

    def add(self, ordered: Hashes) -> None:
        """Put hashes in; they are sorted, and need not be new."""
        if len(ordered) == 0:
            return
        run = ordered
        while self._runs and len(self._runs[-1]) < 4 * len(run):
            run = np.concatenate((self._runs.pop(), run))
            run.sort(kind="stable")  # two sorted halves: it merges them, in half the time
        self._runs.append(run)
        slots = ordered >> _SLOT_SHIFT
        np.bitwise_or.at(self._taken, slots >> _THREE, _BITS[slots & _SEVEN])

    def find(self, ordered: Hashes) -> Hashes:
        """Those of the hashes, which are sorted, that are in the set."""
        slots = ordered >> _SLOT_SHIFT
        maybe = self._taken[slots >> _THREE] & _BITS[slots & _SEVEN]
        probes: Hashes = ordered[maybe != 0]
        if len(probes) == 0:
            return probes
        found = np.zeros(len(probes), dtype=np.bool_)
        for run in self._runs:
            found |= in_sorted(run, probes)
        known: Hashes = probes[found]
        return known


def in_sorted(run: Hashes, probes: Hashes) -> npt.NDArray[np.bool_]:
    """For each of `probes`, whether the sorted `run` holds it."""
    at = np.searchsorted(run, probes)
    at[at == len(run)] = 0
    same: npt.NDArray[np.bool_] = run[at] == probes
    return same
