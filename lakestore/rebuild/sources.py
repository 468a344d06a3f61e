"""What a rebuild reads, and what it found, as its parts share it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from lakestore.catalog.records import TableRecord
from lakestore.filecache import FileCache, Wanted
from lakestore.layout import SiteLayout
from lakestore.storage import Storage


@dataclass(frozen=True)
class Sources:
    """Where the files of a lake are."""

    storage: Storage
    files: FileCache
    layout: SiteLayout
    now: datetime

    def fetched(self, key: str) -> Path:
        """An object as a file of this machine."""
        return self.files.path(Wanted(key, self.storage.size(key) or 0))


@dataclass(frozen=True)
class Shared:
    """Whose rebuild it is where sites share a catalog, and what that catalog lists."""

    site: str
    listed: Mapping[str, Sequence[str]] | None = None
    """Other sites' cold files, by the folder of each table that lives; None when it is lost."""
    dropped: frozenset[str] = frozenset()
    """Folders of dropped tables."""


@dataclass
class Found:
    """Every table that the files tell of, and what they say that all of them have to agree on."""

    tables: list[TableRecord] = field(default_factory=list)
    lakes: dict[str, str] = field(default_factory=dict)
    sites: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
