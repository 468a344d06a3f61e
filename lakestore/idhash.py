"""Hashes of event ids, vectorised: no Python per row.

A hash only ever says "maybe the same"; whoever acts on one compares the ids themselves. So a
collision costs time, never a row. Ids that are text are hashed here, in half the time of a call
into polars; others by polars, whose hashes may change with its version: what is written to disk
says which version made it.
"""

from datetime import date, timedelta
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from lakestore.document import Dedup
from lakestore.schema import TableSchema

Hashes = npt.NDArray[np.uint64]
HASH_VERSION = f"multilinear-2, polars {pl.__version__}"
_DAY_US = 86_400_000_000
_EPOCH = date(1970, 1, 1)
NO_HASHES: Hashes = np.empty(0, dtype=np.uint64)
_SMALL_SLOTS, _LARGE_SLOTS = 1 << 18, 1 << 21  # 2 and 16 MiB, where they are filled
_PATTERN_BITS, _PATTERN_MASK = np.uint64(12), np.uint64(0xFFF)
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


def _three_bits() -> Hashes:
    """Random patterns of three bits of 64, one for each value of twelve bits."""
    generator = np.random.Generator(np.random.PCG64(20_251_123))
    bits = np.argsort(generator.random((1 << 12, 64)), axis=1)[:, :3].astype(np.uint64)
    patterns: Hashes = np.bitwise_or.reduce(np.uint64(1) << bits, axis=1)
    return patterns


_PATTERNS = _three_bits()
_PREFIX_BITS = 25
"""A byte for each prefix: 32 MiB at most."""
_FEW = 16
"""Hashes so many times fewer than those of a run are better searched for one by one."""


