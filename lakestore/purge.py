"""Purge: the cold files that hold chosen events → the same without them.

Order of effects, numbered as their failpoints are:

    purge.1 bytes of the inputs checked    .2 payload files staged without what only these events
    had    .3 outputs staged    .4 rows and ids checked    .5 a payload file put in the root
    .6 an output published    .7 all of them; what comes then is `swap` and `record`
    .8 copies that nothing lists are listed as garbage    .9 caches swept

A job is of one day: what refers to a payload file of the day is of that day too. The commit lists
outputs in the place of inputs on condition that all of these are live, and says in the same breath
which payload files go with them, so whoever finishes it after a crash deletes these too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from lakestore import coldfiles, datafile, quoting
from lakestore.coldfiles import Rows, Written
from lakestore.context import TableContext
from lakestore.engine import sorter
from lakestore.errors import CorruptionError, NotFoundError, StorageError
from lakestore.failpoint import reach
from lakestore.filecache import Wanted
from lakestore.idhash import hash_batch, id_sum
from lakestore.kept import REFERENCE
from lakestore.layout import PayloadName
from lakestore.replacement import Replacement
from lakestore.schema import FILE_ROW
from lakestore.snapshot import ColdFile
from lakestore.thinning import Thinned, thin

_FILE = "filename"


@dataclass(frozen=True)
class Chosen:
    """Which events are to go: those for which an SQL condition holds."""

    condition: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Hit:
    """What of a file's rows is to go."""

    rows: int
    payload: frozenset[str] = frozenset()
    """Payload files that these rows refer to."""


@dataclass(frozen=True)
class Job:
    """Cold files to be written anew in one commit."""

    files: tuple[ColdFile, ...]
    """Those that hold chosen events, and those that refer to the payload files below."""
    payload: tuple[str, ...]
    """Payload files to be written anew."""


@dataclass(frozen=True)
class Erased:
    """What one job did."""

    rows: int
    removed: tuple[str, ...]
    added: tuple[str, ...]
    payload_removed: tuple[str, ...]
    payload_added: tuple[str, ...]
    bytes: int
    """Of the cold and payload files that are to be deleted."""


def choose(
    files: Sequence[ColdFile], hits: Mapping[str, Hit], refers: Mapping[str, Sequence[str]]
) -> Job | None:
    """The next job: of the oldest day that has chosen events; None when there is none. Pure.

    Args:
        files: all that are live.
        hits: what of files is to go, by name.
        refers: the payload files that each file refers to, by name.
    """
    found = [file for file in files if file.name in hits and hits[file.name].rows]
    if not found:
        return None
    day = min(file.day or date.max for file in found)
    of_day = {file.name for file in found if (file.day or date.max) == day}
    payload = sorted({name for file in of_day for name in hits[file].payload})
    beside = {file.name for file in files if set(refers.get(file.name, ())) & set(payload)}
    return Job(tuple(f for f in files if f.name in of_day | beside), tuple(payload))


def matches(table: TableContext, files: Sequence[tuple[int, Path]], chosen: Chosen) -> pa.Table:
    """The chosen rows of Parquet files of a table: file, number, id, time, and reference if any.

    Args:
        files: each with its version of the schema.

    Raises:
        duckdb.Error: a file cannot be read.
    """
    schema = table.schema
    names = [schema.event_id, schema.event_time]
    names += [REFERENCE] if schema.has_references else []
    with table.site.engine.cursor() as cursor:
        found = cursor.sql(
            f"SELECT {_FILE}, {FILE_ROW}, {quoting.identifiers(names)} "
            f"FROM {_relation(table, files)} WHERE {chosen.condition}",
            params=dict(chosen.values) or None,
        ).to_arrow_table()
    typed = [schema.arrow.field(name).with_nullable(True) for name in names]
    return found.cast(pa.schema([*(found.schema.field(i) for i in range(2)), *typed]))


def _relation(table: TableContext, files: Sequence[tuple[int, Path]]) -> str:
    named = [(version, str(path)) for version, path in files]
    return table.lineage.relation(named, numbered=True)


