"""What the catalog lists, as values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lakestore.errors import ConflictError
from lakestore.replacement import Record
from lakestore.snapshot import Segment, TableState

Sent = tuple[str, int]
"""What a producer sent: its name, and the number of the batch."""

GarbageKind = Literal[
    "journal",
    "segment",
    "payload",
    "cold",
    "cold_payload",
    "table",
    "purged",
    "purged_payload",
    "purged_log",
]
"""`payload` is of segments; `cold_payload` lies in the root."""
COLD_KINDS: tuple[GarbageKind, ...] = ("cold", "purged")
"""Of cold files: those that hold purged rows are kept for no one to go back to."""
COLD_PAYLOAD_KINDS: tuple[GarbageKind, ...] = ("cold_payload", "purged_payload")
"""The same of payload files in the root."""
ROOT_KINDS: tuple[GarbageKind, ...] = (*COLD_KINDS, *COLD_PAYLOAD_KINDS, "purged_log")
"""Of what lies in the root, where others' files are too."""


@dataclass(frozen=True)
class TableEntry:
    """One table, as the catalog lists it."""

    id: int
    name: str
    folder: str
    cold: str
    schema_version: int
    schema_text: str


@dataclass(frozen=True)
class Garbage:
    """A file that nothing names any more, and since when (Unix seconds)."""

    id: int
    table_id: int
    folder: str
    kind: GarbageKind
    name: str
    since: float


@dataclass(frozen=True)
class Holding:
    """What a site has of a table, as far as the catalog knows."""

    sealed_through: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Elsewhere:
    """What another site has of a table, as far as its sealed files tell."""

    site: str
    sealed_through: int
    producers: Mapping[str, int]


@dataclass(frozen=True)
class TableRecord:
    """Everything the catalog says of one table, dropped ones included."""

    id: int
    name: str
    folder: str
    cold: str
    dropped: bool
    last_segment: int
    schemas: Mapping[int, str]
    producers: Mapping[str, int]
    batches: frozenset[Sent]
    garbage: tuple[Garbage, ...]
    state: TableState
    unsealed: bool = False
    """Whether a rebuild found rows of it that are not cold: in segments, or in journals."""
    elsewhere: tuple[Elsewhere, ...] = ()
    """Other sites that a rebuild found sealed files of."""
    replaced_through: int = 0
    """Version of the newest replacement that a rebuild found a record of."""
    replaced: frozenset[str] = frozenset()
    """Cold files that others took the place of, whichever site deletes them; `verify` asks."""
    unkept: Record | None = None
    """What a rebuild found replaced, of which no record is kept in the root yet."""

    @property
    def is_held(self) -> bool:
        """Whether the site has, or had, rows of it."""
        return bool(self.last_segment or self.unsealed or self.dropped)


@dataclass(frozen=True)
class Inventory:
    """Everything the catalog says at one version."""

    version: int
    tables: tuple[TableRecord, ...]


class AcceptedError(ConflictError):
    """Somebody else has loaded the same rows of a source meanwhile."""


def check_new(sent: Mapping[str, int], known: Mapping[str, int]) -> None:
    """Raise `AcceptedError` when a number that a producer sends is not above the known one."""
    for producer, seq in sent.items():
        if known.get(producer, 0) >= seq:
            raise AcceptedError(
                f"another process is loading {producer!r} too; load again, and what it has "
                "loaded by then is passed over"
            )