def micros(times: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Event times, which are never null, as microseconds since 1970."""
    if isinstance(times, pa.Array):
        values: npt.NDArray[np.int64] = times.view(pa.int64()).to_numpy()
        return values
    return np.asarray(pc.cast(times, pa.int64()))


def days(times: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """UTC day numbers (days since 1970-01-01) of event times in microseconds."""
    return micros(times) // _DAY_US


def days_of(times: pa.Array | pa.ChunkedArray) -> set[date]:
    """The UTC days that there are events of."""
    numbers = days(times)
    changes = numbers[np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1))]
    return {_EPOCH + timedelta(days=number) for number in np.unique(changes).tolist()}


def hash_ids(
    ids: pa.Array | pa.ChunkedArray, times: pa.Array | pa.ChunkedArray, scope: Dedup
) -> Hashes:
    """One 64-bit hash a row of what makes an event unique: its id, and in scope `day` its day."""
    hashes: Hashes
    if pa.types.is_string(ids.type):
        chunks = [ids] if isinstance(ids, pa.Array) else ids.chunks
        parts = [_hash_text(chunk) for chunk in chunks]
        hashes = parts[0] if len(parts) == 1 else np.concatenate([NO_HASHES, *parts])
    else:
        hashes = pl.Series(values=ids).hash().to_numpy()
    if scope == "day" and len(hashes):
        moments = micros(times)
        first, last = int(moments.min()) // _DAY_US, int(moments.max()) // _DAY_US
        if first == last:  # as a rule; a third of the work
            return on_day(hashes, first)
        hashes = hashes + (moments // _DAY_US).view(np.uint64) * _SPREAD
    return hashes


def on_day(hashes: Hashes, day: int) -> Hashes:
    """What hashes of ids are in scope `day`, of events of that day."""
    return hashes + np.uint64(day * int(_SPREAD) % 2**64)


def _hash_text(ids: pa.StringArray) -> Hashes:
    """Hashes of texts without nulls: a multilinear hash of their 8-byte words, then mixed.

    Source: Lemire and Kaser, Strongly universal string hashing is fast (2014), with fixed keys;
    the mixing is the first half of MurmurHash3's finalizer, which leaves the high bits good.
    """
    rows = len(ids)
    if rows == 0:
        return NO_HASHES
    _, offset_buffer, data_buffer = ids.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32, rows + 1, ids.offset * 4)
    data = np.frombuffer(data_buffer if data_buffer is not None else b"", np.uint8)
    lengths = np.diff(offsets)
    length = int(lengths[0])
    if (lengths == length).all():
        return _hash_words(data[offsets[0] : offsets[-1]], rows, length)
    hashes = np.empty(rows, dtype=np.uint64)
    for length in np.unique(lengths).tolist():
        which = np.flatnonzero(lengths == length)
        texts = data[offsets[which, None] + np.arange(length)]
        hashes[which] = _hash_words(texts, len(which), length)
    return hashes


def _hash_words(data: npt.NDArray[np.uint8], rows: int, length: int) -> Hashes:
    """Hashes of `rows` texts of one length, which lie in `data` one after the other."""
    if length < 8:
        padded = np.zeros((rows, 8), dtype=np.uint8)
        padded[:, :length] = data.reshape(rows, length)
        words: Hashes = padded.view(np.uint64)
    else:  # the last word overlaps the one before it, so that nothing is padded
        words = np.ndarray((rows, length // 8), np.uint64, data.data, 0, (length, 8))
        if length % 8:
            last = np.ndarray((rows, 1), np.uint64, data.data, length - 8, (length, 8))
            words = np.concatenate((words, last), axis=1)
    hashes: Hashes = words @ _keys(words.shape[1])
    hashes += np.uint64((length + 1) * int(_SPREAD) % 2**64)
    hashes ^= hashes >> np.uint64(33)
    hashes *= np.uint64(0xFF51AFD7ED558CCD)
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

    A blocked Bloom filter says of nearly all hashes that are not there that they are not; those
    that may be are looked up in sorted runs. Each run is at least four times as long as the next,
    so n hashes are in log4(n) runs and each was merged as often (a log-structured merge); what no
    look-up has needed yet waits unmerged.
    """

    def __init__(self) -> None:
        self._runs: list[Hashes] = []
        self._unmerged: list[Hashes] = []
        self._count = 0
        self._bloom = _Bloom(_SMALL_SLOTS)

    def __len__(self) -> int:
        return self._count

    def add(self, ordered: Hashes) -> None:
        """Put hashes in; they are sorted, and need not be new."""
        if len(ordered) == 0:
            return
        self._count += len(ordered)
        self._unmerged.append(ordered)
        if self._count > self._bloom.slots and self._bloom.slots < _LARGE_SLOTS:
            self._bloom = _Bloom(_LARGE_SLOTS)
            for run in (*self._runs, *self._unmerged):
                self._bloom.add(run)
        else:
            self._bloom.add(ordered)

    def find(self, ordered: Hashes) -> Hashes:
        """Those of the hashes, which are sorted, that are in the set."""
        maybe = self._bloom.may_hold(ordered)
        if not maybe.any():
            return NO_HASHES
        self._merge()
        probes: Hashes = ordered[maybe]
        found = np.zeros(len(probes), dtype=np.bool_)
        for run in self._runs:
            found |= in_sorted(run, probes)
        known: Hashes = probes[found]
        return known

    def _merge(self) -> None:
        waiting, self._unmerged = self._unmerged, []
        if not waiting:
            return
        run = np.sort(np.concatenate(waiting))
        while self._runs and len(self._runs[-1]) < 4 * len(run):
            run = np.concatenate((self._runs.pop(), run))
            run.sort(kind="stable")  # two sorted halves: it merges them, in half the time
        self._runs.append(run)


class _Bloom:
    """A Bloom filter in 64-bit slots, so that each look-up is of one place in memory.

    A hash's high bits choose its slot, the next twelve three bits in it. With two hashes a slot,
    1 of 1,000 look-ups of what is not there says "maybe".

    Source: Putze, Sanders and Singler, Cache-, hash- and space-efficient Bloom filters (2007).
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._shift = np.uint64(65 - slots.bit_length())
        self._pattern_shift = self._shift - _PATTERN_BITS
        self._slots: Hashes = np.zeros(slots, dtype=np.uint64)
        self._asked: tuple[Hashes, Hashes, Hashes] = (NO_HASHES, NO_HASHES, NO_HASHES)

    def add(self, hashes: Hashes) -> None:
        _, slots, patterns = self._places(hashes)
        np.bitwise_or.at(self._slots, slots, patterns)

    def may_hold(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        _, slots, patterns = self._places(hashes)
        present: npt.NDArray[np.bool_] = self._slots[slots] & patterns == patterns
        return present

    def _places(self, hashes: Hashes) -> tuple[Hashes, Hashes, Hashes]:
        """The hashes, their slots and bits; kept, for what was just asked is mostly added next."""
        if self._asked[0] is not hashes:
            patterns = _PATTERNS[(hashes >> self._pattern_shift) & _PATTERN_MASK]
            self._asked = (hashes, hashes >> self._shift, patterns)
        return self._asked


class Sought:
    """Hashes that are looked for in many sorted runs.

    A table says of a hash's first bits whether one of these begins so: of a run that has none of
    them nine tenths are ruled out in passing over it, at a fraction of the cost of searches.
    """

    def __init__(self, hashes: Hashes) -> None:
        self.ordered: Hashes = np.sort(hashes)
        self._shift = np.uint64(64 - min(_PREFIX_BITS, len(hashes).bit_length() + 3))

    @cached_property
    def _begins(self) -> npt.NDArray[np.bool_]:
        table = np.zeros(1 << (64 - int(self._shift)), dtype=np.bool_)
        table[(self.ordered >> self._shift).view(np.int64)] = True
        return table

    def found_in(self, run: Hashes) -> Hashes:
        """Those that the sorted `run` holds, in order."""
        if len(self.ordered) * _FEW < len(run):
            return self.ordered[in_sorted(run, self.ordered)]
        maybe = run[self._begins[(run >> self._shift).view(np.int64)]]
        return maybe[in_sorted(self.ordered, maybe)] if len(maybe) else NO_HASHES


def in_sorted(run: Hashes, probes: Hashes) -> npt.NDArray[np.bool_]:
    """For each of `probes`, whether the sorted `run` holds it; the run is not empty."""
    at = run.searchsorted(probes)
    same: npt.NDArray[np.bool_] = run.take(at, mode="clip") == probes  # past the end, the last
    return same
