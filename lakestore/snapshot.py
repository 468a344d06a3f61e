"""What a query sees, as values: segments, cold files, and the two together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import cached_property

from lakestore.clock import EPOCH

_DAY = timedelta(days=1)


@dataclass(frozen=True)
class ColumnRange:
    """Least and greatest value of a column in a file, as SQL text, and how many are null.

    `low` and `high` are None when the file does not know them, or holds only nulls.
    """

    low: str | None
    high: str | None
    nulls: int


@dataclass(frozen=True)
class FileInfo:
    """What one Parquet file holds, measured when it was written."""

    rows: int
    bytes: int
    sha256: str
    min_time: datetime
    max_time: datetime
    ranges: Mapping[str, ColumnRange] = field(default_factory=dict)
    payload: tuple[str, ...] = ()
    """Names of the payload files that its rows refer to, in order."""

    @cached_property
    def days(self) -> tuple[int, int]:
        """The first and the last UTC day (since 1970-01-01) of its rows, if it has any.

        Kept, because each lookup asks it of every file.
        """
        return (self.min_time - EPOCH) // _DAY, (self.max_time - EPOCH) // _DAY


@dataclass(frozen=True, order=True)
class GenerationId:
    """One journal file: whose, and which."""

    writer: str
    number: int


@dataclass(frozen=True)
class Segment:
    """One immutable unit of the hot tier; it covers the segment numbers first..last."""

    first: int
    last: int
    name: str
    info: FileInfo
    has_duckdb: bool
    committed_at: datetime
    schema_version: int = 1


@dataclass(frozen=True)
class ColdFile:
    """One cold file; it holds rows of the segments first..last."""

    name: str
    day: date | None  # None: another engine wrote it, and did not say
    first: int
    last: int
    schema_version: int
    info: FileInfo


@dataclass(frozen=True)
class TableState:
    """What is published of one table: the catalog at one version, and one cold version."""

    version: int
    sealed_through: int
    segments: tuple[Segment, ...]
    cold: tuple[ColdFile, ...]
    flushed: frozenset[GenerationId]
    sealing_through: int = 0
    """Segments up to here must not be merged: they may be sealed already."""
    cold_version: int = 0
    """Of the Delta log; 0 where the catalog lists the cold files."""
    schema_version: int = 1
    """The newest that is listed: no row of the table is of a newer one."""

    @property
    def hot(self) -> tuple[Segment, ...]:
        """Segments that are not sealed yet, in order."""
        return tuple(s for s in self.segments if s.last > self.sealed_through)
