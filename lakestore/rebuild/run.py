"""Rebuild: make the catalog again from the files that it names.

Schema documents say which tables there are, tombstones which of them were dropped; names and
footers of segments and cold files say what they hold, and which journals they took; what no file
took is in the journals that are left, and the next open recovers it. Nothing is deleted: the old
catalog goes to quarantine. Where the files do not account for every row, nothing is changed.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

from lakestore.catalog import Catalog
from lakestore.catalog.database import Creation
from lakestore.catalog.sqlite import SQLite
from lakestore.clock import Clock
from lakestore.errors import (
    CorruptionError,
    InvalidInputError,
    LockedError,
    NotFoundError,
    StorageError,
)
from lakestore.filecache import FileCache
from lakestore.lakefile import is_filled, lake_id, write_lake_file
from lakestore.layout import LAKE_FILE, SiteLayout
from lakestore.locks import ProcessLock
from lakestore.rebuild.found import Finder, Found
from lakestore.settings import Settings
from lakestore.storage import Storage
from lakestore.storage.local import fsync_file, make_folder, publish_new, set_aside
from lakestore.verify.journals import list_journals
from lakestore.writers import living


@dataclass(frozen=True)
class RebuiltTable:
    """One table as it is listed now."""

    name: str
    rows: int
    cold_files: int
    segments: int
    journals: int
    """Journal files whose rows the next open recovers."""


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild made."""

    root: str
    lake: str
    tables: tuple[RebuiltTable, ...]
    dropped: int
    quarantine: str | None
    """Where the old catalog is now; None when there was none."""
    left_out: tuple[str, ...]
    """Files that nothing names: what crashes left."""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries and lists."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.root}: {len(self.tables)} table(s) listed again"]
        lines += [
            f"{t.name}: {t.rows:,} rows in {t.cold_files:,} cold files and {t.segments:,} "
            f"segments, and {t.journals:,} journals to recover"
            for t in self.tables
        ]
        if self.quarantine is not None:
            lines.append(f"what was there before is in {self.quarantine}")
        if self.left_out:
            lines.append(f"{len(self.left_out):,} files are left that crashes made: see `verify`")
        return "\n".join(lines)


def rebuild(storage: Storage, layout: SiteLayout, catalog: str | None, clock: Clock) -> Rebuilt:
    """Make the catalog of a lake again, and `lakestore.json` if need be, from all other files.

    Raises:
        NotFoundError: there is nothing to make one from.
        LockedError: a process has the lake open to write.
        CorruptionError: files that are damaged or missing would cost rows; says which, and
            nothing was changed.
        InvalidInputError: the catalog is in Postgres, which has backups of its own.
        StorageError: the disk refused; it can be tried again.
    """
    if catalog is not None:
        raise InvalidInputError(
            "a catalog in Postgres is not made again from files: restore the server's backup, "
            "then `lakestore verify` says what is newer than it"
        )
    return _Rebuild(storage, layout, clock).run()


