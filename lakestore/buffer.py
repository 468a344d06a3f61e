"""The buffer: rows of one table that this process holds in memory, journaled but not flushed.

A generation is one journal file and the batches that mirror it. Rows are visible to queries once
they are acknowledged, in journal order. Two locks, always taken in this order:

    Buffer.lock         one append or rotation at a time
    visibility          pointer swaps and counters only; shared by the tables of a lake, so that
                        a query of several tables pins all of them at one instant
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import pyarrow as pa

from lakestore.clock import Clock
from lakestore.errors import BackpressureError, StorageError
from lakestore.journal import Entry, JournalWriter
from lakestore.settings import Settings
from lakestore.snapshot import GenerationId

_TINY_BATCHES = 64
"""So many unmerged batches are merged when a query pins them; each scan costs per batch."""


@dataclass
class Generation:
    """Batches of one journal file, in its order. Guarded as the buffer's own fields are."""

    id: GenerationId
    schema_version: int
    journal: JournalWriter | None  # None: recovered from a dead writer's file
    began: float
    batches: list[pa.RecordBatch] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    marks: list[tuple[int, str, int, int]] = field(default_factory=list)
    visible: int = 0
    merged: int = 0
    rows: int = 0
    bytes: int = 0
    closed: bool = False

    def add(self, batches: Sequence[pa.RecordBatch], end: int) -> None:
        """Take rows that the journal holds up to `end`; its bytes are about Arrow's own."""
        self.bytes += end - (self.ends[-1] if self.ends else 0)
        for batch in batches:
            self.batches.append(batch)
            self.ends.append(end)
            self.rows += batch.num_rows


@dataclass(frozen=True)
class Pinned:
    """The visible rows of a generation at one instant."""

    id: GenerationId
    closed: bool
    batches: tuple[pa.RecordBatch, ...]


