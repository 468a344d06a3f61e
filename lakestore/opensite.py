"""What every table of an open lake shares in one process."""

import threading
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from lakestore.catalog import Catalog
from lakestore.clock import Clock
from lakestore.engine import Engine, engine
from lakestore.errors import LockedError
from lakestore.failpoint import reach
from lakestore.filecache import FileCache
from lakestore.layout import SiteLayout
from lakestore.lineage import Lineage
from lakestore.locks import ProcessLock
from lakestore.partialfiles import PartialFiles
from lakestore.partials import Partials
from lakestore.settings import Settings
from lakestore.siting import known_lake, open_catalog
from lakestore.storage import Storage
from lakestore.storage.local import make_folder, refusals
from lakestore.writers import Recovery, sweep_staging, take_over_dead, writers_with_journals


@dataclass(frozen=True)
class SiteContext:
    """What every table of an open lake shares in this process."""

    layout: SiteLayout
    storage: Storage
    files: FileCache
    reads_store: bool
    """Whether DuckDB opens the store's objects by their URLs."""
    catalog: Catalog
    engine: Engine
    settings: Settings
    clock: Clock
    lock: ProcessLock | None  # None: opened for reading only
    dead: list[ProcessLock]
    """Locks of dead writers whose rows this process has taken over."""
    recovery: Recovery
    visibility: threading.Lock = field(default_factory=threading.Lock)
    """Guards what of the buffers is visible, so that all of them are pinned at one instant."""
    _deaths: threading.Lock = field(default_factory=threading.Lock)  # guards dead

    @classmethod
    def open(
        cls,
        storage: Storage,
        layout: SiteLayout,
        catalog_url: str | None,
        settings: Settings,
        clock: Clock,
        *,
        write: bool,
    ) -> "SiteContext":
        """Open the site of a lake; with `write`, make what is missing.

        Raises: as `lakestore.open`; LockedError: a rebuild was at it.
        """
        lake = known_lake(storage, layout, write=write)
        reach("open.1")
        if write or storage.remote:
            make_folder(layout.local)
        reach("open.2")
        catalog = open_catalog(storage, layout, lake, catalog_url, clock, write=write)
        with ExitStack() as undo:  # locks that stayed taken would hide rows from the next attempt
            undo.callback(catalog.close)
            reach("open.3")
            lock = None
            if write:
                lock = ProcessLock.create(layout.writers)
                undo.callback(lock.abandon)
                if not catalog.database.is_in_place():  # from the lock on, a rebuild is refused
                    raise LockedError("the catalog was made again meanwhile: open the lake again")
                make_folder(layout.staging_of(lock.name))
                reach("open.4")
            dead: list[ProcessLock] = []
            undo.callback(_abandon, dead)
            instance = engine(settings.memory_bytes)
            files = FileCache(storage, layout.files, settings.cache_bytes)
            found = Recovery()
            direct = instance.reads(storage)
            site = cls(
                layout,
                storage,
                files,
                direct,
                catalog,
                instance,
                settings,
                clock,
                lock,
                dead,
                found,
            )
            if write:
                site.take_over()
            undo.pop_all()
        return site

    def partials_of(self, folder: str, lineage: Lineage) -> Partials:
        """The partials of the table in a folder; nothing of them was read yet."""
        files = PartialFiles(
            lineage,
            folder,
            self.layout.rollups(folder),
            self.layout.hot(folder),
            self.storage,
            self.files,
            self.engine,
            reads_store=self.reads_store,
            writes=self.lock is not None,
        )
        return Partials(files, self.engine, self.settings.memory_bytes // 2)

    def put_new(self, key: str, data: bytes) -> bool:
        """Publish bytes as `key`; False when there is one. Raises `StorageError`."""
        with self._staged(data) as staged:
            return self.storage.put_new(key, staged)

    def replace_with(self, key: str, data: bytes) -> None:
        """Put bytes in the place of `key`, which is a cache; raises `StorageError`."""
        with self._staged(data) as staged:
            self.storage.replace(key, staged)

    @contextmanager
    def _staged(self, data: bytes) -> Iterator[Path]:
        staged = self.staging / uuid4().hex
        try:
            with refusals(f"cannot write {str(staged)!r}"):
                staged.write_bytes(data)
            yield staged
        finally:
            staged.unlink(missing_ok=True)

    def take_over(self) -> None:
        """Take the locks of writers that are dead by now, and sweep what they had staged."""
        with self._deaths:
            found = take_over_dead(self.layout, self.writers)
            self.dead.extend(found)
        reach("open.5")
        if found:
            self.catalog.end_leases([lock.name for lock in found])
        self.recovery.writers += len(found)
        self.recovery.staged_files += sweep_staging(self.layout, found)
        reach("open.6")

    def forget_dead(self) -> None:
        """Let go of dead writers that have no journal left."""
        with self._deaths:
            left = writers_with_journals(self.layout)
            for lock in [lock for lock in self.dead if lock.name not in left]:
                self.dead.remove(lock)
                lock.release(forget=True)

    def close(self) -> None:
        """Let go of locks and files; a writer that left no journal is forgotten."""
        left: Container[str] = self.writers
        with suppress(OSError):  # a writer that is not forgotten is taken over in vain
            left = writers_with_journals(self.layout)
        for lock in self._locks:
            lock.release(forget=lock.name not in left)
        if self.lock is not None:
            with suppress(OSError):  # it is swept once this writer is dead
                self.staging.rmdir()
        self.catalog.close()

    def abandon(self) -> None:
        """In a forked child: the locks are the parent's, and must end with it."""
        for lock in self._locks:
            lock.abandon()

    @property
    def writer(self) -> str:
        """This process's name among the writers; empty when it only reads."""
        return self.lock.name if self.lock is not None else ""

    @property
    def writers(self) -> frozenset[str]:
        """This process's name and those of the dead writers that it took over."""
        return frozenset(lock.name for lock in self._locks)

    @property
    def staging(self) -> Path:
        """Where this process stages files."""
        return self.layout.staging_of(self.writer)

    @property
    def _locks(self) -> list[ProcessLock]:
        return [*self.dead, *([self.lock] if self.lock is not None else [])]


def _abandon(locks: Sequence[ProcessLock]) -> None:
    for lock in locks:
        lock.abandon()
