"""Traces: where rows that were purged may lie besides the files that a table is made of.

Files that others took the place of, and what crashes left: of these, the ones that hold chosen
events are listed as garbage that waits for no one to go back to it. A file that nothing lists may
also be one that a running process is about to list: it is left, and named, unless what it holds
could be seen in the table then. Caches of what is not live are deleted, for they can be made again.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import duckdb
import pyarrow as pa

from lakestore import datafile
from lakestore.catalog.records import COLD_KINDS, Garbage
from lakestore.cold.keeper import records_of
from lakestore.context import TableContext
from lakestore.errors import CorruptionError, LakestoreError, NotFoundError
from lakestore.filecache import Wanted
from lakestore.journal import JournalReader
from lakestore.layout import (
    ColdName,
    PartialName,
    PayloadName,
    data_prefix,
    ids_name,
    log_prefix,
    payload_key,
    rollups_prefix,
)
from lakestore.lineage import FOREIGN
from lakestore.payloadview import payload_names
from lakestore.policy import to_stored
from lakestore.purge import Chosen, matches, payload_of
from lakestore.query.payloads import wanted_payload
from lakestore.replacement import gone
from lakestore.snapshot import GenerationId, TableState
from lakestore.storage.s3 import S3Storage
from lakestore.verify.journals import JournalFile, list_journals
from lakestore.writers import living

_UNREADABLE = (LakestoreError, duckdb.Error, pa.ArrowException, OSError, ValueError)


@dataclass
class Traces:
    """What holds chosen events, or may, and is not part of the table."""

    cold: set[str] = field(default_factory=set)
    payload: set[str] = field(default_factory=set)
    """Payload files in the root."""
    segments: set[str] = field(default_factory=set)
    local_payload: set[str] = field(default_factory=set)
    journals: set[str] = field(default_factory=set)
    left: list[str] = field(default_factory=list)
    """What may not be deleted from here, and why."""


class Search:
    """Looks through the files of one table; the caller holds `table.sealing`."""

    def __init__(self, table: TableContext, chosen: Chosen) -> None:
        """A search that begins now: what is listed later is not found by it."""
        self._table = table
        self._chosen = chosen
        self._storage = table.site.storage
        self._keys = list(self._storage.list(f"tables/{table.entry.folder}/"))

    def traces(self, state: TableState) -> Traces:
        """What there is beside a state in which no event is chosen.

        Args:
            state: read after this search began.

        Raises:
            StorageError: the store or the disk failed.
        """
        self._state = state
        found = Traces()
        used = self._cold(found)
        self._payload(found, used)
        self._hot(found)
        for journal in self._journals():
            if journal.id not in self._held and self._in_journal(journal.path, found):
                found.journals.add(f"{journal.id.writer}/{journal.id.number}")
        return found

    @cached_property
    def _garbage(self) -> list[Garbage]:
        id = self._table.entry.id
        return [g for g in self._table.site.catalog.garbage() if g.table_id == id]

    @cached_property
    def _held(self) -> frozenset[GenerationId]:
        """Generations whose rows are seen in the table."""
        buffer = self._table.buffer
        return buffer.ids if buffer is not None else frozenset()

    @cached_property
    def _is_alone(self) -> bool:
        """Whether no other process of this site writes."""
        return not living(self._table.site.layout) - self._table.site.writers

    @cached_property
    def _known_dead(self) -> set[str]:
        """Cold files that were part of the table."""
        records = records_of(self._storage, self._table.entry.folder, self._keys)
        dead = {g.name for g in self._garbage if g.kind in COLD_KINDS}
        return dead | set(self._table.cold.replaced()) | gone(records).keys()

    def _cold(self, found: Traces) -> set[str]:
        """Look into files of the root that are not live; returns the payload files they name."""
        folder = self._table.entry.folder
        live = {file.name for file in self._state.cold}
        used: set[str] = set()
        for key in self._keys:
            name = key.removeprefix(data_prefix(folder))
            is_data = key.startswith(data_prefix(folder)) and name.endswith(".parquet")
            if not is_data or name in live or key.startswith(log_prefix(folder)):
                continue
            size = self._storage.size(key)
            if size is None:  # deleted meanwhile
                continue
            with self._reading(self._storage.url(key), found):
                path = self._table.site.files.path(Wanted(key, size))
                rows = matches(self._table, [(_version(path), path)], self._chosen)
                if not rows.num_rows:
                    used |= set(datafile.read_footer(path).get("payload", ()))
                elif why := self._why_left(name):
                    found.left.append(f"{self._storage.url(key)!r} {why}")
                else:
                    found.cold.add(name)
                    found.payload |= payload_of(rows)
        return used

    def _why_left(self, name: str) -> str | None:
        """Why a file with chosen rows may not be deleted from here; None when it may."""
        if name in self._known_dead:
            return None
        try:
            parsed = ColdName.parse(name)
        except CorruptionError:
            return "is another engine's, which nothing lists"
        if parsed.site != self._table.site.catalog.site:
            return f"is of site {parsed.site}, which may be about to list it: run it there"
        if self._is_alone or 0 < parsed.first <= self._state.sealed_through:
            return None
        return "may be about to be listed by another process: run it again"

    def _payload(self, found: Traces, used: set[str]) -> None:
        """Payload files in the root that only chosen rows refer to, or that a crash left."""
        folder, site = self._table.entry.folder, self._table.site.catalog.site
        live = set(payload_names((*self._state.cold, *self._state.segments)))
        prefix = payload_key(folder, "")
        there = {key.removeprefix(prefix) for key in self._keys if key.startswith(prefix)}
        found.payload = (found.payload & there) - live
        for name in there - live - used:
            with suppress(CorruptionError):
                if PayloadName.parse(name).site == site and self._is_alone:
                    found.payload.add(name)

    def _hot(self, found: Traces) -> None:
        """Segments that are not live, and payload files beside them that crashes left."""
        table, state = self._table, self._state
        live = {segment.name for segment in state.hot}
        waiting = {g.name for g in self._garbage if g.kind in ("segment", "payload")}
        for path in sorted(table.hot_folder.glob("*.parquet")):
            if path.name in live:
                continue
            with self._reading(str(path), found):
                if matches(table, [(_version(path), path)], self._chosen).num_rows:
                    if path.name not in waiting and not self._is_elsewhere(path, "covers"):
                        found.left.append(f"{str(path)!r} holds rows that nothing else has: verify")
                    else:
                        found.segments.add(path.name)
        folder = table.payload_folder
        named = {*payload_names(state.segments), *waiting}
        for path in sorted(folder.rglob("*.parquet")):
            name = path.relative_to(folder).as_posix()
            if name not in named and self._is_elsewhere(path, "generations"):
                found.local_payload.add(name)

    def _is_elsewhere(self, path: Path, key: str) -> bool:
        """Whether what a flush took that was cut short is in other files too."""
        with suppress(*_UNREADABLE):
            taken = datafile.read_footer(path)[key]
            return all(GenerationId(str(w), int(n)) in self._covered for w, n in taken)
        return False

    @cached_property
    def _covered(self) -> set[GenerationId]:
        """Generations whose rows are known to be somewhere; read when there is a doubt."""
        table = self._table
        records = records_of(self._storage, table.entry.folder, self._keys)
        footers = list(gone(records).values())
        paths = [table.segment_path(segment) for segment in self._state.hot]
        paths += [table.cold_path(file) for file in self._state.cold if file.info.sha256]
        footers += [datafile.read_footer(path) for path in paths]
        covered = {
            GenerationId(str(w), int(n)) for footer in footers for w, n in footer.get("covers", ())
        }
        return covered | self._state.flushed | {journal.id for journal in self._journals()}

    def _journals(self) -> Sequence[JournalFile]:
        return list_journals(self._table.site.layout, self._table.entry.folder)

    def _in_journal(self, path: Path, found: Traces) -> bool:
        """Whether a journal holds chosen rows."""
        table = self._table
        with suppress(FileNotFoundError), self._reading(str(path), found):
            reader = JournalReader(path)
            batches = [batch for entry in reader.read() for batch in entry.batches]
            if reader.header is None:
                return False
            version = table.lineage.buffered(reader.header.schema_version)
            batches = list(version.batches(batches))
            rows = pa.Table.from_batches(batches, schema=table.accepts.buffered.arrow)
            return bool(count(table, to_stored(rows, table.accepts), self._chosen))
        return False

    def _reading(self, what: str, found: Traces) -> "_Reading":
        return _Reading(what, found)


def _version(path: Path) -> int:
    """Of the schema of a file's rows; one of another engine does not say."""
    try:
        return int(datafile.read_footer(path)["schema_version"])
    except (CorruptionError, LookupError):
        return FOREIGN


