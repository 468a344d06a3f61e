"""The actions of one version of the log: parsed, and refused where they cannot be right.

What is parsed came from somebody who can write to the store: another site, another engine, or an
attacker. A path that leaves the table's folder, a number that is none, or an action that is cut
short is a `CorruptionError`; what a newer protocol says is a `FormatTooNewError`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any
from urllib.parse import quote, unquote

import xxhash

from lakestore.errors import CorruptionError, FormatTooNewError

READER_FEATURES = frozenset(("timestampNtz",))
WRITER_FEATURES = frozenset(("timestampNtz", "appendOnly", "invariants"))
SUMMARY = "lakestore"
"""The key of our part of `commitInfo`: lake, site, write, and a digest of the other lines."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_PATTERN = frozenset("*?[]\\")
_MAX = 2**63


@dataclass(frozen=True)
class Add:
    """A data file that is part of the table from a version on; `path` is below the table."""

    path: str
    partition: Mapping[str, str | None]
    size: int
    modified_ms: int
    stats: str | None
    tags: Mapping[str, str]
    is_new: bool = True
    """Whether its rows were not in the table before."""

    def line(self) -> str:
        """The action as a line of the log."""
        body: dict[str, Any] = {
            "path": encoded(self.path),
            "partitionValues": dict(self.partition),
            "size": self.size,
            "modificationTime": self.modified_ms,
            "dataChange": self.is_new,
            "stats": self.stats,
            "tags": dict(self.tags),
        }
        return _line("add", body)


@dataclass(frozen=True)
class Remove:
    """A data file that is no part of the table any more."""

    path: str
    deleted_ms: int

    def line(self, *, is_lost: bool) -> str:
        """The action as a line of the log.

        Args:
            is_lost: whether rows of it are in no file of the table after this version.
        """
        body = {
            "path": encoded(self.path),
            "deletionTimestamp": self.deleted_ms,
            "dataChange": is_lost,
        }
        return _line("remove", body)


@dataclass(frozen=True)
class Metadata:
    """What the table is: its schema, partition columns and properties."""

    id: str
    schema: str
    partition_columns: tuple[str, ...]
    configuration: Mapping[str, str]
    created_ms: int | None = None

    def body(self) -> dict[str, Any]:
        """The action's content."""
        return {
            "id": self.id,
            "format": {"provider": "parquet", "options": {}},
            "schemaString": self.schema,
            "partitionColumns": list(self.partition_columns),
            "configuration": dict(self.configuration),
            "createdTime": self.created_ms,
        }


@dataclass(frozen=True)
class Protocol:
    """What a reader and a writer have to be able to do."""

    reader: int
    writer: int
    reader_features: tuple[str, ...] = ()
    writer_features: tuple[str, ...] = ()

    def body(self) -> dict[str, Any]:
        """The action's content; features are named from version 3 (to read) and 7 (to write) on."""
        features: dict[str, Any] = {}
        if self.reader >= 3:
            features["readerFeatures"] = list(self.reader_features)
        if self.writer >= 7:
            features["writerFeatures"] = list(self.writer_features)
        return {"minReaderVersion": self.reader, "minWriterVersion": self.writer, **features}

    def check_readable(self, where: str) -> None:
        """Raise `FormatTooNewError` when reading it needs what lakestore cannot do."""
        unknown = sorted(set(self.reader_features) - READER_FEATURES)
        if self.reader == 2 or self.reader > 3 or unknown:
            what = ", ".join(unknown) or f"reader version {self.reader}"
            raise FormatTooNewError(f"{where} needs {what}, which this lakestore cannot read")

    def check_writable(self, where: str) -> None:
        """Raise `FormatTooNewError` when adding to it needs what lakestore cannot do."""
        unknown = sorted(set(self.writer_features) - WRITER_FEATURES)
        if 2 < self.writer < 7 or self.writer > 7 or unknown:
            what = ", ".join(unknown) or f"writer version {self.writer}"
            raise FormatTooNewError(
                f"{where} needs {what} of whoever writes to it, which this lakestore cannot do"
            )


@dataclass(frozen=True)
class Transaction:
    """The highest number that an application has committed."""

    app: str
    version: int

    def line(self, now_ms: int) -> str:
        """The action as a line of the log."""
        body = {"appId": self.app, "version": self.version, "lastUpdated": now_ms}
        return _line("txn", body)


Action = Add | Remove | Metadata | Protocol | Transaction


@dataclass(frozen=True)
class Commit:
    """One version of the log."""

    actions: Sequence[Action]
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> Mapping[str, Any]:
        """What a lakestore says of its own commit; nothing in those of others."""
        found = self.info.get(SUMMARY)
        return found if isinstance(found, dict) else {}

    @property
    def write_id(self) -> str | None:
        """Which write of a lakestore it was."""
        found = self.summary.get("write")
        return found if isinstance(found, str) else None


