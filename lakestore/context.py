"""The parts of one open table, as the verbs take them."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

from lakestore.buffer import Buffer
from lakestore.catalog import Catalog, TableEntry
from lakestore.clock import Clock
from lakestore.cold import ColdTable
from lakestore.engine import Engine
from lakestore.fileids import FileIds
from lakestore.layout import SiteLayout, data_prefix
from lakestore.schema import TableSchema
from lakestore.settings import Settings
from lakestore.snapshot import ColdFile, Segment, TableState
from lakestore.storage import Storage
from lakestore.tail import JournalTails


@dataclass(frozen=True)
class TableContext:
    """One table's schema, its state in this process, and where its bytes are."""

    entry: TableEntry
    schema: TableSchema
    site: SiteLayout
    storage: Storage
    catalog: Catalog
    cold: ColdTable
    buffer: Buffer | None  # None: opened for reading only
    tails: JournalTails
    file_ids: FileIds
    engine: Engine
    settings: Settings
    clock: Clock
    writer: str
    maintaining: threading.Lock = field(default_factory=threading.Lock)
    """Held by the one thread of this process that flushes, merges or seals the table."""

    @property
    def staging(self) -> Path:
        """Where this process stages files of the table."""
        return self.site.staging_of(self.writer)

    @property
    def hot_folder(self) -> Path:
        """Where the table's segments are."""
        return self.site.hot(self.entry.folder)

    def state(self) -> TableState:
        """What is published now."""
        return self.catalog.states([self.entry.id])[self.entry.id]

    def segment_path(self, segment: Segment) -> Path:
        """A segment's Parquet file."""
        return self.hot_folder / segment.name

    def cold_key(self, file: ColdFile) -> str:
        """A cold file's key in the storage."""
        return data_prefix(self.entry.folder) + file.name

    def cold_url(self, file: ColdFile) -> str:
        """What DuckDB opens for a cold file."""
        return self.storage.url(self.cold_key(file))

    def footer(self, **facts: object) -> dict[str, object]:
        """What every data file of the table says of itself in its footer."""
        return {
            "format": 1,
            "lake": self.catalog.lake,
            "table": self.entry.name,
            "site": self.catalog.site,
            "schema_version": self.entry.schema_version,
            **facts,
        }
