"""Verify a lake: read every byte that a promise rests on, and say which promises do not hold.

The catalog is read anew, and only says what to hold the files against. Others may write
meanwhile: a file that is superseded while it is read is no problem, and what is published later
is not looked at.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import duckdb

from lakestore import hot
from lakestore.buffer import Buffer
from lakestore.catalog import Catalog
from lakestore.catalog.records import Inventory, TableRecord
from lakestore.cold.keeper import records_of
from lakestore.context import TableContext
from lakestore.errors import (
    CorruptionError,
    FormatTooNewError,
    NotFoundError,
    SchemaError,
    StorageError,
)
from lakestore.fileids import FileIds
from lakestore.lakefile import lake_text
from lakestore.layout import (
    LAKE_FILE,
    SITE_FILE,
    VIEWS_FILE,
    ColdName,
    SegmentName,
    data_prefix,
    record_key,
    schema_key,
)
from lakestore.lineage import Lineage
from lakestore.opensite import SiteContext
from lakestore.payloadview import view_name
from lakestore.replacement import Record
from lakestore.replacement import gone as replaced_files
from lakestore.schema import TableSchema
from lakestore.snapshot import GenerationId
from lakestore.storage.local import open_to_read, raise_refusal
from lakestore.verify.caches import check_ids, check_twin, check_views, reader
from lakestore.verify.datafiles import Checked, DataFileCheck
from lakestore.verify.documents import check_documents
from lakestore.verify.duplicates import check_duplicates
from lakestore.verify.journals import JournalCheck, JournalFile, check_flushed, list_journals
from lakestore.verify.leftovers import Disk, check_garbage, check_leftovers, lost_by_catalog
from lakestore.verify.logs import (
    check_versions,
    keeps_all_seals,
    log_problem,
    only,
    own_files,
    with_log,
)
from lakestore.verify.objects import Objects, objects_of
from lakestore.verify.partials import PartialCheck
from lakestore.verify.payloads import check_payload, published_payload
from lakestore.verify.report import REBUILD, RESTORE, Problem, Report, by_severity
from lakestore.verify.tiers import check_tiers, covered
from lakestore.writers import living


def verify(site: SiteContext, tables: Sequence[TableContext]) -> Report:
    """Everything that is wrong with a lake.

    Args:
        tables: those open in this process, for what only it knows of its journals.
    """
    buffers = {table.entry.id: table.buffer for table in tables if table.buffer is not None}
    with objects_of(site) as objects:
        return _Verification(site, objects, buffers).run()


@dataclass
class _Verification:
    site: SiteContext
    objects: Objects
    buffers: Mapping[int, Buffer]
    problems: list[Problem] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)
    """Folders of tables whose logs cannot be read: what is cold of them is not known."""
    files: int = 0
    rows: int = 0

    def run(self) -> Report:
        self.problems += self._lake_file()
        try:
            catalog = Catalog(self.site.catalog.database.again(), self.site.clock, write=False)
        except (CorruptionError, NotFoundError) as error:
            self._catalog_problem(str(error))
            return self._report()
        try:
            self._with(catalog)
        except CorruptionError as error:
            self._catalog_problem(str(error))
        finally:
            catalog.close()
        return self._report()

    def _with(self, catalog: Catalog) -> None:
        for what in catalog.integrity():
            self._catalog_problem(what)
        if (catalog.lake, catalog.site) != (self.site.catalog.lake, self.site.catalog.site):
            self._catalog_problem("it is of another lake or site")
        layout = self.site.layout
        disk = Disk(layout, self.objects)
        alive = living(layout)
        folders = [p.name for p in sorted((layout.local / "journal").glob("*"))]
        journals = {folder: list_journals(layout, folder) for folder in folders}
        inventory = self._with_logs(_settled(catalog), disk.keys)
        leftovers = list(
            check_leftovers(
                disk,
                inventory,
                alive,
                self.site.catalog.site,
                self.unread,
                shared=self.site.catalog.database.site is not None,
            )
        )
        taken: set[GenerationId] = set()
        with reader() as con:
            for record in inventory.tables:
                if not record.dropped:
                    taken |= self._table(con, record, journals.pop(record.folder, []), alive)
                elif record.garbage:  # else vacuum has deleted it all
                    journals.pop(record.folder, None)
            unflushed = {j.id for js in map(self._journals_of, inventory.tables) for j in js}
            self.problems += lost_by_catalog(self.objects, leftovers, unflushed, taken)
            self.problems += _strays(journals)
            expected = self._views(inventory)
            path = self.objects.fetch(VIEWS_FILE)
            follows = any(record.cold == "delta" for record in inventory.tables)
            views = check_views(con, path, inventory.version, expected, follows=follows)
        newer = self._with_logs(catalog.inventory())
        if views is not None and newer.version == inventory.version and not self.unread:
            self.problems.append(views)
        self.problems = _still_true(
            self.problems,
            inventory,
            newer,
            lambda record: self._published(record) + self._published_payload(record),
        )

    def _with_logs(self, inventory: Inventory, keys: Sequence[str] | None = None) -> Inventory:
        """The inventory, with what logs list of the cold tier; with `keys`, problems are noted."""
        tables = []
        for record in inventory.tables:
            try:
                if not record.dropped:
                    record = with_log(self.site, record, _lineage(record).schema.stored)
                if record.cold == "delta" and not record.dropped:
                    self.problems += check_versions(self.objects, record, keys or ())
            except (SchemaError, ValueError):  # `_table` says so
                pass
            except (CorruptionError, FormatTooNewError) as error:
                if record.cold == "parquet":
                    raise
                self.unread.add(record.folder)
                if keys is not None:
                    self.problems.append(log_problem(self.objects, record, error))
            tables.append(record)
        return Inventory(inventory.version, tuple(tables))

    def _table(
        self,
        con: duckdb.DuckDBPyConnection,
        record: TableRecord,
        journals: Sequence[JournalFile],
        alive: set[str],
    ) -> set[GenerationId]:
        """Check one table; returns the journal generations that its files hold."""
        site = self.site
        try:
            lineage = _lineage(record)
            schema = lineage.schema.stored
        except (SchemaError, ValueError) as error:
            self._catalog_problem(f"the schema of table {record.name!r} is none: {error}")
            return set()
        self.problems += check_documents(self.objects, site.catalog.lake, record)
        for problem in check_payload(self.objects, site.layout, record):
            self.files += 1
            self.problems += [problem] if problem is not None else []
        checked = self._data_files(con, record, lineage)
        own = own_files(record, site.catalog.site)  # what others put there is theirs to account for
        footers = {
            name: one.footer
            for name, (one, _) in checked.items()
            if one.footer is not None and name in own
        }
        whole = len(footers) == len(own)
        gone = self._gone(record)
        if record.cold == "delta":  # others may have taken files away
            whole = whole and keeps_all_seals(record, footers, gone, site.catalog.site)
        mine = record if record.cold == "delta" else only(record, own)
        self.problems += check_tiers(mine, self._catalog_path, footers, gone, whole=whole)
        fetched = self.objects.fetched
        groups = [checked]
        if len(own) < len(checked):  # a hot row that others have sealed is left out by the seal
            cold = {file.name for file in record.state.cold}
            groups = [{n: checked[n] for n in checked if n in some} for some in (own, cold)]
        doubled = [
            problem
            for group in groups
            for problem in check_duplicates(record.name, schema, list(group.values()), fetched)
        ]
        self.problems += dict.fromkeys(doubled)
        self.problems += check_garbage(record, site.layout, self.objects)
        took = covered({**gone, **footers})
        if whole:
            self.problems += check_flushed(
                record.name, self._catalog_path, journals, record.state.flushed, took
            )
        check = JournalCheck(site.catalog.lake, record.name, lineage, self.buffers.get(record.id))
        for journal in journals:
            if journal.id not in record.state.flushed:
                read = check.check(journal, writing=journal.id.writer in alive)
                self.files, self.rows = self.files + 1, self.rows + read.rows
                self.problems += [read.problem] if read.problem is not None else []
        return set(took)

    def _gone(self, record: TableRecord) -> Mapping[str, Mapping[str, Any]]:
        """Footers of this site's cold files that others took the place of; damage is noted."""
        # The catalog first: from there a record goes to the root, and never back.
        pending = self.site.catalog.records(record.id).values()
        records = [Record.from_json(text, "a record in it") for text in pending]
        storage, folder = self.site.storage, record.folder
        for key in sorted(storage.list(record_key(folder))):
            try:
                records += records_of(storage, folder, [key])
            except CorruptionError as error:
                path = self.objects.path(key)
                self.problems.append(
                    Problem("record", "damage", record.name, path, str(error), RESTORE)
                )
        live = {file.name for file in record.state.cold}  # what is replaced since does not matter
        own = self.site.catalog.site
        went = replaced_files(records).items()
        return {n: f for n, f in went if f.get("site") == own and n not in live}

    def _data_files(
        self, con: duckdb.DuckDBPyConnection, record: TableRecord, lineage: Lineage
    ) -> dict[str, tuple[Checked, date | None]]:
        site, folder = self.site, self.site.layout.hot(record.folder)
        checks = {
            version: DataFileCheck(record.name, schema.stored, in_log=record.cold == "delta")
            for version, schema in lineage.versions.items()
        }
        says = {"format": 1, "lake": site.catalog.lake, "table": record.name}
        ids_folder = site.layout.ids(record.folder)
        ids = FileIds(ids_folder, lineage.schema.stored)
        partials = PartialCheck(con, site, self.objects, record, lineage)
        checked: dict[str, tuple[Checked, date | None]] = {}
        for segment in record.state.hot:
            path = folder / segment.name
            hot_says = says | {"tier": "hot", "site": site.catalog.site}
            hot_says["schema_version"] = segment.schema_version
            stored = lineage.stored_in(segment.schema_version)
            check = checks[segment.schema_version]
            one = check.check(path, segment.info, _sha12(SegmentName, segment.name), hot_says, None)
            checked[segment.name] = (one, None)
            if segment.has_duckdb and not one.problems:
                twin = hot.duckdb_path(folder, segment.name)
                problem = check_twin(con, record.name, stored, path, twin)
                one.problems += [problem] if problem is not None else []
            if not one.problems:
                one.problems += partials.check(segment, path)
        for file in record.state.cold:
            path = self.objects.fetch(data_prefix(record.folder) + file.name)
            cold_says = says | {
                "tier": "cold",
                "first": file.first,
                "last": file.last,
                "schema_version": file.schema_version,
            }
            sha12 = _sha12(ColdName, file.name)
            if record.cold == "delta" and not sha12:  # of another engine
                one = checks[lineage.newest].check_foreign(path, file.info)
            else:
                lineage.accepts(file.schema_version)
                check = checks[file.schema_version]
                one = check.check(path, file.info, sha12, cold_says, file.day)
            checked[file.name] = (one, file.day)
            if not one.problems:
                problem = check_ids(record.name, ids, ids_folder, file.name, one.hashes)
                one.problems += [problem] if problem is not None else []
                one.problems += partials.check(file, path)
            self.objects.let_go(path)
        for one, _ in checked.values():
            self.problems += one.problems
            self.files, self.rows = self.files + 1, self.rows + len(one.hashes)
        return checked

    def _journals_of(self, record: TableRecord) -> list[JournalFile]:
        return list_journals(self.site.layout, record.folder)

    def _published(self, record: TableRecord) -> list[str]:
        """Paths of a table's files, as its view lists them."""
        storage, state = self.site.storage, record.state
        keys = [schema_key(record.folder, max(record.schemas, default=1), "parquet")]
        keys += [data_prefix(record.folder) + file.name for file in state.cold]
        urls = [storage.url(key) for key in keys]
        if storage.remote:  # shells are shown what they can open
            return urls
        folder = self.site.layout.hot(record.folder)
        return urls + [str(folder / s.name) for s in state.hot]

    def _published_payload(self, record: TableRecord) -> list[str]:
        return published_payload(self.site.storage, self.site.layout, record)

    def _views(self, inventory: Inventory) -> dict[str, list[str]]:
        """The views of `lake.duckdb`, and the paths that each lists."""
        records = [record for record in inventory.tables if not record.dropped]
        payload = {view_name(r.name): self._published_payload(r) for r in records}
        views = {r.name: self._published(r) for r in records}
        names = {name.casefold() for name in views}
        views |= {n: paths for n, paths in payload.items() if paths and n.casefold() not in names}
        return views

    @property
    def _catalog_path(self) -> Path:
        """The catalog's file; of one that sites share, the file that says so."""
        layout = self.site.layout
        return layout.catalog if layout.catalog.exists() else layout.local / SITE_FILE

    def _catalog_problem(self, what: str) -> None:
        path = self._catalog_path
        self.problems.append(Problem("catalog", "damage", None, path, what, REBUILD))

    def _report(self) -> Report:
        shown = self.objects.shown
        problems = [replace(p, file=shown(Path(p.file))) for p in self.problems]
        return Report(self.site.storage.root, by_severity(problems), self.files, self.rows)

    def _lake_file(self) -> list[Problem]:
        path, lake = self.objects.fetch(LAKE_FILE), self.site.catalog.lake
        try:
            with open_to_read(path) as file:
                found = file.read()
            if found == lake_text(lake).encode():
                return []
            what = f"it holds {found[:80]!r}, and the lake is {lake}"
        except OSError as error:
            raise_refusal(f"cannot read {str(path)!r}", error)
            what = f"it cannot be read: {error}"
        return [Problem("lake", "damage", None, path, what, RESTORE)]


