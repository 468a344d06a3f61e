"""What the files of one table say of it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lakestore import datafile, hot, tiling
from lakestore.catalog.records import Elsewhere, Garbage, TableRecord
from lakestore.cold.keeper import records_of
from lakestore.errors import CorruptionError, FormatTooNewError
from lakestore.layout import (
    ColdName,
    PayloadName,
    SegmentName,
    data_prefix,
    log_prefix,
    log_version_name,
    payload_key,
    split_folder,
)
from lakestore.lineage import Lineage
from lakestore.rebuild import logs
from lakestore.rebuild.documents import Documents
from lakestore.rebuild.files import TableFiles
from lakestore.rebuild.repeats import Repeats
from lakestore.rebuild.seals import Choice, Seals, choose
from lakestore.rebuild.sources import Found, Shared, Sources
from lakestore.replacement import Record, gone, of_use
from lakestore.schema import TableSchema
from lakestore.snapshot import ColdFile, FileInfo, GenerationId, Segment, TableState
from lakestore.tiling import Tile
from lakestore.verify.journals import JournalFile, list_journals, schema_version_of
from lakestore.verify.tiers import is_whole


class TableReader:
    """Reads one table."""

    def __init__(
        self,
        sources: Sources,
        shared: Shared | None,
        folder: str,
        documents: Mapping[int, str],
        keys: Sequence[str],
        found: Found,
    ) -> None:
        self._sources = sources
        self._storage = sources.storage
        self._layout = sources.layout
        self._folder = folder
        self._name = split_folder(folder)[0]
        self._files = TableFiles(sources, found, folder)
        self._documents = Documents(sources, found, folder, documents, self._files.footer)
        self._keys = keys
        self._data = [key for key in keys if key.startswith(data_prefix(folder))]
        delta = log_prefix(folder) + log_version_name(0) in self._data
        self._cold = "delta" if delta else "parquet"
        self._own = shared.site if shared is not None else None
        listed = shared.listed if shared is not None else None
        self._listed = listed.get(folder, ()) if listed is not None else None
        self._found = found
        self._footers: dict[str, Mapping[str, Any]] = {}
        self._unreadable: list[str] = []
        self._sealed: tuple[str, ...] = ()
        self._gone: Mapping[str, Mapping[str, Any]] = {}
        self._unkept: Record | None = None
        self._purged: set[str] = set()
        self._compacted: list[str] = []
        self._elsewhere: tuple[Elsewhere, ...] = ()
        self._last = 0
        self._replaced_through = 0

    def read(self) -> TableRecord | None:
        """The table as its files tell it; None when they do not, with the reason as a problem."""
        known = self._documents.schemas()
        if known is None:
            return None
        files = list_journals(self._layout, self._folder)
        journals = {journal.id for journal in files}
        tiles = self._segment_tiles(sorted(self._layout.hot(self._folder).glob("*.parquet")))
        try:
            self._replaced()
            if self._cold == "delta":
                tiles += self._sealed_tiles(journals)
                choice = Choice(tiling.choose(tiles, self._last, journals), {})
            else:
                seals = self._seals()
                choice = choose(
                    seals,
                    self._own or "",
                    self._listed,
                    lambda cold: tiling.choose([*tiles, *cold], self._last, journals),
                    Repeats(known[max(known)].stored, self._files.path),
                    self._compacted,
                )
            lineage = self._lineage(known, files)
        except (CorruptionError, FormatTooNewError) as error:
            self._found.problems.append(f"table {self._name!r}: {error}")
            return None
        except tiling.Untileable as error:
            what = f"table {self._name!r}: {error}"
            if self._unreadable:
                what += f"; these cannot be read: {', '.join(self._unreadable)}"
            self._found.problems.append(what)
            return None
        return self._record(choice, tiles, journals, lineage)

    def _lineage(
        self, schemas: Mapping[int, TableSchema], journals: Sequence[JournalFile]
    ) -> Lineage:
        """The committed versions of the schema; raises `CorruptionError`."""
        used = {int(f["schema_version"]) for f in self._footers.values() if "schema_version" in f}
        used |= {v for journal in journals if (v := schema_version_of(journal.path)) is not None}
        listed = None
        if self._cold == "delta":
            listed = logs.read_log(self._storage, self._folder).schema_versions
        return self._documents.lineage(schemas, used, listed)

    def _segment_tiles(self, paths: Sequence[Path]) -> list[Tile]:
        tiles = []
        for path in paths:
            try:
                name = SegmentName.parse(path.name)
            except CorruptionError:
                continue
            self._last = max(self._last, name.last)
            try:
                footer = self._footers[path.name] = self._files.footer_of(path.name)
                if self._own is not None and footer.get("site") != self._own:
                    raise CorruptionError(f"{str(path)!r} is of site {footer.get('site')}")
                linked = path.stat().st_ctime_ns
                tiles.append(
                    Tile(name.first, name.last, False, (path.name,), _covers([footer]), linked)
                )
            except CorruptionError:
                self._unreadable.append(path.name)
        return tiles

    def _replaced(self) -> None:
        """Find the files that took the place of others, and these; raises `CorruptionError`."""
        records = records_of(self._storage, self._folder, self._keys)
        self._gone = gone(records)
        self._replaced_through = max((record.version for record in records), default=0)
        self._purged = {name for record in records for name in record.payload}
        if self._cold == "delta":
            return
        there = {key.removeprefix(data_prefix(self._folder)) for key in self._data}
        for name in sorted({n for record in records for n in record.added} - self._gone.keys()):
            if self._is_others(name):
                continue
            if name not in there:
                raise CorruptionError(f"{self._files.shown(name)!r} is gone, which a record names")
            if not ColdName.parse(name).first:  # else it is of a seal, and came back
                self._footers[name] = self._files.footer_of(name)
                self._compacted.append(name)

    def _is_others(self, name: str) -> bool:
        """Whether a cold file is for another site to list, in a catalog that both share."""
        return self._listed is not None and ColdName.parse(name).site != self._own

    def _seals(self) -> dict[str, Seals]:
        """The seals of each site; where a catalog lists what others have, of this one alone."""
        found: dict[str, Seals] = defaultdict(Seals)
        parts: dict[tuple[str, int, int, str], list[str]] = defaultdict(list)
        present = [key.removeprefix(data_prefix(self._folder)) for key in self._data]
        for file in sorted({*present, *self._gone}):
            try:
                name = ColdName.parse(file)
            except CorruptionError:
                continue
            if not name.first or self._is_others(file):
                continue
            site = name.site if self._own is not None else ""  # a file of SQLite knows but one
            if site == (self._own or ""):
                self._last = max(self._last, name.last)
            found[site].starts.add(name.first)
            try:
                footer = self._gone.get(file) or self._files.footer_of(file)
                self._footers[file] = footer
                parts[site, name.first, name.last, str(footer.get("seal"))].append(file)
            except CorruptionError:
                self._unreadable.append(file)
        for (site, first, last, _), files in parts.items():
            footers = [self._footers[file] for file in files]
            if is_whole(footers) and all((f["first"], f["last"]) == (first, last) for f in footers):
                left = tuple(sorted(file for file in files if file not in self._gone))
                rows = sum(pq.read_metadata(self._files.path(file)).num_rows for file in left)
                went = tuple(sorted(set(files) - set(left)))
                tile = Tile(first, last, True, left, _covers(footers), rows=rows, gone=went)
                found[site].whole.append(tile)
        return found

    def _sealed_tiles(self, journals: set[GenerationId]) -> list[Tile]:
        """All that this site has sealed into a Delta table, as its log tells."""
        sites = {str(footer.get("site")) for footer in self._footers.values()}
        if self._own is not None:
            sites.add(self._own)
        state = logs.read_log(self._storage, self._folder)

        def footer_of(name: str) -> Mapping[str, Any]:
            return datafile.read_footer(self._files.path(name))

        sealed = logs.sealed(state, footer_of, sites, journals)
        first = log_prefix(self._folder) + log_version_name(0)
        self._found.lakes.setdefault(sealed.lake, self._storage.url(first))
        if sealed.site is not None:
            self._found.sites.insert(0, sealed.site)
        if self._own is not None:
            self._elsewhere = tuple(Elsewhere(s, n, {}) for s, n in sealed.elsewhere.items())
        self._last = max(self._last, sealed.through)
        self._footers |= {name: footer_of(name) for name in sealed.files}
        # What has a record, unless it came back, and what the log alone says of files still there.
        self._gone = {name: f for name, f in self._gone.items() if name not in state.adds}
        there = {key.removeprefix(data_prefix(self._folder)) for key in self._data}
        removed = {
            name: footer_of(name)
            for name in sorted(state.removed.keys() & there - self._gone.keys())
            if _site_of(name) == sealed.site
        }
        if removed:
            kept = {name: of_use(footer) for name, footer in removed.items()}
            self._unkept = Record("compact", state.version, kept, ())
        went = {n: f for n, f in self._gone.items() if f.get("site") == sealed.site} | removed
        self._footers |= went
        self._sealed = (*sealed.files, *went)
        covers = _covers([self._footers[name] for name in self._sealed])
        return [sealed.tile(covers)] if sealed.through else []

    def _record(
        self,
        choice: Choice,
        segments: Sequence[Tile],
        journals: set[GenerationId],
        lineage: Lineage,
    ) -> TableRecord | None:
        cold_tiles = [tile for tile in choice.own if tile.cold]
        hot_tiles = [tile for tile in choice.own if not tile.cold]
        covers = frozenset[GenerationId]().union(*(tile.covers for tile in choice.own))
        own = [*_names(choice.own), *_gone(choice.own), *self._sealed]
        elsewhere = [*cold_tiles, *(tile for tiles in choice.others.values() for tile in tiles)]
        names = [*_names([*hot_tiles, *elsewhere]), *self._compacted]
        infos = {n: self._files.measure(n, self._stored(n, lineage)) for n in names}
        known = {name: info for name, info in infos.items() if info is not None}
        if len(known) < len(infos):
            return None
        # What they took is in others, so they were merged or sealed: vacuum may have them.
        left = [t for t in segments if not t.cold and t not in hot_tiles]
        garbage = tuple(
            Garbage(0, 0, self._folder, "segment", t.files[0], 0)
            for t in left
            if t.covers <= covers
        )
        garbage += self._sealed_payload(known)
        garbage += self._gone_files()
        garbage += self._gone_payload([*known.values()])
        used = {*own, *infos, *self._gone, *(item.name for item in garbage)}
        self._found.left_out += [self._files.shown(n) for n in self._footers if n not in used]
        self._found.left_out += [self._files.shown(n) for n in self._unreadable]
        # A journal that is left may hold a batch that another writer's segment has.
        unflushed = bool(journals - covers)
        sent = {(p, n) for name in own for p, n in self._footers[name].get("sent", ())}
        state = TableState(
            0,
            max((tile.last for tile in cold_tiles), default=0),
            tuple(self._segment(tile, known) for tile in hot_tiles),
            tuple(self._cold_file(n, known[n]) for n in [*_names(elsewhere), *self._compacted]),
            frozenset(journals & covers),
        )
        return TableRecord(
            0,
            self._name,
            self._folder,
            self._cold,
            False,
            self._last,
            {version: self._documents.texts[version] for version in lineage.versions},
            self._marks(own),
            frozenset(sent if unflushed else ()),
            garbage,
            state,
            unsealed=unflushed or any(segment.info.rows for segment in state.segments),
            elsewhere=self._elsewhere
            + tuple(
                Elsewhere(
                    site,
                    max((t.last for t in tiles), default=0),
                    self._marks([*_names(tiles), *_gone(tiles)]),
                )
                for site, tiles in choice.others.items()
            ),
            replaced_through=self._replaced_through,
            unkept=self._unkept,
        )

    def _sealed_payload(self, infos: Mapping[str, FileInfo]) -> tuple[Garbage, ...]:
        """Payload files that lie here still, and that only rows refer to which are sealed."""
        folder = self._layout.payload(self._folder)
        here = {path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet")}
        hot_ones = {p for name, info in infos.items() if "/" not in name for p in info.payload}
        cold = {
            p
            for name, footer in self._footers.items()
            if "/" in name
            for p in footer.get("payload", ())
        }
        names = sorted(here & (cold | self._purged) - hot_ones)
        return tuple(Garbage(0, 0, self._folder, "payload", name, 0) for name in names)

    def _marks(self, names: Sequence[str]) -> dict[str, int]:
        """The highest number of each producer that files hold."""
        footers = [self._footers[name] for name in names]
        return hot.highest(m for footer in footers for m in footer.get("producers", {}).items())

    def _stored(self, name: str, lineage: Lineage) -> TableSchema:
        return lineage.stored_in(int(self._footers[name]["schema_version"]))

    def _segment(self, tile: Tile, infos: Mapping[str, FileInfo]) -> Segment:
        (name,) = tile.files
        path = self._files.path(name)
        written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        twin = hot.duckdb_path(path.parent, name).exists()
        return Segment(
            tile.first,
            tile.last,
            name,
            infos[name],
            twin,
            min(written, self._sources.now),
            int(self._footers[name]["schema_version"]),
        )

    def _cold_file(self, name: str, info: FileInfo) -> ColdFile:
        parsed = ColdName.parse(name)
        version = int(self._footers[name]["schema_version"])
        return ColdFile(name, parsed.day, parsed.first, parsed.last, version, info)

    def _gone_files(self) -> tuple[Garbage, ...]:
        """Cold files of this site that others took the place of, and that are there still.

        Payload files, too, that went with them because they held what was purged.
        """
        files = [
            Garbage(0, 0, self._folder, "cold", name, 0)
            for name in sorted(self._gone)
            if data_prefix(self._folder) + name in self._data
            and (self._own is None or ColdName.parse(name).site == self._own)
        ]
        there = {key.removeprefix(payload_key(self._folder, "")) for key in self._keys}
        payload = [
            Garbage(0, 0, self._folder, "purged_payload", name, 0)
            for name in sorted(self._purged & there)
            if self._own is None or PayloadName.parse(name).site == self._own
        ]
        return (*files, *payload)

    def _gone_payload(self, infos: Sequence[FileInfo]) -> tuple[Garbage, ...]:
        """Payload files in the root of this site, to which only rows of such files refer."""
        gone = {p for name in self._gone for p in self._gone[name].get("payload", ())}
        live = {p for info in infos for p in info.payload}
        live |= {
            p
            for name in self._sealed
            if name not in self._gone
            for p in self._footers[name].get("payload", ())
        }
        return tuple(
            Garbage(0, 0, self._folder, "cold_payload", name, 0)
            for name in sorted(gone - live - self._purged)
            if payload_key(self._folder, name) in self._keys
            and (self._own is None or PayloadName.parse(name).site == self._own)
        )


def _site_of(name: str) -> str | None:
    """The site that made a cold file; None of one that another engine named."""
    try:
        return ColdName.parse(name).site
    except CorruptionError:
        return None


def _names(tiles: Sequence[Tile]) -> list[str]:
    return [name for tile in tiles for name in tile.files]


def _gone(tiles: Sequence[Tile]) -> list[str]:
    return [name for tile in tiles for name in tile.gone]


def _covers(footers: Sequence[Mapping[str, Any]]) -> frozenset[GenerationId]:
    return frozenset(
        GenerationId(str(writer), int(number))
        for footer in footers
        for writer, number in footer.get("covers", ())
    )
