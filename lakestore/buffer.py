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
from typing import Literal

import pyarrow as pa

from lakestore.clock import Clock
from lakestore.errors import BackpressureError, StorageError
from lakestore.failpoint import reach
from lakestore.journal import Entry, JournalWriter
from lakestore.settings import Settings
from lakestore.snapshot import GenerationId

Level = Literal["memory", "os", "disk"]
"""How safe a row is once it is acknowledged: in this process, in the kernel, on the disk."""

_TINY_BATCHES = 64
"""So many unmerged batches are merged when a query pins them; each scan costs per batch."""


@dataclass(frozen=True)
class Mark:
    """One append of a producer: which rows of its generation, and the highest seq before it."""

    producer: str
    seq: int
    start: int
    stop: int
    end: int
    """Journal offset after it."""
    before: int


@dataclass
class Generation:
    """Rows of one journal file, in its order. Guarded as the buffer's own fields are."""

    id: GenerationId
    journal: JournalWriter | None  # None: recovered from a dead writer's file
    began: float
    schema_version: int
    frames: list[tuple[pa.RecordBatch, int]] = field(default_factory=list)  # with journal offsets
    marks: list[Mark] = field(default_factory=list)
    visible: int = 0
    merged: int = 0
    rows: int = 0
    closed: bool = False

    @property
    def end(self) -> int:
        """Journal offset after the last row held; about as many bytes as Arrow takes."""
        return self.frames[-1][1] if self.frames else 0

    def add(
        self,
        batches: Sequence[pa.RecordBatch],
        end: int,
        producer: str | None,
        seq: int | None,
        before: int,
    ) -> None:
        """Take rows that the journal holds up to `end`: all of them, even if interrupted.

        Args:
            before: the highest seq of `producer` until now.
        """
        start = self.rows
        self.frames += [(batch, end) for batch in batches]
        self.rows += sum(batch.num_rows for batch in batches)
        if producer is not None and seq is not None:
            self.marks.append(Mark(producer, seq, start, self.rows, end, before))


@dataclass(frozen=True)
class Pinned:
    """The visible rows of a generation at one instant."""

    id: GenerationId
    closed: bool
    batches: tuple[pa.RecordBatch, ...]
    schema_version: int


@dataclass(frozen=True)
class ClosedGeneration:
    """A generation that takes no more rows, as a flush sees it."""

    id: GenerationId
    recovered: bool
    batches: tuple[pa.RecordBatch, ...]
    marks: tuple[Mark, ...]
    schema_version: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(batch.num_rows for batch in self.batches)

    @property
    def bytes(self) -> int:
        """Arrow bytes of the rows."""
        return sum(batch.nbytes for batch in self.batches)


