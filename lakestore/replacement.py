"""Cold files that take the place of others: by compaction, retention or erasure.

The rows of a seal outlive its files. A record says which files went, with their footers, and which
came; it is kept in the root from before the first of them is deleted, so that a rebuild knows both
which files are the table's and what the seals of the others took.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import xxhash

from lakestore.errors import CorruptionError, NotFoundError
from lakestore.snapshot import ColdFile

Operation = Literal["compact", "prune", "purge", "undo"]
_FORMAT = 1
_KEPT = ("site", "seal", "first", "last", "part", "parts", "covers", "producers", "sent", "payload")
"""What of a footer is of use when its file is gone."""


@dataclass(frozen=True)
class Replacement:
    """Which files go, and which come in their place, in one commit."""

    operation: Operation
    removed: Sequence[ColdFile]
    added: Sequence[ColdFile]
    footers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of the removed ones that a lakestore wrote, by name."""
    payload: Sequence[str] = ()
    """Payload files that are to go with them, whoever may want to go back."""


@dataclass(frozen=True)
class Record:
    """What is kept of a replacement that was committed."""

    operation: Operation
    version: int
    """Of the cold tier, from which on it holds."""
    removed: Mapping[str, Mapping[str, Any]]
    """Footers of the files that went, as far as they are of use; empty ones of others' files."""
    added: tuple[str, ...]
    payload: tuple[str, ...] = ()
    """Payload files that go with them."""

    @classmethod
    def of(cls, replacement: Replacement, version: int) -> "Record":
        """What is to be kept of a replacement."""
        footers = {
            file.name: replacement.footers.get(file.name, {}) for file in replacement.removed
        }
        return cls(
            replacement.operation,
            version,
            {name: of_use(footer) for name, footer in footers.items()},
            tuple(file.name for file in replacement.added),
            tuple(replacement.payload),
        )

    def to_json(self) -> str:
        """The record as it is kept, with a digest of it."""
        said = {"format": _FORMAT, **vars(self)}
        return _json({**said, "digest": _digest(said)}) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> "Record":
        """The inverse of `to_json`; raises `CorruptionError`, which names `where`."""
        try:
            data = json.loads(text)
            if data.pop("digest") != _digest(data):
                raise ValueError("its digest is not that of the rest")
            if data["format"] != _FORMAT or data["operation"] not in get_args(Operation):
                raise ValueError(f"format {data['format']!r}, operation {data['operation']!r}")
            removed = {str(name): dict(footer) for name, footer in data["removed"].items()}
            added = tuple(str(name) for name in data["added"])
            payload = tuple(str(name) for name in data.get("payload", ()))
            record = cls(data["operation"], int(data["version"]), removed, added, payload)
            if record.to_json() != (text if isinstance(text, str) else text.decode()):
                raise ValueError("it is not as it was written")
            return record
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise CorruptionError(f"{where!r} is no record of a replacement: {error!r}") from error


@dataclass(frozen=True)
class Pruning:
    """A prune that was committed, and the files that it took off the table."""

    version: int
    files: tuple[ColdFile, ...]


def nothing_pruned(version: int | None) -> NotFoundError:
    """The error for a prune that cannot be taken back."""
    which = "there is no prune" if version is None else f"version {version} is no prune"
    return NotFoundError(
        f"{which} that can be taken back: it was, or its files are deleted, which is done "
        "`cold_grace_s` after a prune"
    )


def _json(said: Mapping[str, Any]) -> str:
    return json.dumps(said, separators=(",", ":"))


def _digest(said: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(_json(said).encode())


def of_use(footer: Mapping[str, Any]) -> Mapping[str, Any]:
    """What of a footer is kept when its file goes."""
    return {key: footer[key] for key in _KEPT if key in footer}


def gone(records: Iterable[Record]) -> dict[str, Mapping[str, Any]]:
    """The files that went and did not come back: their footers, by name. Pure."""
    footers: dict[str, Mapping[str, Any]] = {}
    for record in sorted(records, key=lambda record: record.version):
        footers |= record.removed
        for name in record.added:
            footers.pop(name, None)
    return footers
