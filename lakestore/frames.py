"""The bytes of a journal file: its header, and frames of Arrow record batches.

A file begins with a header (which lake, table, writer, generation, schema); then come frames:

    magic, flags, producer length, schema version, rows, body length, seq, generation, writer,
    synced | producer | Arrow IPC record batch | xxh3 of all that

A batch too large for one frame is a run of frames: each but the last has the flag MORE. `synced`
says up to where the file's bytes were on the disk when the frame was written.
"""

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
import xxhash

from lakestore.errors import CorruptionError, FormatTooNewError
from lakestore.snapshot import GenerationId

FORMAT = 1
MAGIC = b"LKF1"
KEEP = "restore the file from a copy, or move it away: the rows in it are in no other place"
_FILE = struct.Struct("<8sHIIQ")  # magic, format, length of the JSON, of the schema, xxh3 of both
_FILE_MAGIC = b"LKJOURNL"
HEADER_MAX = 1 << 18
"""No header is longer: a thousand columns take 92 KB."""
_FRAME = struct.Struct("<4sBxHIQQqQ8sQ")
_DIGEST_BYTES = 8
_MORE = 1
_NO_SEQ = -1

Part: TypeAlias = bytes | pa.Buffer


@dataclass(frozen=True)
class JournalHeader:
    """What a journal file says of itself."""

    lake: str
    table: str
    id: GenerationId
    schema_version: int
    schema: pa.Schema
    before: int = 0
    """Bytes of the writer's generation before this one that were on the disk when this began."""
    began: int = 0
    """When it was made, in microseconds since 1970; 0 where it does not say."""

    def pack(self) -> bytes:
        """The bytes a file begins with."""
        facts = json.dumps(
            {
                "lake": self.lake,
                "table": self.table,
                "writer": self.id.writer,
                "generation": self.id.number,
                "schema_version": self.schema_version,
                "before": self.before,
                "began": self.began,
            }
        ).encode()
        schema: bytes = self.schema.serialize().to_pybytes()
        digest = xxhash.xxh3_64_intdigest(facts + schema)
        return _FILE.pack(_FILE_MAGIC, FORMAT, len(facts), len(schema), digest) + facts + schema


def pack(
    header: JournalHeader,
    batches: Sequence[pa.RecordBatch],
    producer: str | None,
    seq: int | None,
    synced: int,
) -> list[Part]:
    """The frames of one append, head and body by turns, all but the last with a digest."""
    parts: list[Part] = []
    for index, batch in enumerate(batches):
        if parts:
            parts.append(digest(parts))
        body, name = batch.serialize(), (producer or "").encode()
        head = _FRAME.pack(
            MAGIC,
            _MORE if index < len(batches) - 1 else 0,
            len(name),
            header.schema_version,
            batch.num_rows,
            body.size,
            _NO_SEQ if seq is None else seq,
            header.id.number,
            bytes.fromhex(header.id.writer),
            synced,
        )
        parts += [head + name, body]
    return parts


def digest(parts: Sequence[Part | memoryview]) -> bytes:
    """xxh3 of the last two parts, a frame's head and body: what makes a frame of them."""
    hasher = xxhash.xxh3_64()
    for part in parts[-2:]:
        hasher.update(part)
    return hasher.intdigest().to_bytes(_DIGEST_BYTES, "little")


@dataclass(frozen=True)
class Frame:
    """One frame, and where it lies in the bytes it was read from."""

    more: bool
    producer: str | None
    seq: int | None
    synced: int
    body: int
    body_end: int
    end: int

    def batch(self, data: memoryview, schema: pa.Schema) -> pa.RecordBatch:
        """Its rows; in bytes of their own, for those of a frame begin anywhere.

        Arrow wants buffers aligned, and says so on stderr for each when DuckDB 1.5 reads them.
        """
        body = bytes(data[self.body : self.body_end])
        return pa.ipc.read_record_batch(pa.py_buffer(body), schema)