def encode(lines: Sequence[str], info: Mapping[str, Any], summary: Mapping[str, Any]) -> bytes:
    """The bytes of a version: what is known of the commit, then its actions."""
    rest = "".join(f"{line}\n" for line in lines).encode()
    told = {**summary, "digest": xxhash.xxh3_64_hexdigest(rest)}
    return (_line("commitInfo", {**info, SUMMARY: told}) + "\n").encode() + rest


def metadata_line(metadata: Metadata) -> str:
    """The action as a line of the log."""
    return _line("metaData", metadata.body())


def protocol_line(protocol: Protocol) -> str:
    """The action as a line of the log."""
    return _line("protocol", protocol.body())


def decode(data: bytes, where: str) -> Commit:
    """The version that these bytes are.

    Raises:
        CorruptionError: they are none; names `where`.
    """
    try:
        objects = [json.loads(line) for line in data.decode().splitlines() if line.strip()]
        if not all(isinstance(one, dict) for one in objects) or not objects:
            raise ValueError("a line is no action")
        info: dict[str, Any] = next((o["commitInfo"] for o in objects if "commitInfo" in o), {})
        commit = Commit(tuple(_actions(objects)), info if isinstance(info, dict) else {})
        _check_digest(data, commit)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptionError(f"{where} is damaged or forged: {error!r}") from error
    return commit


def _check_digest(data: bytes, commit: Commit) -> None:
    digest = commit.summary.get("digest")
    if digest is not None:
        rest = data.split(b"\n", 1)[1]
        if xxhash.xxh3_64_hexdigest(rest) != digest:
            raise ValueError("its digest is not that of its lines")


def _actions(objects: Sequence[Mapping[str, Any]]) -> Iterator[Action]:
    for one in objects:
        if "add" in one:
            yield add_of(one["add"])
        elif "remove" in one:
            yield remove_of(one["remove"])
        elif "metaData" in one:
            yield metadata_of(one["metaData"])
        elif "protocol" in one:
            yield protocol_of(one["protocol"])
        elif "txn" in one:
            yield Transaction(_text(one["txn"]["appId"]), _count(one["txn"]["version"]))


def add_of(body: Mapping[str, Any]) -> Add:
    """An `add`, as the log has it; raises ValueError, LookupError or TypeError when it is none."""
    if body.get("deletionVector") is not None:
        raise FormatTooNewError(
            f"{body['path']!r} has a deletion vector, which this lakestore cannot read: "
            "rewrite the table without (REORG TABLE … APPLY (PURGE))"
        )
    tags = body.get("tags") or {}
    partition = body.get("partitionValues") or {}
    stats = body.get("stats")
    return Add(
        checked_path(_text(body["path"])),
        {_text(k): None if v is None else _text(v) for k, v in dict(partition).items()},
        _count(body["size"]),
        _count(body.get("modificationTime") or 0),
        None if stats is None else _text(stats),
        {_text(k): _text(v) for k, v in dict(tags).items() if v is not None},
    )


def remove_of(body: Mapping[str, Any]) -> Remove:
    """A `remove`, as the log has it; raises as `add_of`."""
    return Remove(checked_path(_text(body["path"])), _count(body.get("deletionTimestamp") or 0))


def metadata_of(body: Mapping[str, Any]) -> Metadata:
    """A `metaData`, as the log has it; raises as `add_of`."""
    provider = (body.get("format") or {}).get("provider", "parquet")
    if provider != "parquet":
        raise ValueError(f"files of format {provider!r}")
    created = body.get("createdTime")
    return Metadata(
        _text(body["id"]),
        _text(body["schemaString"]),
        tuple(_text(name) for name in body.get("partitionColumns") or ()),
        {_text(k): _text(v) for k, v in dict(body.get("configuration") or {}).items()},
        None if created is None else _count(created),
    )


def protocol_of(body: Mapping[str, Any]) -> Protocol:
    """A `protocol`, as the log has it; raises as `add_of`."""
    return Protocol(
        _count(body["minReaderVersion"]),
        _count(body["minWriterVersion"]),
        tuple(_text(name) for name in body.get("readerFeatures") or ()),
        tuple(_text(name) for name in body.get("writerFeatures") or ()),
    )


def encoded(path: str) -> str:
    """A path as the log has it."""
    return quote(path, safe="/=-_.~")


def checked_path(told: str) -> str:
    """A file's path below the table; raises ValueError for one that leads anywhere else."""
    path = unquote(told, errors="strict")
    parts = path.split("/")
    if _SCHEME.match(path) or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{told!r} is no path below the table")
    if not path.isprintable() or _PATTERN & set(path):
        raise ValueError(f"{told!r} has characters that DuckDB takes for a pattern")
    return path


def day_of(add: Add, column: str) -> date | None:
    """The day that all rows of a file are of; None when the log does not say."""
    text = add.partition.get(column)
    return date.fromisoformat(text) if text else None


def _line(kind: str, body: Mapping[str, Any]) -> str:
    return json.dumps({kind: body}, separators=(",", ":"))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _MAX:
        raise ValueError(f"{value!r} is no count")
    return value
