"""The journal: an append-only file of framed Arrow record batches, one file a generation.

It is the authority for acknowledged rows until their segment is published. An append is begun by
writing all but its last digest: the disk takes the bytes in while the ids are looked up, and what
turns out to hold duplicates is cut off again, never having been a frame.

What a crash leaves of a frame, or a run without its last frame, is cut when the file is read, and
so is what follows a hole: a power loss may keep later bytes and lose earlier ones. But each frame
says up to where the bytes were on the disk when it was written. Damage below that is not a crash's
doing, and is reported.

Failpoints: journal.1 file made    .2 header written    .3 fsynced    .4 folder fsynced
.5 bytes written    .6 before the fdatasync    .7 after it    .8 before what was begun is cut off
"""

import errno
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from lakestore.errors import CorruptionError, FormatTooNewError
from lakestore.failpoint import reach
from lakestore.frames import (
    HEADER_MAX,
    KEEP,
    MAGIC,
    JournalHeader,
    Part,
    digest,
    frames,
    pack,
    parse_header,
)
from lakestore.layout import journal_name, parse_journal_name
from lakestore.snapshot import GenerationId
from lakestore.storage.local import (
    discard,
    fsync_folder,
    make_folder,
    open_to_read,
    start_writeback,
    storage_error,
)

_WRITEBACK_MIN = 1 << 16
"""Less is on the disk so soon that asking costs more than it brings (50 of 250 microseconds)."""


@dataclass(frozen=True)
class Entry:
    """One accepted append, as the journal holds it."""

    batches: tuple[pa.RecordBatch, ...]
    producer: str | None
    seq: int | None
    end: int


