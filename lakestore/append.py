"""Append: coerce, drop duplicates, journal, acknowledge.

Order of effects, numbered as their failpoints are:

    append.1 coerced    .2 frame in the journal, but for its digest    .3 duplicates looked up,
    while the disk takes it in    .4 the digest, or a frame without them; batches in the buffer
    .5 fdatasync    .6 visible, and then acknowledged

The commit point is the fdatasync (level `disk`), the write (`os`) or the buffer (`memory`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakestore.buffer import Buffer, Generation, Level
from lakestore.coerce import to_batches
from lakestore.errors import InvalidInputError
from lakestore.failpoint import reach
from lakestore.idhash import Hashes, IdIndex, hash_batch, identities, in_sorted, twins
from lakestore.lineage import Lineage
from lakestore.policy import to_buffered
from lakestore.quoting import UNSPEAKABLE
from lakestore.schema import TableSchema
from lakestore.settings import Settings
from lakestore.snapshot import GenerationId

LEVELS = ("memory", "os", "disk")
_REBUILD_ROWS = 4_000_000


@dataclass(frozen=True)
class Position:
    """A place in a journal; `lake.wait` makes everything before it durable."""

    table: str
    generation: GenerationId
    offset: int


@dataclass(frozen=True)
class Ack:
    """What an append promises: `rows` accepted at `level`, `duplicates` known already.

    `position` is None when there was nothing to write. Where the schema names a table of
    `rejects`, `rejected` rows did not fit and are there, on the disk.
    """

    rows: int
    duplicates: int
    level: Level
    position: Position | None
    rejected: int = 0


class Appender:
    """Accepts events of one table; any number of threads may call it."""

    def __init__(
        self,
        table: str,
        lineage: Callable[[], Lineage],
        buffer: Buffer,
        settings: Settings,
        find_published: Callable[[pa.Array], pa.Table],
        highest_elsewhere: Callable[[str], int],
        on_append: Callable[[Buffer], None],
    ) -> None:
        """The appender of a table.

        Args:
            lineage: the table's schema as it is now; it changes while `buffer.lock` is held.
            find_published: ids and times of published events that have one of these ids.
            highest_elsewhere: the highest seq of a producer that other writers hold.
            on_append: told of each append.
        """
        self._table = table
        self._lineage = lineage
        self._buffer = buffer
        self._settings = settings
        self._find_published = find_published
        self._highest_elsewhere = highest_elsewhere
        self._on_append = on_append
        self._known = IdIndex()  # guarded by buffer.lock

    def append(self, data: Any, producer: str | None, seq: int | None, level: str) -> Ack:
        """Accept a batch whole, or raise and accept nothing.

        Raises:
            SchemaError, InvalidInputError: the batch does not fit.
            BackpressureError: the buffer stayed full.
            StorageError: the disk refused.
        """
        level = check_level(level)
        _check_producer(producer, seq)
        lineage = self._lineage()
        return self.accept(to_batches(data, lineage.schema), lineage, producer, seq, level)

    def accept(
        self,
        batches: Sequence[pa.RecordBatch],
        lineage: Lineage,
        producer: str | None,
        seq: int | None,
        level: str,
    ) -> Ack:
        """As `append`, of batches that fit a version of the schema."""
        level = check_level(level)
        batches = [to_buffered(batch, lineage.schema) for batch in batches]
        if not batches:
            return Ack(0, 0, level, None)
        rows = sum(batch.num_rows for batch in batches)
        reach("append.1")
        buffer = self._buffer
        with buffer.lock:
            if (now := self._lineage()) is not lineage:  # the schema evolved meanwhile
                batches = list(now.buffered(lineage.newest).batches(batches))
            accepted = self._accept(batches, producer, seq, level)
        if accepted is None:
            # Its rows are known, but are they durable? Whoever sent them first may still wait.
            self.sync_all(level)
            return Ack(0, rows, level, None)
        fresh, generation, end = accepted
        if level == "disk":
            buffer.sync(generation, end)
        reach("append.6")
        self._on_append(buffer)
        return Ack(fresh, rows - fresh, level, Position(self._table, generation.id, end))

    def _accept(
        self, batches: list[pa.RecordBatch], producer: str | None, seq: int | None, level: Level
    ) -> tuple[int, Generation, int] | None:
        """Journal the new ones of the rows and hold them; None when all were known before."""
        buffer = self._buffer
        if producer is not None and seq is not None and self._is_known(producer, seq):
            return None
        buffer.wait_for_room(self._settings.buffer_bytes, self._settings.append_timeout_s)
        fresh = batches

        def choose() -> list[pa.RecordBatch]:
            nonlocal fresh
            fresh, hashes = self._drop_duplicates(batches)
            # Before the rows are held: a hash too many costs a look, one too few a double row.
            self._known.add(hashes)
            if not fresh and producer is not None:
                fresh = [batches[0].slice(0, 0)]  # so that the pair is known for ever
            return fresh

        generation, end = buffer.append(batches, producer, seq, choose, level)
        reach("append.4")
        if not fresh:
            return None
        if level != "disk":
            buffer.publish(generation, end)
        return sum(batch.num_rows for batch in fresh), generation, end

    def knows(self, producer: str, seq: int) -> bool:
        """Whether a producer's batch was accepted, by this process or another."""
        with self._buffer.lock:
            return self._is_known(producer, seq)

    def _is_known(self, producer: str, seq: int) -> bool:
        """Whether a producer's batch was accepted, by this process or another.

        The journal file is made first: a flush that commits the same batch later than this look
        then knows that there is a writer who may not have seen it (see `flush`).
        """
        if seq <= self._buffer.producers.get(producer, -1):
            return True
        self._buffer.current()
        return seq <= self._highest_elsewhere(producer)

    def sync_all(self, level: Level) -> None:
        """Bring everything accepted so far to `level`."""
        if level == "memory":
            return
        self._buffer.sync_all()

    def learn(self, hashes: Hashes) -> None:
        """Take hashes of rows that are published, or recovered."""
        with self._buffer.lock:
            self._known.add(np.sort(hashes))

    def forget_sealed(self, unsealed: Callable[[], Hashes]) -> None:
        """Shrink the index to unsealed rows, once sealed ones make up most of it."""
        if len(self._known) < _REBUILD_ROWS:
            return
        published = unsealed()
        with self._buffer.lock:
            index = IdIndex()
            index.add(np.sort(published))
            for part in self._hashes(self._buffer.all_batches()):
                index.add(np.sort(part))
            self._known = index

    @property
    def _schema(self) -> TableSchema:
        """Id, event time and scope of duplicates: those are the same in every version."""
        return self._lineage().schema

    def _hashes(self, batches: list[pa.RecordBatch]) -> list[Hashes]:
        if self._schema.dedup == "none":
            return []
        return [hash_batch(batch, self._schema) for batch in batches]

    def _drop_duplicates(
        self, batches: list[pa.RecordBatch]
    ) -> tuple[list[pa.RecordBatch], Hashes]:
        """The rows not seen before, and their hashes, sorted. Hashes nominate, ids decide."""
        hashes = self._hashes(batches)
        if not hashes:
            return batches, np.empty(0, dtype=np.uint64)
        ordered = np.sort(hashes[0] if len(hashes) == 1 else np.concatenate(hashes))
        nominated = np.concatenate((self._known.find(ordered), twins(ordered)))
        if len(nominated) == 0:
            return batches, ordered
        nominated.sort()
        suspects = [in_sorted(nominated, part) for part in hashes]
        fresh, kept = self._decide(batches, hashes, suspects)
        return fresh, np.sort(np.concatenate(kept)) if kept else ordered[:0]

    def _decide(
        self,
        batches: list[pa.RecordBatch],
        hashes: list[Hashes],
        suspects: list[npt.NDArray[np.bool_]],
    ) -> tuple[list[pa.RecordBatch], list[Hashes]]:
        """Compare suspects' ids with those held and published, and among themselves."""
        schema = self._schema
        wanted = pa.concat_arrays(
            [
                b.column(schema.event_id).filter(pa.array(m))
                for b, m in zip(batches, suspects, strict=True)
            ]
        )
        known: set[object] = set()
        for held in self._buffer.all_batches():
            hit = pc.is_in(held.column(schema.event_id), value_set=wanted)
            if hit.true_count:
                known.update(identities(held.filter(hit), schema))
        known.update(identities(self._find_published(wanted), schema))
        fresh, fresh_hashes = [], []
        for batch, part, mask in zip(batches, hashes, suspects, strict=True):
            keep = np.ones(batch.num_rows, dtype=np.bool_)
            rows = np.flatnonzero(mask)
            for row, identity in zip(
                rows, identities(batch.filter(pa.array(mask)), schema), strict=True
            ):
                keep[row] = identity not in known
                known.add(identity)
            if keep.all():
                fresh.append(batch)
                fresh_hashes.append(part)
            elif keep.any():
                fresh.append(batch.filter(pa.array(keep)))
                fresh_hashes.append(part[keep])
        return fresh, fresh_hashes


def check_level(level: str) -> Level:
    """`level`, when it is a level of acknowledgement; raises `InvalidInputError`."""
    if level not in LEVELS:
        raise InvalidInputError(f"level {level!r} is none of {', '.join(LEVELS)}")
    return level  # type: ignore[return-value]


def _check_producer(producer: str | None, seq: int | None) -> None:
    if (producer is None) != (seq is None):
        raise InvalidInputError("producer and seq go together: pass both or neither")
    if producer is None:
        return
    size = len(producer.encode(errors="replace")) if isinstance(producer, str) else 0
    if not 0 < size <= 512 or UNSPEAKABLE.search(str(producer).replace("\0", "")):
        raise InvalidInputError("producer must be 1 to 512 bytes of text")
    if not isinstance(seq, int) or isinstance(seq, bool) or not 0 <= seq < 2**63:
        raise InvalidInputError(f"seq {seq!r} is not an integer from 0 to 2**63 - 1")