def frames(data: memoryview, at: int, header: JournalHeader) -> Iterator[Frame]:
    """Valid frames from `at` on, up to the first bytes that are none."""
    writer = bytes.fromhex(header.id.writer)
    while at + _FRAME.size <= len(data):
        magic, flags, name_len, _, _, body_len, seq, generation, owner, synced = _FRAME.unpack_from(
            data, at
        )
        body = at + _FRAME.size + name_len
        body_end = body + body_len
        end = body_end + _DIGEST_BYTES
        if magic != MAGIC or end > len(data):
            return
        if data[body_end:end] != digest([data[at:body], data[body:body_end]]):
            return
        if (generation, owner) != (header.id.number, writer):
            raise CorruptionError(
                f"a journal of generation {header.id.number} holds a frame of {generation}"
            )
        yield Frame(
            bool(flags & _MORE),
            bytes(data[at + _FRAME.size : body]).decode() or None,
            None if seq == _NO_SEQ else seq,
            synced,
            body,
            body_end,
            end,
        )
        at = end


def is_torn(data: memoryview, header: JournalHeader) -> bool:
    """Whether bytes after the last append are what a write leaves that was stopped.

    That is: whole frames of a run, then less than its head says of one more frame.
    """
    at = max((frame.end for frame in frames(data, 0, header)), default=0)
    rest = data[at:]
    if len(rest) < _FRAME.size:
        return bytes(rest[: len(MAGIC)]) == MAGIC[: len(rest)]
    magic, _, name_len, _, _, body_len, *_ = _FRAME.unpack_from(rest)
    end = _FRAME.size + name_len + body_len + _DIGEST_BYTES
    return bool(magic == MAGIC and len(rest) < end)


def parse_header(path: Path, data: memoryview) -> tuple[JournalHeader, int] | None:
    """The header and where frames begin; None while it is not whole, as in a crash at birth.

    Raises:
        CorruptionError: it is none, and a crash at birth does not leave that.
        FormatTooNewError: a newer lakestore wrote it.
    """
    end = _header_end(data)
    if end is None or len(data) < end:
        if _is_birth(data):
            return None
        raise CorruptionError(f"journal {str(path)!r} does not begin with a header; {KEEP}")
    _, version, facts_len, _, expected = _FILE.unpack_from(data)
    if version != FORMAT:
        raise FormatTooNewError(f"journal {str(path)!r} has format {version}; upgrade lakestore")
    body = bytes(data[_FILE.size : end])
    if xxhash.xxh3_64_intdigest(body) != expected:
        if len(data) == end:  # its last blocks were not on the disk yet
            return None
        raise CorruptionError(
            f"the header of journal {str(path)!r} is damaged, and bytes follow it; {KEEP}"
        )
    facts = json.loads(body[:facts_len])
    schema = pa.ipc.read_schema(pa.py_buffer(body[facts_len:]))
    id_ = GenerationId(facts["writer"], facts["generation"])
    version, before = facts["schema_version"], facts.get("before", 0)
    began = facts.get("began", 0)
    return JournalHeader(facts["lake"], facts["table"], id_, version, schema, before, began), end


def _header_end(data: memoryview) -> int | None:
    """Where the header says that it ends, or None when there is none."""
    if len(data) < _FILE.size:
        return None
    magic, version, facts_len, schema_len, _ = _FILE.unpack_from(data)
    if magic != _FILE_MAGIC:
        return None
    return _FILE.size + (facts_len + schema_len if version == FORMAT else 0)


def _is_birth(data: memoryview) -> bool:
    """Whether bytes without a whole header are what a crash leaves while it is written.

    The header is on the disk before any frame is written, so there is no frame: only the header's
    first bytes, or zeros in the place of them, where the length came to the disk first.
    """
    head = bytes(data[: _FILE.size])
    begun = head.startswith(_FILE_MAGIC[: len(head)]) or not any(head)
    return begun and len(data) <= HEADER_MAX and MAGIC not in bytes(data)
