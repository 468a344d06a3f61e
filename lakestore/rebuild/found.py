"""What the files of a lake say of its tables, without a catalog."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lakestore import datafile, hot, tiling
from lakestore.catalog.records import Garbage, Sent, TableRecord
from lakestore.errors import CorruptionError, FormatTooNewError, SchemaError
from lakestore.filecache import FileCache, Wanted
from lakestore.layout import (
    ColdName,
    SegmentName,
    SiteLayout,
    data_prefix,
    log_prefix,
    log_version_name,
    parse_schema_name,
    schema_key,
    split_folder,
    tombstone_key,
)
from lakestore.rebuild import logs
from lakestore.schema import TableSchema
from lakestore.snapshot import ColdFile, FileInfo, GenerationId, Segment, TableState
from lakestore.storage import Storage
from lakestore.storage.local import raise_refusal
from lakestore.tiling import Tile
from lakestore.verify.journals import list_journals
from lakestore.verify.tiers import is_whole

_NOTHING = TableState(0, 0, (), (), frozenset())


@dataclass
class Found:
    """Every table that the files tell of, and what they say that all of them have to agree on."""

    tables: list[TableRecord] = field(default_factory=list)
    lakes: dict[str, str] = field(default_factory=dict)
    sites: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


class Finder:
    """Reads what is on the disk, table by table."""

    def __init__(
        self, storage: Storage, files: FileCache, layout: SiteLayout, now: datetime
    ) -> None:
        self._storage = storage
        self._files = files
        self._layout = layout
        self._now = now
        self._keys: dict[str, list[str]] = defaultdict(list)
        for key in storage.list("tables/"):
            self._keys[key.split("/")[1]].append(key)
        self._found = Found()

    def find(self) -> Found:
        """All tables; where a file does not fit, a problem that says so."""
        folders = set(self._keys)
        for kind in ("hot", "journal"):
            folders |= {path.name for path in (self._layout.local / kind).glob("*")}
        newest: dict[str, tuple[int, str]] = {}
        for folder in folders:
            if self._is_table(folder):
                name, number = split_folder(folder)
                best = newest.get(name.casefold(), (0, ""))
                newest[name.casefold()] = max(best, (number, folder))
        for folder in sorted(folders):
            _, current = newest.get(split_folder(folder)[0].casefold(), (0, ""))
            # A folder is only made while no table has its name: those before it were dropped.
            record = self._table(folder, dropped=folder != current)
            if record is not None:
                self._found.tables.append(record)
        return self._found

    def _is_table(self, folder: str) -> bool:
        """Whether it is more than a table that was about to be made."""
        data = any(not key.startswith(f"tables/{folder}/schema/") for key in self._keys[folder])
        segments = any(self._layout.hot(folder).glob("*.parquet"))
        rows = data or segments or bool(list_journals(self._layout, folder))
        return rows or bool(self._documents(folder))

    def _documents(self, folder: str) -> dict[int, str]:
        """The schema documents of a folder, by version."""
        documents = {}
        for key in self._keys[folder]:
            version = parse_schema_name(key.rsplit("/", 1)[1])
            if version is not None and key == schema_key(folder, version):
                try:
                    documents[version] = self._storage.read(key).decode()
                except UnicodeDecodeError:
                    documents[version] = ""  # damaged, as its zero-row file will show
        return documents

    def _table(self, folder: str, *, dropped: bool) -> TableRecord | None:
        documents = self._documents(folder)
        segments = sorted(self._layout.hot(folder).glob("*.parquet"))
        data = [key for key in self._keys[folder] if key.startswith(data_prefix(folder))]
        if dropped or tombstone_key(folder) in self._keys[folder]:
            gone = (Garbage(0, 0, folder, "table", "", 0),)
            name, none = split_folder(folder)[0], frozenset[Sent]()
            return TableRecord(
                0, name, folder, "parquet", True, 0, documents, {}, none, gone, _NOTHING
            )
        if not documents:
            if self._is_table(folder):
                self._found.problems.append(
                    f"table {folder!r} has files, and its schema document is gone: restore "
                    f"{self._storage.url(schema_key(folder, 1))!r}"
                )
            return None
        table = _TableReader(
            self._storage,
            self._files,
            self._layout,
            folder,
            documents,
            data,
            self._now,
            self._found,
        )
        return table.read(segments, data)


class _TableReader:
    """Reads one table."""

    def __init__(
        self,
        storage: Storage,
        files: FileCache,
        layout: SiteLayout,
        folder: str,
        documents: Mapping[int, str],
        keys: Sequence[str],
        now: datetime,
        found: Found,
    ) -> None:
        self._storage = storage
        self._files = files
        self._layout = layout
        self._folder = folder
        self._name = split_folder(folder)[0]
        self._documents = documents
        self._cold = "delta" if log_prefix(folder) + log_version_name(0) in keys else "parquet"
        self._now = now
        self._found = found
        self._footers: dict[str, Mapping[str, Any]] = {}
        self._unreadable: list[str] = []
        self._sealed: tuple[str, ...] = ()
        self._last = 0

    def read(self, segments: Sequence[Path], data: Sequence[str]) -> TableRecord | None:
        """The table as its files tell it; None when they do not, with the reason as a problem."""
        version = max(self._documents)
        schema = self._schema(version)
        if schema is None:
            return None
        journals = {journal.id for journal in list_journals(self._layout, self._folder)}
        tiles = self._segment_tiles(segments)
        try:
            if self._cold == "delta":
                tiles += self._sealed_tiles(journals)
            else:
                tiles += self._seal_tiles(data)
            chosen = tiling.choose(tiles, self._last, journals)
        except (CorruptionError, FormatTooNewError) as error:
            self._found.problems.append(f"table {self._name!r}: {error}")
            return None
        except tiling.Untileable as error:
            what = f"table {self._name!r}: {error}"
            if self._unreadable:
                what += f"; these cannot be read: {', '.join(self._unreadable)}"
            self._found.problems.append(what)
            return None
        return self._record(chosen, tiles, journals, schema)

    def _schema(self, version: int) -> TableSchema | None:
        path = self._storage.url(schema_key(self._folder, version))
        key = schema_key(self._folder, version, "parquet")
        empty = self._storage.url(key)
        text = self._documents[version]
        try:
            schema = TableSchema.from_toml(text)
            there = self._storage.size(key) is not None
            footer = self._footer(self._fetched(key), empty) if there else None
            if footer is not None and footer.get("document") != text:
                self._found.problems.append(f"{path!r} is not what {empty!r} says of it")
                return None
        except SchemaError as error:
            self._found.problems.append(f"{path!r} is damaged: {error}")
            return None
        except CorruptionError:  # a cache: `verify` says so, and repairs it
            pass
        return schema

    def _fetched(self, key: str) -> Path:
        """An object as a file of this machine."""
        size = self._storage.size(key)
        return self._files.path(Wanted(key, size or 0))

    def _footer(self, path: Path, shown: str) -> Mapping[str, Any]:
        """A file's footer; raises `CorruptionError`."""
        footer = datafile.read_footer(path)
        self._found.lakes.setdefault(str(footer.get("lake")), shown)
        if footer.get("site"):
            self._found.sites.append(str(footer["site"]))
        if footer.get("table") != self._name:
            raise CorruptionError(f"{shown!r} is of table {footer.get('table')!r}")
        return footer

    def _segment_tiles(self, paths: Sequence[Path]) -> list[Tile]:
        tiles = []
        for path in paths:
            try:
                name = SegmentName.parse(path.name)
            except CorruptionError:
                continue
            self._last = max(self._last, name.last)
            try:
                footer = self._footers[path.name] = self._footer(path, str(path))
                linked = path.stat().st_ctime_ns
                tiles.append(
                    Tile(name.first, name.last, False, (path.name,), _covers([footer]), linked)
                )
            except CorruptionError:
                self._unreadable.append(path.name)
        return tiles

    def _seal_tiles(self, keys: Sequence[str]) -> list[Tile]:
        seals: dict[tuple[int, int, str], list[tuple[ColdName, str]]] = defaultdict(list)
        for key in keys:
            file = key.removeprefix(data_prefix(self._folder))
            try:
                name = ColdName.parse(file)
            except CorruptionError:
                continue
            self._last = max(self._last, name.last)
            try:
                footer = self._footer(self._fetched(key), self._storage.url(key))
                self._footers[file] = footer
                seals[name.first, name.last, str(footer.get("seal"))].append((name, file))
            except CorruptionError:
                self._unreadable.append(file)
        tiles = []
        for (first, last, _), files in seals.items():
            footers = [self._footers[file] for _, file in files]
            if is_whole(footers) and all((f["first"], f["last"]) == (first, last) for f in footers):
                names = tuple(sorted(file for _, file in files))
                tiles.append(Tile(first, last, True, names, _covers(footers)))
        return tiles

    def _sealed_tiles(self, journals: set[GenerationId]) -> list[Tile]:
        """All that this site has sealed into a Delta table, as its log tells."""
        sites = {str(footer.get("site")) for footer in self._footers.values()}
        state = logs.read_log(self._storage, self._folder)

        def footer_of(name: str) -> Mapping[str, Any]:
            key = data_prefix(self._folder) + name
            return datafile.read_footer(self._fetched(key))

        sealed = logs.sealed(state, footer_of, sites, journals)
        first = log_prefix(self._folder) + log_version_name(0)
        self._found.lakes.setdefault(sealed.lake, self._storage.url(first))
        if sealed.site is not None:
            self._found.sites.insert(0, sealed.site)
        self._last = max(self._last, sealed.through)
        self._footers |= {name: footer_of(name) for name in sealed.files}
        self._sealed = sealed.files
        covers = _covers([self._footers[name] for name in sealed.files])
        return [sealed.tile(covers)] if sealed.through else []

    def _record(
        self,
        chosen: Sequence[Tile],
        tiles: Sequence[Tile],
        journals: set[GenerationId],
        schema: TableSchema,
    ) -> TableRecord | None:
        covers = frozenset[GenerationId]().union(*(tile.covers for tile in chosen))
        names = [file for tile in chosen for file in tile.files]
        infos = {name: self._measure(name, schema) for name in names}
        if None in infos.values():
            return None
        known = {name: info for name, info in infos.items() if info is not None}
        cold = [f for tile in chosen if tile.cold for f in self._cold_files(tile, known)]
        hot_tiles = [tile for tile in chosen if not tile.cold]
        sealed = max((tile.last for tile in chosen if tile.cold), default=0)
        flushed = frozenset(journals & covers)
        # What they took is in others, so they were merged or sealed: vacuum may have them.
        superseded = [t for t in tiles if not t.cold and t not in chosen and t.covers <= covers]
        garbage = tuple(Garbage(0, 0, self._folder, "segment", t.files[0], 0) for t in superseded)
        names += self._sealed
        used = {*names, *(t.files[0] for t in superseded)}
        self._found.left_out += [self._shown(n) for n in self._footers if n not in used]
        self._found.left_out += [self._shown(n) for n in self._unreadable]
        marks = hot.highest(
            mark for name in names for mark in self._footers[name].get("producers", {}).items()
        )
        # A journal that is left may hold a batch that another writer's segment has.
        sent = {(p, n) for name in names for p, n in self._footers[name].get("sent", ())}
        batches = frozenset(sent if journals - covers else ())
        segments = tuple(self._segment(tile, known) for tile in hot_tiles)
        state = TableState(0, sealed, segments, tuple(cold), flushed)
        return TableRecord(
            0,
            self._name,
            self._folder,
            self._cold,
            False,
            self._last,
            self._documents,
            marks,
            batches,
            garbage,
            state,
        )

    def _measure(self, name: str, schema: TableSchema) -> FileInfo | None:
        """What a file holds; None when its bytes are not those that were published."""
        path, shown = self._path(name), self._shown(name)
        kind = ColdName if "/" in name else SegmentName
        try:
            info = datafile.measure(path, schema)
            with pq.ParquetFile(path) as file:
                fits = file.schema_arrow.equals(schema.arrow)
        except (CorruptionError, *datafile.UNREADABLE) as error:
            raise_refusal(f"cannot read {shown!r}", error)
            self._found.problems.append(f"{shown!r} cannot be read: {error}")
            return None
        if not info.sha256.startswith(kind.parse(name).sha12):
            self._found.problems.append(f"{shown!r} was altered: its sha256 is not in its name")
            return None
        if not fits:
            self._found.problems.append(f"{shown!r} has other columns than the schema document")
            return None
        return info

    def _segment(self, tile: Tile, infos: Mapping[str, FileInfo]) -> Segment:
        (name,) = tile.files
        path = self._path(name)
        written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        twin = hot.duckdb_path(path.parent, name).exists()
        return Segment(tile.first, tile.last, name, infos[name], twin, min(written, self._now))

    def _cold_files(self, tile: Tile, infos: Mapping[str, FileInfo]) -> list[ColdFile]:
        return [
            ColdFile(
                name,
                ColdName.parse(name).day,
                tile.first,
                tile.last,
                int(self._footers[name]["schema_version"]),
                infos[name],
            )
            for name in tile.files
        ]

    def _shown(self, name: str) -> str:
        if "/" in name:
            return self._storage.url(data_prefix(self._folder) + name)
        return str(self._layout.hot(self._folder) / name)

    def _path(self, name: str) -> Path:
        if "/" in name:
            return self._fetched(data_prefix(self._folder) + name)
        return self._layout.hot(self._folder) / name


def _covers(footers: Sequence[Mapping[str, Any]]) -> frozenset[GenerationId]:
    return frozenset(
        GenerationId(str(writer), int(number))
        for footer in footers
        for writer, number in footer.get("covers", ())
    )