def hits(table: TableContext, files: Sequence[ColdFile], chosen: Chosen) -> dict[str, Hit]:
    """What of cold files is to go, by name.

    Raises:
        ConflictError: another process replaced one meanwhile.
        Others: as `TableContext.cold_path` and `matches`.
    """
    with coldfiles.conflict_if_replaced(table, files):
        return _hits(table, files, chosen) if files else {}


def _hits(table: TableContext, files: Sequence[ColdFile], chosen: Chosen) -> dict[str, Hit]:
    paths = [table.cold_path(file) for file in files]
    names = {str(path): file.name for file, path in zip(files, paths, strict=True)}
    versions = [file.schema_version for file in files]
    found = matches(table, list(zip(versions, paths, strict=True)), chosen)
    result = dict.fromkeys(names.values(), Hit(0))
    for path in pc.unique(found.column(_FILE)).to_pylist():
        rows = found.filter(pc.equal(found.column(_FILE), path))
        result[names[path]] = Hit(rows.num_rows, payload_of(rows))
    return result


def payload_of(rows: pa.Table) -> frozenset[str]:
    """Names of the payload files that rows refer to."""
    if REFERENCE not in rows.column_names:
        return frozenset()
    return frozenset(datafile.files_referred_to(rows.column(REFERENCE)))


def refers(table: TableContext, file: ColdFile) -> tuple[str, ...]:
    """The payload files that a file's rows refer to; one of another engine has to be read."""
    if not table.schema.has_references or file.info.sha256:
        return file.info.payload
    column = datafile.read_columns(table.cold_path(file), [REFERENCE]).column(REFERENCE)
    return tuple(sorted(datafile.files_referred_to(column)))


def purge(table: TableContext, job: Job, chosen: Chosen) -> Erased:
    """Do it; the caller holds `table.compacting`.

    Raises:
        ConflictError: another process replaced one of the files; its result stands.
        CorruptionError: a file is not what was published.
        StorageError: the disk refused; nothing was committed.
    """

    def do(memory_bytes: int) -> Erased:
        with coldfiles.workplace(table, "purge") as folder:
            return _Purge(folder, table, job, chosen, memory_bytes).run()

    with coldfiles.conflict_if_replaced(table, job.files):
        return coldfiles.sorting(f"{len(job.files)} cold files", do)