class JournalWriter:
    """Writes one generation. `write` is called by one thread at a time, `sync_to` by any."""

    def __init__(self, folder: Path, header: JournalHeader) -> None:
        self.path = folder / journal_name(header.id.number)
        self._header = header
        self._state = threading.Condition()  # guards the four below
        self._written = 0
        self._synced = 0
        self._syncing = False
        self._failure: OSError | None = None
        self._queue: list[tuple[int, list[Part]]] = []  # appends, by the offset after each
        self._begun: list[Part] = []  # in the file, but for the digest
        self._ragged = False  # the file may go on after what is accepted
        self._open(folder)

    def _open(self, folder: Path) -> None:
        start = self._header.pack()
        try:
            make_folder(folder)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(self.path, flags, 0o644)
            try:
                reach("journal.1")
                self._write_all([start])
                reach("journal.2")
                os.fsync(self._descriptor)
                reach("journal.3")
                fsync_folder(folder)
                reach("journal.4")
            except OSError:
                os.close(self._descriptor)
                discard(self.path)
                raise
        except OSError as error:
            raise storage_error(f"cannot start journal {str(self.path)!r}", error) from error
        self._start = self._written = self._synced = len(start)

    def append(
        self,
        batches: Sequence[pa.RecordBatch],
        producer: str | None,
        seq: int | None,
        *,
        queue: bool = False,
    ) -> int:
        """Frame one append and hand it to the kernel, or queue it for the next that is.

        Returns:
            The journal offset after it: what `sync_to` takes.

        Raises:
            StorageError: the disk refused; the file is as it was before.
        """
        if not queue:
            self.begin(batches, producer, seq)
            return self.accept()
        parts = pack(self._header, batches, producer, seq, self.synced)
        parts.append(digest(parts))
        end = self.end + sum(len(part) for part in parts)
        self._queue.append((end, parts))
        return end

    def begin(
        self,
        batches: Sequence[pa.RecordBatch],
        producer: str | None,
        seq: int | None,
        *,
        sync: bool = False,
    ) -> None:
        """Write all of an append but its last digest: `accept` makes it one, else it is cut off.

        With `sync`, because `sync_to` comes next, the disk begins to take the bytes in now.
        Raises as `append`.
        """
        self.write_queued()
        parts = pack(self._header, batches, producer, seq, self.synced)
        self._begun = []
        self._write(parts)
        self._begun = parts
        size = sum(len(part) for part in parts)
        if sync and size >= _WRITEBACK_MIN:
            start_writeback(self._descriptor, self._written, size)

    def accept(self) -> int:
        """Accept what was begun; returns and raises as `append`."""
        last = digest(self._begun)
        self._write([last], more=True)
        self._take([*self._begun, last])
        self._begun = []
        return self.end

    def withdraw(self) -> None:
        """Cut off what was begun; if the disk does not let us, the next write does or fails."""
        if self._ragged:
            self._begun = []
            with suppress(OSError):
                reach("journal.8")
                os.ftruncate(self._descriptor, self._written)
                self._ragged = False

    def write_queued(self) -> None:
        """Hand queued frames to the kernel; raises as `append`."""
        if self._queue:
            parts = [part for _, queued in self._queue for part in queued]
            self._write(parts)
            self._take(parts)
            self._queue = []

    def sync_to(self, offset: int) -> None:
        """Return once everything up to `offset` is on the disk.

        Threads that wait together share one fdatasync (group commit).

        Raises:
            StorageError: the disk refused; the descriptor is never used again, and what was not
                synced before is not acknowledged.
        """
        with self._state:
            while self._synced < offset:
                if self._failure is not None:
                    raise storage_error(
                        f"cannot sync journal {str(self.path)!r}", self._failure
                    ) from self._failure
                if not self._syncing:
                    break
                self._state.wait()
            else:
                return
            self._syncing = True
            target = self._written
        failure: OSError | None = InterruptedError(errno.EINTR, "interrupted")
        try:
            reach("journal.6")
            os.fdatasync(self._descriptor)
            reach("journal.7")
            failure = None
        except OSError as error:
            failure = error
        finally:  # an interrupt too must wake the others, and counts as a failure: who knows
            with self._state:
                self._syncing = False
                if failure is None:
                    self._synced = max(self._synced, target)
                else:
                    self._failure = failure
                self._state.notify_all()
        if failure is not None:
            raise storage_error(f"cannot sync journal {str(self.path)!r}", failure) from failure

    @property
    def id(self) -> GenerationId:
        """Which generation this is."""
        return self._header.id

    @property
    def schema_version(self) -> int:
        """Of which version of the table's schema its rows are."""
        return self._header.schema_version

    @property
    def start(self) -> int:
        """Offset of the first frame."""
        return self._start

    @property
    def end(self) -> int:
        """Offset after the last accepted frame, queued ones included."""
        return self._queue[-1][0] if self._queue else self._written

    @property
    def synced(self) -> int:
        """Offset up to which the bytes are known to be on the disk."""
        with self._state:
            return self._synced

    @property
    def failed(self) -> bool:
        """Whether an fsync or a repair failed: nothing more may be written."""
        with self._state:
            return self._failure is not None

    def cut(self, offset: int) -> None:
        """Cut off, after a failure, what was not accepted: readers and recovery must not see it.

        Through a descriptor of its own, for the failed one is never used again; as far as the
        disk lets it.
        """
        with self._state:  # or the next generation would tell of bytes that are gone
            self._synced = min(self._synced, offset)
        with suppress(OSError):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.ftruncate(descriptor, offset)
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Let the file go; it stays as it is."""
        os.close(self._descriptor)

    def _take(self, parts: Sequence[Part]) -> None:
        """Count what is written as accepted."""
        self._written += sum(len(part) for part in parts)
        self._ragged = False

    def _write(self, parts: Sequence[Part], *, more: bool = False) -> None:
        """Write behind what is accepted or (`more`) begun; after a failure, nothing of either."""
        if self.failed:
            raise storage_error(
                f"journal {str(self.path)!r} has failed", OSError(errno.EIO, "failed")
            )
        try:
            if self._ragged and not more:
                os.ftruncate(self._descriptor, self._written)
            self._ragged = True
            self._write_all(parts)
            reach("journal.5")
        except BaseException as error:
            # An interrupt as well: half a frame here would hide every frame after it.
            broken: OSError | None = InterruptedError(errno.EINTR, "interrupted")
            try:
                os.ftruncate(self._descriptor, self._written)
                self._ragged = False
                broken = None
            except OSError as second:
                broken = second
            finally:
                if broken is not None:
                    with self._state:
                        self._failure = broken
            if not isinstance(error, OSError):
                raise
            raise storage_error(f"cannot write journal {str(self.path)!r}", error) from error

    def _write_all(self, parts: Sequence[Part]) -> None:
        views = [memoryview(part).cast("B") for part in parts if len(part)]
        while views:
            written = os.writev(self._descriptor, views[:64])
            while views and written >= len(views[0]):
                written -= len(views.pop(0))
            if written:
                views[0] = views[0][written:]


class JournalReader:
    """Reads a generation, and goes on where it stopped when the file has grown."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: JournalHeader | None = None
        self.offset = 0
        self._least = 0  # bytes that were on the disk, as the next generation says

    def read(self) -> list[Entry]:
        """Entries that are whole and were not read before.

        What follows them is either a torn tail or not written yet.

        Raises:
            FileNotFoundError: the file is gone: its rows are in a segment.
            CorruptionError: valid frames follow damage, or the next generation tells of more than
                there is; nothing is dropped in silence.
        """
        self._least = self._least or self._on_disk()  # first: the file may grow meanwhile
        entries = self._read()
        if self.offset < self._least:
            raise CorruptionError(
                f"journal {str(self.path)!r} is damaged at byte {self.offset}: {self._least:,} "
                f"bytes of it were on the disk; {KEEP}"
            )
        return entries

    def _read(self) -> list[Entry]:
        with open_to_read(self.path) as file:
            file.seek(self.offset)
            data = memoryview(file.read())
        start = 0
        if self.header is None:
            parsed = parse_header(self.path, data)
            if parsed is None:
                return []
            self.header, start = parsed
        entries = []
        run: list[pa.RecordBatch] = []
        at = start
        good = start
        for frame in frames(data, start, self.header):
            at = frame.end
            run.append(frame.batch(data, self.header.schema))
            if not frame.more:
                entries.append(Entry(tuple(run), frame.producer, frame.seq, self.offset + at))
                run, good = [], at
        self._refuse_damage(data, at)
        self.offset += good
        return entries

    def _on_disk(self) -> int:
        """How much of it was on the disk, as the writer's next generation says, if there is one."""
        number = parse_journal_name(self.path.name)
        following = self.path.with_name(journal_name((number or 0) + 1))
        try:
            with open_to_read(following) as file:
                parsed = parse_header(following, memoryview(file.read(HEADER_MAX)))
        except (OSError, CorruptionError, FormatTooNewError):  # who reads that one says so
            return 0
        return parsed[0].before if parsed is not None else 0

    def _refuse_damage(self, data: memoryview, bad: int) -> None:
        """Raise when a later frame says that the first bytes that are none were on the disk."""
        assert self.header is not None
        raw = data.obj
        assert isinstance(raw, bytes)
        found = raw.find(MAGIC, bad + 1)
        while found >= 0:
            frame = next(frames(data, found, self.header), None)
            if frame is not None and frame.synced > self.offset + bad:
                raise CorruptionError(
                    f"journal {str(self.path)!r} is damaged at byte {self.offset + bad}, which was "
                    f"on the disk, and rows follow at byte {self.offset + found}; {KEEP}"
                )
            found = raw.find(MAGIC, found + 1)