def _lineage(record: TableRecord) -> Lineage:
    """The versions of a table's schema; raises `SchemaError` and `ValueError` for what is none."""
    return Lineage({n: TableSchema.from_toml(t, record.name) for n, t in record.schemas.items()})


def _settled(catalog: Catalog) -> Inventory:
    try:
        return catalog.inventory(settled=True)
    except StorageError:  # a file system that is read-only: nobody commits
        return catalog.inventory()


def _sha12(kind: type[SegmentName] | type[ColdName], name: str) -> str:
    """What a name says of the bytes; nothing when it is no name, which is a problem by itself."""
    try:
        return kind.parse(name).sha12
    except CorruptionError:
        return ""


def _strays(journals: Mapping[str, Sequence[JournalFile]]) -> list[Problem]:
    """Journals of folders that the catalog does not know."""
    what = "the catalog knows no table of this folder"
    return [
        Problem("journal", "damage", None, journal.path, what, REBUILD)
        for found in journals.values()
        for journal in found
    ]


def _still_true(
    problems: list[Problem],
    inventory: Inventory,
    newer: Inventory,
    published: Callable[[TableRecord], list[str]],
) -> list[Problem]:
    """The problems, but for those of files that were superseded meanwhile."""
    if newer.version == inventory.version:
        return problems
    now = {r.id: set(published(r)) for r in newer.tables if not r.dropped}
    gone: set[str] = set()
    for record in inventory.tables:
        gone |= set(published(record)) - now.get(record.id, set())
    return [
        p
        for p in problems
        if str(p.file) not in gone and str(p.file).replace(".duckdb", ".parquet") not in gone
    ]
