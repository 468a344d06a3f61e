"""Rebuild: make the catalog again from the files that it names.

Schema documents say which tables there are, tombstones which of them were dropped; names and
footers of segments and cold files say what they hold, and which journals they took; what no file
took is in the journals that are left, and the next open recovers it. Nothing is deleted: the old
catalog goes to quarantine. Where the files do not account for every row, nothing is changed.

Where sites share a catalog in Postgres, what is sealed is there for all to see, and the rest on the
hosts. The first rebuild makes the catalog again, with all that is sealed and what its own host has;
at every other host one more brings in what that one has, and touches nothing else. Until then the
site is not opened.
"""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

from lakestore.catalog import Catalog
from lakestore.catalog.database import Creation
from lakestore.catalog.postgres import Postgres
from lakestore.catalog.records import TableRecord
from lakestore.catalog.restoring import is_of, remake
from lakestore.catalog.sqlite import SQLite
from lakestore.clock import Clock
from lakestore.cold.keeper import RecordKeeper
from lakestore.errors import (
    ConflictError,
    CorruptionError,
    LockedError,
    NotFoundError,
    StorageError,
)
from lakestore.filecache import FileCache
from lakestore.lakefile import is_filled, lake_id, write_lake_file
from lakestore.layout import LAKE_FILE, SiteLayout
from lakestore.locks import ProcessLock
from lakestore.rebuild.found import Finder
from lakestore.rebuild.sources import Found, Shared, Sources
from lakestore.settings import Settings
from lakestore.sitefile import SiteId, read_site, refuse_other_place
from lakestore.siting import site_of
from lakestore.storage import Storage
from lakestore.storage.local import fsync_file, make_folder, publish_new, set_aside
from lakestore.verify.journals import list_journals
from lakestore.writers import living

_TRIES = 20


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
    awaited: tuple[str, ...] = ()
    """Other sites of a shared catalog, at whose hosts `rebuild` has to be run too."""

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
        if self.awaited:
            lines.append(
                "run `lakestore rebuild` at the hosts of these sites too, before they open the "
                f"lake: {', '.join(self.awaited)}"
            )
        return "\n".join(lines)


def rebuild(storage: Storage, layout: SiteLayout, catalog: str | None, clock: Clock) -> Rebuilt:
    """Make the catalog of a lake again, and `lakestore.json` if need be, from all other files.

    One in Postgres that is well keeps what other sites have in it.

    Raises:
        NotFoundError: there is nothing to make one from.
        LockedError: a process of this host has the lake open to write.
        ConflictError: other hosts sealed all the while.
        InvalidInputError: the site's catalog is in the other place.
        CorruptionError: files that are damaged or missing would cost rows; says which, and
            nothing was changed.
        StorageError: the disk or the server refused; it can be tried again.
    """
    refuse_other_place(layout, shared=catalog is not None)
    kind = _InFile if catalog is None else _Shared
    return kind(storage, layout, catalog, clock).run()


class _Rebuild(ABC):
    """What is the same wherever the catalog is."""

    def __init__(
        self, storage: Storage, layout: SiteLayout, catalog: str | None, clock: Clock
    ) -> None:
        self._storage = storage
        self._layout = layout
        self._url = catalog
        self._clock = clock
        stamp = clock.now().strftime("%Y%m%dT%H%M%S")
        self._aside = layout.quarantine / f"{stamp}-{token_hex(4)}"

    def run(self) -> Rebuilt:
        """Do it; raises as `rebuild`."""
        lake = self._lake_in_file()
        if lake is None and not is_filled(self._storage, self._layout):
            raise NotFoundError(f"no lake at {self._storage.root!r}")
        with _alone(self._layout) as lock:
            return self._made(lake, lock)

    @abstractmethod
    def _made(self, lake: str | None, lock: ProcessLock) -> Rebuilt:
        """Make the catalog again."""

    def _found(self, finder: Finder, shared: Shared | None) -> Found:
        """What the files tell; raises `CorruptionError` where they do not tell all."""
        found = finder.find(shared)
        if found.problems:
            raise CorruptionError(
                "the catalog cannot be made again, and nothing was changed: "
                + "; ".join(found.problems)
            )
        return found

    def _finder(self) -> Finder:
        files = FileCache(self._storage, self._layout.files, Settings.of(None).cache_bytes)
        return Finder(Sources(self._storage, files, self._layout, self._clock.now()))

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

    def _write_lake_file(self, lake: str) -> None:
        self._move_lake_file_away()
        write_lake_file(self._storage, lake, self._layout.local)

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

    def _report(
        self,
        lake: str,
        records: Sequence[TableRecord],
        found: Found,
        quarantine: str | None = None,
        awaited: Sequence[str] = (),
    ) -> Rebuilt:
        live = [record for record in records if not record.dropped]
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
        moved = [str(self._aside)] if self._aside.exists() else []
        return Rebuilt(
            self._storage.root,
            lake,
            tuple(tables),
            len(records) - len(live),
            " and ".join([*moved, *([quarantine] if quarantine is not None else [])]) or None,
            tuple(sorted(found.left_out)),
            tuple(awaited),
        )


