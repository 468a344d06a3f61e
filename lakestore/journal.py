"""The journal: an append-only file of framed Arrow record batches, one file a generation.

It is the authority for acknowledged rows until their segment is published. A file begins with a
header (which lake, table, writer, generation, schema); then come frames:

    magic, flags, producer length, schema version, rows, body length, seq, generation, writer,
    synced, xxh3 of all that and of what follows | producer | Arrow IPC record batch

A batch too large for one frame is a run of frames: each but the last has the flag MORE. What a
crash leaves of a frame, or a run without its last frame, is cut when the file is read, and so is
what follows a hole: a power loss may keep later bytes and lose earlier ones. But `synced` says up
to where the bytes were on the disk when the frame was written. Damage below that is not a crash's
doing, and is reported.
"""

import errno
import json
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import xxhash

from lakestore.errors import CorruptionError, FormatTooNewError
from lakestore.layout import journal_name
from lakestore.snapshot import GenerationId
from lakestore.storage.local import fsync_folder, make_folder, storage_error

FORMAT = 1
_FILE = struct.Struct("<8sHIIQ")  # magic, format, length of the JSON, of the schema, xxh3 of both
_FILE_MAGIC = b"LKJOURNL"
_FRAME = struct.Struct("<4sBxHIQQqQ8sQQ")
_FRAME_MAGIC = b"LKF1"
_MORE = 1
_NO_SEQ = -1
_KEEP = "restore the file from a copy, or move it away: the rows in it are in no other place"


@dataclass(frozen=True)
class JournalHeader:
    """What a journal file says of itself."""

    lake: str
    table: str
    id: GenerationId
    schema_version: int
    schema: pa.Schema


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
        self._writer = bytes.fromhex(header.id.writer)
        self._state = threading.Condition()  # guards the four below
        self._written = 0
        self._synced = 0
        self._syncing = False
        self._failure: OSError | None = None
        self._queue: list[bytes | pa.Buffer] = []
        self._open(folder)

    def _open(self, folder: Path) -> None:
        header = self._header
        facts = json.dumps(
            {
                "lake": header.lake,
                "table": header.table,
                "writer": header.id.writer,
                "generation": header.id.number,
                "schema_version": header.schema_version,
            }
        ).encode()
        schema = header.schema.serialize().to_pybytes()
        digest = xxhash.xxh3_64_intdigest(facts + schema)
        start = _FILE.pack(_FILE_MAGIC, FORMAT, len(facts), len(schema), digest)
        try:
            make_folder(folder)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(self.path, flags, 0o644)
            try:
                self._write_all([start, facts, schema])
                os.fsync(self._descriptor)
                fsync_folder(folder)
            except OSError:
                os.close(self._descriptor)
                self.path.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise storage_error(f"cannot start journal {str(self.path)!r}", error) from error
        self._start = self._written = self._synced = len(start) + len(facts) + len(schema)

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
        frames: list[bytes | pa.Buffer] = []
        for index, batch in enumerate(batches):
            frames += self._frame(batch, producer, seq, more=index < len(batches) - 1)
        if queue:
            self._queue = [*self._queue, *frames]
        else:
            self._write([*self._queue, *frames])
            self._queue = []
        return self.end

    def write_queued(self) -> None:
        """Hand queued frames to the kernel; raises as `append`."""
        if self._queue:
            self._write(self._queue)
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
            os.fdatasync(self._descriptor)
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
    def start(self) -> int:
        """Offset of the first frame."""
        return self._start

    @property
    def end(self) -> int:
        """Offset after the last accepted frame, queued ones included."""
        return self._written + sum(len(part) for part in self._queue)

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

    def _frame(
        self, batch: pa.RecordBatch, producer: str | None, seq: int | None, more: bool
    ) -> list[bytes | pa.Buffer]:
        body = batch.serialize()
        name = (producer or "").encode()
        start = _FRAME.pack(
            _FRAME_MAGIC,
            _MORE if more else 0,
            len(name),
            self._header.schema_version,
            batch.num_rows,
            body.size,
            _NO_SEQ if seq is None else seq,
            self._header.id.number,
            self._writer,
            self.synced,
            0,
        )[:-8]
        return [start + _digest(start, name, body).to_bytes(8, "little") + name, body]

    def _write(self, parts: Sequence[bytes | pa.Buffer]) -> None:
        good = self._written
        if self.failed:
            raise storage_error(
                f"journal {str(self.path)!r} has failed", OSError(errno.EIO, "failed")
            )
        try:
            self._write_all(parts)
            self._written = good + sum(len(part) for part in parts)
        except BaseException as error:
            # An interrupt as well: half a frame here would hide every frame after it.
            broken: OSError | None = InterruptedError(errno.EINTR, "interrupted")
            try:
                os.ftruncate(self._descriptor, good)
                self._written = good
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

    def _write_all(self, parts: Sequence[bytes | pa.Buffer]) -> None:
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

    def read(self) -> list[Entry]:
        """Entries that are whole and were not read before.

        What follows them is either a torn tail or not written yet.

        Raises:
            FileNotFoundError: the file is gone: its rows are in a segment.
            CorruptionError: valid frames follow damage; nothing is dropped in silence.
        """
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = memoryview(file.read())
        start = 0
        if self.header is None:
            parsed = _parse_header(self.path, data)
            if parsed is None:
                return []
            self.header, start = parsed
        entries = []
        run: list[pa.RecordBatch] = []
        at = start
        good = start
        for frame in _frames(data, start, self.header):
            at = frame.end
            run.append(frame.batch(data, self.header.schema))
            if not frame.more:
                entries.append(Entry(tuple(run), frame.producer, frame.seq, self.offset + at))
                run, good = [], at
        self._refuse_damage(data, at)
        self.offset += good
        return entries

    def _refuse_damage(self, data: memoryview, bad: int) -> None:
        """Raise when a later frame says that the first bytes that are none were on the disk."""
        assert self.header is not None
        raw = data.obj
        assert isinstance(raw, bytes)
        found = raw.find(_FRAME_MAGIC, bad + 1)
        while found >= 0:
            frame = next(_frames(data, found, self.header), None)
            if frame is not None and frame.synced > self.offset + bad:
                raise CorruptionError(
                    f"journal {str(self.path)!r} is damaged at byte {self.offset + bad}, which was "
                    f"on the disk, and rows follow at byte {self.offset + found}; {_KEEP}"
                )
            found = raw.find(_FRAME_MAGIC, found + 1)