class _Reading:
    """Notes a file that cannot be read; one that is gone meanwhile is none."""

    def __init__(self, what: str, found: Traces) -> None:
        self._what = what
        self._found = found

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, FileNotFoundError | NotFoundError):
            return True
        if isinstance(error, duckdb.Error) and "No files found" in str(error):
            return True
        if isinstance(error, _UNREADABLE):
            self._found.left.append(f"{self._what!r} cannot be read: {error}")
            return True
        return False


def count(table: TableContext, rows: pa.Table, chosen: Chosen) -> int:
    """How many of some rows, as they are stored, are chosen."""
    if not rows.num_rows:
        return 0
    with table.site.engine.cursor() as cursor:
        cursor.register("lakestore_rows", rows)
        statement = f"SELECT count(*) FROM (FROM lakestore_rows OFFSET 0) WHERE {chosen.condition}"
        values = dict(chosen.values) or None
        return int(cursor.sql(statement, params=values).fetchall()[0][0])


def condemn(table: TableContext, found: Traces) -> None:
    """List what was found as garbage; raises `StorageError`."""
    waiting = {g.name for g in table.site.catalog.garbage() if g.table_id == table.entry.id}
    fresh = found.cold - {g.name for g in table.site.catalog.garbage() if g.kind == "purged"}
    past = table.cold.condense() if fresh else ()
    with table.site.catalog.commit() as commit:
        id = table.entry.id
        commit.condemn(id, "purged", found.cold)
        commit.condemn(id, "purged_payload", found.payload)
        commit.condemn(id, "purged_log", past)
        commit.add_garbage(id, "segment", sorted(found.segments - waiting))
        commit.add_garbage(id, "payload", sorted(found.local_payload - waiting))