class Buffer:
    """Generations of one table in this process, oldest first; the last may be open."""

    def __init__(
        self,
        open_journal: Callable[[int, int], JournalWriter],
        visibility: threading.Lock,
        settings: Settings,
        clock: Clock,
    ) -> None:
        self.lock = threading.RLock()
        self.visibility = visibility
        self._room = threading.Condition(self.lock)
        self._open_journal = open_journal
        self._settings = settings
        self._clock = clock
        self._numbers = 0
        self._generations: list[Generation] = []  # guarded by visibility
        self._adopted: set[tuple[str, int]] = set()
        self.producers: dict[str, int] = {}  # guarded by lock: the highest seq accepted of each

    def append(
        self,
        batches: Sequence[pa.RecordBatch],
        producer: str | None,
        seq: int | None,
        choose: Callable[[], Sequence[pa.RecordBatch]],
        level: Level,
    ) -> tuple[Generation, int]:
        """Journal rows and hold them, not yet visible; the caller has `lock`.

        Args:
            choose: says which of the rows to keep, the same batches when that is all of them;
                meanwhile the disk already takes them in.

        Returns:
            The generation, and the journal offset after the rows.

        Raises:
            StorageError: the disk refused; nothing was accepted.
        """
        generation = self.current()
        journal = generation.journal
        assert journal is not None
        if level != "memory":
            journal.begin(batches, producer, seq, sync=level == "disk")
        try:
            reach("append.2")
            kept = choose()
            reach("append.3")
        except BaseException:
            journal.withdraw()
            raise
        if kept is batches and level != "memory":
            end = journal.accept()
        else:
            journal.withdraw()
            queue = level == "memory"
            end = journal.append(kept, producer, seq, queue=queue) if kept else journal.end
        if kept:
            before = self.producers.get(producer or "", -1)
            with self.visibility:
                generation.add(kept, end, producer, seq, before)
            if producer is not None and seq is not None:
                self.producers[producer] = max(before, seq)
        return generation, end

    def adopt(self, id: GenerationId, entries: Sequence[Entry], schema_version: int) -> None:
        """Hold the rows of a dead writer's journal, visible at once."""
        generation = Generation(id, None, self._clock.monotonic(), schema_version, closed=True)
        with self.lock:
            for entry in entries:
                before = self.producers.get(entry.producer or "", -1)
                if entry.producer is not None and entry.seq is not None:
                    if (entry.producer, entry.seq) in self._adopted:
                        continue  # written again after an fsync that failed: already held
                    self._adopted.add((entry.producer, entry.seq))
                    self.producers[entry.producer] = max(before, entry.seq)
                generation.add(entry.batches, entry.end, entry.producer, entry.seq, before)
            generation.visible = len(generation.frames)
            with self.visibility:
                self._generations.insert(0, generation)  # the open one stays the last

    def publish(self, generation: Generation, end: int) -> None:
        """Make rows visible up to journal offset `end`, and all before them."""
        with self.visibility:
            frames = generation.frames
            while generation.visible < len(frames) and frames[generation.visible][1] <= end:
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
        finally:
            if journal.failed:
                self._fail(generation)
        reach("append.5")
        self.publish(generation, end)

    def sync_all(self) -> None:
        """Make everything held durable and visible; raises as `sync`."""
        with self.lock, self.visibility:
            ends = [(g, g.end) for g in self._generations if g.frames]
        for generation, end in ends:
            self.sync(generation, end)

    def rotate(self) -> list[ClosedGeneration]:
        """Close the open generation and return all that wait for a flush, oldest first."""
        with self.lock, self.visibility:
            generations = [g for g in self._generations if g.closed or g.frames]
            for generation in generations:
                generation.closed = True
        for generation in generations:
            # A journal that fails here lets unacknowledged rows go; the rest is in memory still,
            # and the segment makes it durable.
            with suppress(StorageError):
                self.sync(generation, generation.end)
        with self.lock, self.visibility:
            return [_closed(generation) for generation in generations]

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
        """The visible rows of every generation held; the caller holds `visibility`."""
        return tuple(
            Pinned(g.id, g.closed, _merged(g), g.schema_version) for g in self._generations
        )

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
            return sum(g.end for g in self._generations)

    @property
    def rows(self) -> int:
        """Rows that wait for a flush, visible or not."""
        with self.visibility:
            return sum(g.rows for g in self._generations)

    @property
    def began(self) -> float | None:
        """Monotonic time at which the oldest unflushed row came, or None."""
        with self.visibility:
            return min((g.began for g in self._generations if g.rows), default=None)

    @property
    def ids(self) -> frozenset[GenerationId]:
        """Generations held here."""
        with self.visibility:
            return frozenset(g.id for g in self._generations)

    def all_batches(self) -> list[pa.RecordBatch]:
        """Every row held, visible or not; the caller has `lock`."""
        with self.visibility:
            return [batch for g in self._generations for batch, _ in g.frames]

    def turn_over(self, swap: Callable[[], None]) -> None:
        """Have rows that are accepted from now on be of another version of the schema.

        What is queued stays so until it is synced or flushed: a query may be who asks, and must not
        fail because a disk is full.

        Args:
            swap: makes that the one that appends and new journals are of.
        """
        with self.lock:
            with self.visibility:
                for generation in self._generations[-1:]:
                    generation.closed = True
            swap()

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

    def current(self) -> Generation:
        """The generation that the next rows go to, its journal file made; the caller has `lock`.

        Raises:
            StorageError: the disk refused.
        """
        with self.visibility:
            last = self._generations[-1] if self._generations else None
        if last is not None and not last.closed:
            assert last.journal is not None
            if last.journal.failed:
                self._fail(last)
            elif (
                last.rows < self._settings.flush_rows and last.end < self._settings.flush_bytes_now
            ):
                return last
            else:  # full: a flush that lags behind then takes it in bounded pieces
                last.journal.write_queued()
                with self.visibility:
                    last.closed = True
        self._numbers += 1
        before = 0
        if last is not None and last.journal is not None and last.id.number == self._numbers - 1:
            before = last.journal.synced  # else an interrupt left a file in between, with nothing
        journal = self._open_journal(self._numbers, before)
        fresh = Generation(journal.id, journal, self._clock.monotonic(), journal.schema_version)
        with self.visibility:
            self._generations.append(fresh)
        return fresh

    def _fail(self, generation: Generation) -> None:
        """Close a generation whose journal failed, and let go what nobody was told is accepted.

        What was synced before, or acknowledged at a lower level, stays: in memory, and in the
        file as far as the disk lets it.
        """
        journal = generation.journal
        assert journal is not None
        with self.lock:
            with self.visibility:
                frames = generation.frames
                durable = sum(end <= journal.synced for _, end in frames)
                kept = max(generation.visible, durable)
                cut = len(frames) - kept
                del frames[kept:]
                generation.visible = kept
                generation.merged = min(generation.merged, kept)
                generation.rows = sum(batch.num_rows for batch, _ in frames)
                generation.closed = True
            while generation.marks and generation.marks[-1].end > generation.end:
                mark = generation.marks.pop()
                self.producers[mark.producer] = mark.before
            if cut:
                journal.cut(generation.end or journal.start)


def _closed(generation: Generation) -> ClosedGeneration:
    batches = tuple(batch for batch, _ in generation.frames)
    recovered = generation.journal is None
    marks = tuple(generation.marks)
    return ClosedGeneration(generation.id, recovered, batches, marks, generation.schema_version)


def _merged(generation: Generation) -> tuple[pa.RecordBatch, ...]:
    """The visible batches, tiny ones merged for good."""
    g = generation
    if g.visible - g.merged > _TINY_BATCHES:
        tiny = pa.Table.from_batches([batch for batch, _ in g.frames[g.merged : g.visible]])
        if tiny.num_rows < _TINY_BATCHES * 1024:
            end = g.frames[g.visible - 1][1]
            merged = [(batch, end) for batch in tiny.combine_chunks().to_batches()]
            g.frames[g.merged : g.visible] = merged
            g.visible = g.merged + len(merged)
        g.merged = g.visible
    return tuple(batch for batch, _ in g.frames[: g.visible])