@dataclass(frozen=True)
class _Frame:
    more: bool
    producer: str | None
    seq: int | None
    synced: int
    body: int
    end: int

    def batch(self, data: memoryview, schema: pa.Schema) -> pa.RecordBatch:
        return pa.ipc.read_record_batch(pa.py_buffer(data[self.body : self.end]), schema)


def _frames(data: memoryview, at: int, header: JournalHeader) -> Iterator[_Frame]:
    """Valid frames from `at` on, up to the first bytes that are none."""
    writer = bytes.fromhex(header.id.writer)
    while at + _FRAME.size <= len(data):
        magic, flags, name_len, _, _, body_len, seq, generation, owner, synced, digest = (
            _FRAME.unpack_from(data, at)
        )
        body = at + _FRAME.size + name_len
        end = body + body_len
        if magic != _FRAME_MAGIC or end > len(data):
            return
        name = bytes(data[at + _FRAME.size : body])
        if digest != _digest(data[at : at + _FRAME.size - 8], name, data[body:end]):
            return
        if (generation, owner) != (header.id.number, writer):
            raise CorruptionError(
                f"a journal of generation {header.id.number} holds a frame of {generation}"
            )
        yield _Frame(
            bool(flags & _MORE),
            name.decode() or None,
            None if seq == _NO_SEQ else seq,
            synced,
            body,
            end,
        )
        at = end


def _digest(start: bytes | memoryview, name: bytes, body: pa.Buffer | memoryview) -> int:
    hasher = xxhash.xxh3_64(start)
    hasher.update(name)
    hasher.update(body)
    return hasher.intdigest()


def _parse_header(path: Path, data: memoryview) -> tuple[JournalHeader, int] | None:
    """The header and where frames begin; None while it is not whole, as in a crash at birth."""
    whole = len(data) >= _FILE.size
    magic, version, facts_len, schema_len, digest = (
        _FILE.unpack_from(data) if whole else (b"", 0, 0, 0, 0)
    )
    end = _FILE.size + facts_len + schema_len
    if magic != _FILE_MAGIC or (version == FORMAT and len(data) < end):
        raw = data.obj
        assert isinstance(raw, bytes)
        # The header is on the disk before any frame is written: a file with a frame has had one.
        if _FRAME_MAGIC in raw:
            raise CorruptionError(
                f"the header of journal {str(path)!r} is damaged, and rows follow it; {_KEEP}"
            )
        if not any(data) or len(data) < end or not whole:
            return None
        raise CorruptionError(f"{str(path)!r} is not a journal")
    if version != FORMAT:
        raise FormatTooNewError(f"journal {str(path)!r} has format {version}; upgrade lakestore")
    body = bytes(data[_FILE.size : end])
    if xxhash.xxh3_64_intdigest(body) != digest:
        if _FRAME_MAGIC not in bytes(data):  # a crash at birth: no row was ever in it
            return None
        raise CorruptionError(f"the header of journal {str(path)!r} is damaged")
    facts = json.loads(body[:facts_len])
    schema = pa.ipc.read_schema(pa.py_buffer(body[facts_len:]))
    id_ = GenerationId(facts["writer"], facts["generation"])
    return JournalHeader(facts["lake"], facts["table"], id_, facts["schema_version"], schema), end