def sweep(table: TableContext, state: TableState) -> None:
    """Delete caches of what is neither live nor listed as garbage; raises `StorageError`."""
    site, folder = table.site, table.entry.folder
    garbage = {g.name for g in site.catalog.garbage() if g.table_id == table.entry.id}
    files = {file.name for file in state.cold} | {segment.name for segment in state.hot} | garbage
    flat = {name.replace("/", "-") for name in files}
    _sweep_folder(site.layout.ids(folder), {ids_name(name) for name in files})
    for path in _files(site.layout.rollups(folder)):
        if _partial_of(path.name) not in flat:
            path.unlink(missing_ok=True)
    prefix = rollups_prefix(folder)
    of = {key: _partial_of(key.removeprefix(prefix)) for key in site.storage.list(prefix)}
    gone = {key: file for key, file in of.items() if file is not None and file not in files}
    site.storage.delete(*(k for k, file in gone.items() if _site_of(file) == site.catalog.site))
    if isinstance(site.storage, S3Storage):
        live = [table.wanted(file) for file in state.cold]
        live += [wanted_payload(table, name) for name in payload_names(state.cold)]
        site.files.sweep(live, lambda path: _is_of_other_table(path, table.entry.name))


def _sweep_folder(folder: Path, kept: set[str]) -> None:
    for path in _files(folder):
        if path.name not in kept:
            path.unlink(missing_ok=True)


def _files(folder: Path) -> Iterable[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _partial_of(name: str) -> str | None:
    try:
        return PartialName.parse(name).file
    except CorruptionError:
        return None


def _site_of(name: str) -> str | None:
    try:
        return ColdName.parse(name).site
    except CorruptionError:
        return None


def _is_of_other_table(path: Path, table: str) -> bool:
    """Whether a copy says that it is of another table."""
    try:
        return bool(datafile.read_footer(path).get("table", table) != table)
    except _UNREADABLE:
        return False