@dataclass
class _Purge:
    """One job on its way."""

    folder: Path
    table: TableContext
    job: Job
    chosen: Chosen
    memory_bytes: int
    paths: list[Path] = field(init=False, default_factory=list)

    def run(self) -> Erased:
        """All of its steps."""
        table, job = self.table, self.job
        self.paths = [table.cold_path(file) for file in job.files]
        footers = self._footers()
        reach("purge.1")
        gone = matches(table, self._files, self.chosen)
        thinned = self._thin(gone)
        reach("purge.2")
        written = self._write(gone, thinned)
        reach("purge.3")
        self._check(gone, written)
        reach("purge.4")
        for made in thinned:
            self._put(made)
            reach("purge.5")
        files = [coldfiles.named(table, one, 0, 0, part) for part, one in enumerate(written)]
        named = list(zip(files, written, strict=True))
        coldfiles.publish(table, named, self.folder, {}, lambda: reach("purge.6"))
        reach("purge.7")
        came = [made.name for made in thinned]
        replacement = Replacement("purge", job.files, files, footers, job.payload)
        names = [file.name for file in files]
        coldfiles.replace(table, replacement, written, {"purged": names, "purged_payload": came})
        size = sum(file.info.bytes for file in job.files)
        return Erased(
            gone.num_rows,
            tuple(file.name for file in job.files),
            tuple(names),
            job.payload,
            tuple(came),
            size + sum(PayloadName.parse(name).bytes for name in job.payload),
        )

    @property
    def _files(self) -> list[tuple[int, Path]]:
        versions = (file.schema_version for file in self.job.files)
        return list(zip(versions, self.paths, strict=True))

    def _footers(self) -> dict[str, Mapping[str, Any]]:
        """Footers of the inputs, whose bytes are those that were published."""
        footers: dict[str, Mapping[str, Any]] = {}
        for file, path in zip(self.job.files, self.paths, strict=True):
            if not file.info.sha256:  # of another engine
                continue
            if datafile.sha256(path) != file.info.sha256:
                raise CorruptionError(f"{self.table.cold_url(file)!r} is not what was published")
            footers[file.name] = datafile.read_footer(path)
        return footers

    def _thin(self, gone: pa.Table) -> list[Thinned]:
        """Stage payload files without what only the chosen events had."""
        table, made = self.table, []
        facts = {"site": table.site.catalog.site, "purge": uuid4().hex}
        with sorter(self.folder / "spill", self.memory_bytes) as con:
            con.register("gone", gone)
            for name in self.job.payload:
                parsed = PayloadName.parse(name)
                wanted = Wanted(table.payload_key(name), parsed.bytes, parsed.sha12)
                try:
                    path = table.site.files.path(wanted)
                except NotFoundError:
                    continue
                if not path.exists():  # nothing of it is left to be erased
                    continue
                version = int(datafile.read_footer(path)["schema_version"])
                schema = table.lineage.accepts(version).payload_file
                left = self._remaining(con, name)
                one = thin(con, self.folder, name, path, schema, left, facts)
                made += [one] if one is not None else []
        return made

    def _remaining(self, con: duckdb.DuckDBPyConnection, name: str) -> pa.Table:
        """Events that stay and refer to a payload file, and to which row of it."""
        schema = self.table.schema
        keys = quoting.identifiers([schema.event_id, schema.event_time])
        prefix = quoting.literal(f"{name}#")
        return con.sql(
            f"SELECT {keys}, CAST(substr({REFERENCE}, {len(name) + 2}) AS BIGINT) AS holder "
            f"FROM {_relation(self.table, self._files)} ANTI JOIN gone USING ({_FILE}, {FILE_ROW}) "
            f"WHERE starts_with({REFERENCE}, {prefix})"
        ).to_arrow_table()

    def _write(self, gone: pa.Table, thinned: Sequence[Thinned]) -> list[Written]:
        """Stage each input without the chosen rows, its references brought up to date."""
        table = self.table
        moved = {old: new for one in thinned for old, new in one.references.items()}
        relations = {"gone": gone.select([_FILE, FILE_ROW])}
        condition, values = f"ANTI JOIN gone USING ({_FILE}, {FILE_ROW})", {}
        if moved:
            relations["moved"] = pa.table(
                {
                    "lakestore_old": pa.array(list(moved), pa.string()),
                    "lakestore_new": pa.array(list(moved.values()), pa.string()),
                }
            )
            condition += f" LEFT JOIN moved ON {REFERENCE} = lakestore_old"
            values = {REFERENCE: f"coalesce(lakestore_new, {REFERENCE})"}
        footer = table.footer(tier="cold", seal=uuid4().hex, first=0, last=0)
        written: list[Written] = []
        for file, path in zip(self.job.files, self.paths, strict=True):
            rows = Rows(
                [(file.schema_version, path)], condition, relations, numbered=True, values=values
            )
            target = max(file.info.bytes, table.site.settings.cold_file_bytes)
            sorted_rows = coldfiles.by_day(self.folder, table.lineage, rows, self.memory_bytes)
            written += coldfiles.write(self.folder, table.schema, footer, sorted_rows, target)
        return written

    def _check(self, gone: pa.Table, written: Sequence[Written]) -> None:
        """Refuse outputs that do not hold the rows of the inputs but for the chosen ones."""
        table = self.table
        ids = [
            table.file_ids.of(file.name, path)
            for file, path in zip(self.job.files, self.paths, strict=True)
        ]
        erased = hash_batch(gone, table.schema)
        expected = sum(map(len, ids)) - gone.num_rows
        found = sum(one.info.rows for one in written)
        after = sum(id_sum(one.hashes) for one in written) + id_sum(erased)
        if found != expected or (after - sum(map(id_sum, ids))) % 2**64:
            raise CorruptionError(
                f"purging {gone.num_rows:,} rows of {len(ids)} cold files gave {found:,} rows of "
                f"{expected:,}; nothing was committed"
            )

    def _put(self, one: Thinned) -> None:
        """Put a payload file in the root, before the rows that refer to it."""
        storage, key = self.table.site.storage, self.table.payload_key(one.name)
        size = one.path.stat().st_size
        if not storage.put_new(key, one.path) and storage.size(key) != size:
            raise StorageError(f"{key!r} exists and has another size; nothing was committed")