class _Rebuild:
    def __init__(self, storage: Storage, layout: SiteLayout, clock: Clock) -> None:
        self._storage = storage
        self._layout = layout
        self._clock = clock
        stamp = clock.now().strftime("%Y%m%dT%H%M%S")
        self._aside = layout.quarantine / f"{stamp}-{token_hex(4)}"

    def run(self) -> Rebuilt:
        lake = self._lake_in_file()
        if lake is None and not is_filled(self._storage, self._layout):
            raise NotFoundError(f"no lake at {self._storage.root!r}")
        with _alone(self._layout) as lock:
            found = Finder(self._storage, self._files(), self._layout, self._clock.now()).find()
            if found.problems:
                raise CorruptionError(
                    "the catalog cannot be made again, and nothing was changed: "
                    + "; ".join(found.problems)
                )
            chosen = self._agreed(lake, found)
            staged = self._stage(lock, chosen, found)
            if lake is None:
                self._move_lake_file_away()
                write_lake_file(self._storage, chosen, self._layout.local)
            # The file first: a log without it is ignored, but not it without its log.
            for suffix in ("", "-wal", "-shm", "-journal"):
                self._move_away(self._layout.catalog.with_name(f"catalog.sqlite{suffix}"))
            _refuse_others(self._layout, lock)
            publish_new(staged, self._layout.catalog)
        return self._report(chosen, found)

    def _lake_in_file(self) -> str | None:
        """The lake's uuid; None when its file is damaged or gone."""
        try:
            return lake_id(self._storage, None)
        except (CorruptionError, NotFoundError):
            return None

    def _agreed(self, lake: str | None, found: Found) -> str:
        """The lake that every file is of."""
        lakes = set(found.lakes) | ({lake} if lake is not None else set())
        if len(lakes) != 1:
            told = ", ".join(f"{path!r} is of lake {id}" for id, path in found.lakes.items())
            raise CorruptionError(
                f"the files do not agree on whose they are: {LAKE_FILE} says {lake}; {told}"
            )
        return lakes.pop()

    def _stage(self, lock: ProcessLock, lake: str, found: Found) -> Path:
        """The new catalog, whole and closed, under a staged name."""
        path = make_folder(self._layout.staging_of(lock.name)) / "catalog.sqlite"
        site = found.sites[0] if found.sites else token_hex(4)
        creation = Creation(lake, site)
        catalog = Catalog(SQLite(path), self._clock, write=True, creation=creation)
        try:
            with catalog.commit() as commit:
                for record in found.tables:
                    commit.restore(record)
        finally:
            catalog.close()
        if path.with_name("catalog.sqlite-wal").exists():
            raise StorageError(f"{str(path)!r} could not be finished: make room, then retry")
        return path

    def _files(self) -> FileCache:
        return FileCache(self._storage, self._layout.files, Settings.of(None).cache_bytes)

    def _move_lake_file_away(self) -> None:
        if self._storage.size(LAKE_FILE) is None:
            return
        if self._storage.remote:
            kept = make_folder(self._aside) / LAKE_FILE
            kept.write_bytes(self._storage.read(LAKE_FILE))
            fsync_file(kept)
            self._storage.delete(LAKE_FILE)
        else:
            self._move_away(Path(self._storage.url(LAKE_FILE)))

    def _move_away(self, path: Path) -> None:
        if path.exists():
            set_aside(path, make_folder(self._aside) / path.name)

    def _report(self, lake: str, found: Found) -> Rebuilt:
        live = [record for record in found.tables if not record.dropped]
        tables = []
        for record in live:
            infos = [f.info for f in record.state.cold] + [s.info for s in record.state.segments]
            journals = list_journals(self._layout, record.folder)
            tables.append(
                RebuiltTable(
                    record.name,
                    sum(info.rows for info in infos),
                    len(record.state.cold),
                    len(record.state.segments),
                    sum(journal.id not in record.state.flushed for journal in journals),
                )
            )
        return Rebuilt(
            self._storage.root,
            lake,
            tuple(tables),
            len(found.tables) - len(live),
            str(self._aside) if self._aside.exists() else None,
            tuple(sorted(found.left_out)),
        )


@contextmanager
def _alone(layout: SiteLayout) -> Iterator[ProcessLock]:
    """A writer's name to stage under, while nobody else writes."""
    lock = ProcessLock.create(layout.writers)
    try:
        _refuse_others(layout, lock)
        yield lock
    finally:
        folder = layout.staging_of(lock.name)
        if folder.is_dir():
            shutil.rmtree(folder)
        lock.release(forget=True)


def _refuse_others(layout: SiteLayout, lock: ProcessLock) -> None:
    others = living(layout) - {lock.name}
    if others:
        raise LockedError(
            f"{len(others)} process(es) have the lake open to write: close them, then rebuild"
        )