class _InFile(_Rebuild):
    """A catalog in a file of SQLite: the new one is staged, and put in the place of the old."""

    def _made(self, lake: str | None, lock: ProcessLock) -> Rebuilt:
        found = self._found(self._finder(), None)
        chosen = self._agreed(lake, found)
        staged = self._stage(lock, chosen, found)
        if lake is None:
            self._write_lake_file(chosen)
        # The file first: a log without it is ignored, but not it without its log.
        for suffix in ("", "-wal", "-shm", "-journal"):
            self._move_away(self._layout.catalog.with_name(f"catalog.sqlite{suffix}"))
        _refuse_others(self._layout, lock)
        publish_new(staged, self._layout.catalog)
        return self._report(chosen, found.tables, found)

    def _stage(self, lock: ProcessLock, lake: str, found: Found) -> Path:
        """The new catalog, whole and closed, under a staged name."""
        path = make_folder(self._layout.staging_of(lock.name)) / "catalog.sqlite"
        site = found.sites[0] if found.sites else token_hex(4)
        creation = Creation(lake, site)
        catalog = Catalog(SQLite(path), self._clock, write=True, creation=creation)
        try:
            with catalog.restoring() as commit:
                for record in found.tables:
                    commit.restore(record)
        finally:
            catalog.close()
        if path.with_name("catalog.sqlite-wal").exists():
            raise StorageError(f"{str(path)!r} could not be finished: make room, then retry")
        return path

    def _files(self) -> FileCache:
        return FileCache(self._storage, self._layout.files, Settings.of(None).cache_bytes)


class _Shared(_Rebuild):
    """A catalog in Postgres: a new schema, or this site's part of the one that there is."""

    def _made(self, lake: str | None, lock: ProcessLock) -> Rebuilt:
        assert self._url is not None
        known = read_site(self._layout)
        id = lake or (known.lake if known is not None else None)
        if id is None:
            raise CorruptionError(
                f"{self._storage.url(LAKE_FILE)!r} is lost, and nothing here says which lake it "
                "is: run this at a host that has opened it"
            )
        site = site_of(self._layout, id, write=True)
        for _ in range(_TRIES):
            database = Postgres(self._url, id, site.site)
            catalog = self._catalog(database, id)
            try:
                if catalog is None:
                    return self._made_anew(self._finder(), database, site, lake)
                self._keep_records(catalog, lock)
                return self._brought_in(self._finder(), catalog, site, lake)
            except ConflictError as error:
                conflict = error
            finally:
                database.close()
        raise ConflictError(f"{conflict}, {_TRIES} times: run it again") from conflict

    def _catalog(self, database: Postgres, lake: str) -> Catalog | None:
        """The catalog that there is; None when it is lost or damaged."""
        creation = Creation(needs_catalog=lambda: True)
        try:
            catalog = Catalog(database, self._clock, write=False, creation=creation)
            catalog.inventory()
            return catalog if catalog.lake == lake and not catalog.integrity() else None
        except CorruptionError:
            return None

    def _made_anew(
        self, finder: Finder, database: Postgres, site: SiteId, lake: str | None
    ) -> Rebuilt:
        found = self._found(finder, Shared(site.site))
        self._agreed(site.lake, found)
        if lake is None:
            self._write_lake_file(site.lake)
        aside = remake(database, self._clock, site.lake, site.site, tuple(found.tables))
        moved = f"schema {aside} of {database.name}" if aside is not None else None
        awaited = {other.site for record in found.tables for other in record.elsewhere}
        return self._report(site.lake, found.tables, found, moved, sorted(awaited))

    def _keep_records(self, catalog: Catalog, lock: ProcessLock) -> None:
        """Put into the root what a catalog that is well has of replacements: files tell of it."""
        staged = make_folder(self._layout.staging_of(lock.name)) / "record.json"

        def put_new(key: str, data: bytes) -> bool:
            staged.write_bytes(data)
            return self._storage.put_new(key, staged)

        for record in catalog.inventory().tables:
            if record.cold == "parquet" and not record.dropped:
                keeper = RecordKeeper(catalog, record.id, record.folder, self._storage, put_new)
                live = record.state.cold
                keeper.settle(lambda record: "committed", partial(tuple, live))

    def _brought_in(
        self, finder: Finder, catalog: Catalog, site: SiteId, lake: str | None
    ) -> Rebuilt:
        tables = catalog.inventory().tables
        version = max((record.state.cold_version for record in tables), default=0)
        listed = {
            record.folder: [f.name for f in record.state.cold if not is_of(f.name, site.site)]
            for record in tables
            if not record.dropped
        }
        dropped = frozenset(record.folder for record in tables if record.dropped)
        found = self._found(finder, Shared(site.site, listed, dropped))
        self._agreed(site.lake, found)
        if lake is None:
            self._write_lake_file(site.lake)
        with catalog.restoring() as commit:
            commit.arrive()
            for record in found.tables:
                commit.bring(record, version)
        records = catalog.inventory().tables
        return self._report(site.lake, records, found, awaited=catalog.awaited())


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