class Buffer:
    """Generations of one table in this process, oldest first; the last may be open."""

    def __init__(
        self,
        open_journal: Callable[[int], JournalWriter],
        visibility: threading.Lock,
        schema_version: int,
        settings: Settings,
        clock: Clock,
    ) -> None:
        self.lock = threading.RLock()
        self.visibility = visibility
        self._room = threading.Condition(self.lock)
        self._open_journal = open_journal
        self._schema_version = schema_version
        self._settings = settings
        self._clock = clock
        self._numbers = 0
        self._generations: list[Generation] = []  # guarded by visibility, changed under lock too
        self._adopted: set[tuple[str, int]] = set()
        self.producers: dict[str, int] = {}  # guarded by lock: the highest seq accepted of each

    def append(
        self,
        batches: Sequence[pa.RecordBatch],
        producer: str | None,
        seq: int | None,
        *,
        queue: bool = False,
    ) -> tuple[Generation, int]:
        """Journal rows and hold them, not yet visible; the caller has `lock`.

        Raises:
            StorageError: the disk refused; nothing was accepted.
        """
        generation = self._current()
        assert generation.journal is not None
        end = generation.journal.append(batches, producer, seq, queue=queue)
        with self.visibility:
            generation.add(batches, end)
        if producer is not None and seq is not None:
            generation.marks.append((end, producer, seq, self.producers.get(producer, -1)))
            self.producers[producer] = seq
        return generation, end

    def adopt(self, id: GenerationId, schema_version: int, entries: Sequence[Entry]) -> None:
        """Hold the rows of a dead writer's journal, visible at once."""
        generation = Generation(id, schema_version, None, self._clock.monotonic(), closed=True)
        for entry in entries:
            if entry.producer is not None and entry.seq is not None:
                if (entry.producer, entry.seq) in self._adopted:
                    continue  # written again after an fsync that failed: already held
                self._adopted.add((entry.producer, entry.seq))
                known = self.producers.get(entry.producer, -1)
                generation.marks.append((entry.end, entry.producer, entry.seq, known))
                self.producers[entry.producer] = max(known, entry.seq)
            generation.add(entry.batches, entry.end)
        generation.visible = len(generation.batches)
        with self.lock, self.visibility:
            self._generations.append(generation)

    def publish(self, generation: Generation, end: int) -> None:
        """Make rows visible up to journal offset `end`, and all before them."""
        with self.visibility:
            ends = generation.ends
            while generation.visible < len(ends) and ends[generation.visible] <= end:
                generation.visible += 1

    def sync(self, generation: Generation, end: int) -> None:
        """Make rows durable up to `end`, then visible.

        Raises:
            StorageError: the disk refused; rows that were not acknowledged are let go, and the
                next append begins a new journal.
        """
        journal = generation.journal
        if journal is None:
            return
        try:
            if journal.synced < end:
                with self.lock:
                    journal.write_queued()
                journal.sync_to(end)
        except StorageError:
            self._fail(generation)
            raise
        self.publish(generation, end)

    def sync_all(self) -> None:
        """Make everything held durable and visible; raises as `sync`."""
        with self.lock, self.visibility:
            ends = [(g, g.ends[-1]) for g in self._generations if g.ends]
        for generation, end in ends:
            self.sync(generation, end)

    def rotate(self) -> list[Generation]:
        """Close the open generation and return all that wait for a flush, oldest first."""
        with self.lock:
            with self.visibility:
                generations = list(self._generations)
            last = generations[-1] if generations else None
            if last is not None and not last.closed:
                if last.rows == 0:
                    generations.pop()
                else:
                    with self.visibility:
                        last.closed = True
        for generation in generations:
            # A journal that fails here lets unacknowledged rows go; the rest is in memory still,
            # and the segment makes it durable.
            with suppress(StorageError):
                self.sync(generation, generation.ends[-1] if generation.ends else 0)
        return generations

    def retire(self, ids: Sequence[GenerationId]) -> None:
        """Let generations go whose rows a published segment holds."""
        gone = set(ids)
        with self.lock:
            with self.visibility:
                retired = [g for g in self._generations if g.id in gone]
                self._generations = [g for g in self._generations if g.id not in gone]
            for generation in retired:
                if generation.journal is not None:
                    generation.journal.close()
            self._room.notify_all()

    def pin(self) -> tuple[Pinned, ...]:
        """The visible rows of every generation; the caller holds `visibility`."""
        return tuple(Pinned(g.id, g.closed, _merged(g)) for g in self._generations if g.visible)

    def wait_for_room(self, bytes_max: int, timeout_s: float) -> None:
        """Return when less than `bytes_max` wait for a flush; the caller has `lock`.

        Raises:
            BackpressureError: nothing was flushed in time.
        """
        if not self._room.wait_for(lambda: self.bytes < bytes_max, timeout_s):
            raise BackpressureError(
                f"{self.bytes:,} bytes wait for a flush, the limit is {bytes_max:,}, and none came "
                f"in {timeout_s:g} s; nothing of this batch was accepted: flush(), then retry"
            )

    @property
    def bytes(self) -> int:
        """Arrow bytes that wait for a flush."""
        with self.visibility:
            return sum(g.bytes for g in self._generations)

    @property
    def rows(self) -> int:
        """Rows that wait for a flush, visible or not."""
        with self.visibility:
            return sum(g.rows for g in self._generations)

    @property
    def began(self) -> float | None:
        """Monotonic time at which the oldest unflushed row came, or None."""
        with self.visibility:
            return next((g.began for g in self._generations if g.rows), None)

    @property
    def ids(self) -> frozenset[GenerationId]:
        """Generations held here."""
        with self.visibility:
            return frozenset(g.id for g in self._generations)

    def all_batches(self) -> list[pa.RecordBatch]:
        """Every row held, visible or not; the caller has `lock`."""
        with self.visibility:
            return [batch for g in self._generations for batch in g.batches]

    def find(self, id: GenerationId) -> Generation | None:
        """The generation, or None when it was flushed."""
        with self.visibility:
            return next((g for g in self._generations if g.id == id), None)

    def close(self) -> None:
        """Let the files go; what was not flushed stays in them."""
        with self.lock, self.visibility:
            for generation in self._generations:
                if generation.journal is not None:
                    generation.journal.close()
            self._generations = []

    def _current(self) -> Generation:
        with self.visibility:
            last = self._generations[-1] if self._generations else None
        if last is not None and not last.closed:
            assert last.journal is not None
            if last.journal.failed:
                self._fail(last)
            elif last.rows < self._settings.flush_rows and last.bytes < self._settings.flush_bytes:
                return last
            else:  # full: a flush that lags behind then takes it in bounded pieces
                last.journal.write_queued()
                with self.visibility:
                    last.closed = True
        self._numbers += 1
        journal = self._open_journal(self._numbers)
        fresh = Generation(journal.id, self._schema_version, journal, self._clock.monotonic())
        with self.visibility:
            self._generations.append(fresh)
        return fresh

    def _fail(self, generation: Generation) -> None:
        """Close a generation whose journal failed, and let go what nobody was told is accepted."""
        with self.lock:
            with self.visibility:
                kept = generation.visible
                end = generation.ends[kept - 1] if kept else 0
                del generation.batches[kept:], generation.ends[kept:]
                generation.rows = sum(b.num_rows for b in generation.batches)
                generation.bytes = end
                generation.closed = True
            while generation.marks and generation.marks[-1][0] > end:
                _, producer, _, before = generation.marks.pop()
                self.producers[producer] = before


def _merged(generation: Generation) -> tuple[pa.RecordBatch, ...]:
    """The visible batches, tiny ones merged for good."""
    g = generation
    if g.visible - g.merged > _TINY_BATCHES:
        tiny = pa.Table.from_batches(g.batches[g.merged : g.visible])
        if tiny.num_rows < _TINY_BATCHES * 1024:
            merged = tiny.combine_chunks().to_batches()
            g.batches[g.merged : g.visible] = merged
            g.ends[g.merged : g.visible] = [g.ends[g.visible - 1]] * len(merged)
            g.visible = g.merged + len(merged)
        g.merged = g.visible
    return tuple(g.batches[: g.visible])
