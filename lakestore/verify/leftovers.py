"""Verify that nothing lies about that nothing names: what crashes leave, and what was forgotten."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lakestore import datafile, retain
from lakestore.catalog.records import COLD_KINDS, COLD_PAYLOAD_KINDS, Inventory, TableRecord
from lakestore.errors import CorruptionError, NotFoundError
from lakestore.layout import (
    ColdName,
    PartialName,
    PayloadName,
    SegmentName,
    SiteLayout,
    data_prefix,
    ids_name,
    is_record_name,
    journal_name,
    log_prefix,
    parse_schema_name,
    payload_key,
    record_key,
    rollups_prefix,
    tombstone_key,
)
from lakestore.payloadview import payload_names
from lakestore.snapshot import GenerationId
from lakestore.verify.objects import Objects
from lakestore.verify.report import MOVE, REBUILD, Problem

_TOMBSTONE = "move it away if the table is to stay, or a rebuild would leave the table out"


class Disk:
    """Names of the lake's files, listed before the catalog is read: what is published later
    cannot be among them."""

    def __init__(self, layout: SiteLayout, objects: Objects) -> None:
        self.layout = layout
        self.objects = objects
        self.keys = list(objects.storage.list("tables/"))
        self.hot = _files(layout.local / "hot")
        self.payload = _files(layout.local / "payload")
        self.ids = _files(layout.local / "ids")
        self.rollups = _files(layout.local / "rollups")
        self.staging = _files(layout.local / "staging")


def check_leftovers(
    disk: Disk,
    inventory: Inventory,
    living: set[str],
    site: str,
    unread: set[str],
    *,
    shared: bool,
) -> Iterator[Problem]:
    """Files that neither the catalog nor a living writer has any use for.

    Args:
        inventory: read after the disk was listed, and after any commit under way ended.
        living: writers that live.
        site: this one, whose files are for it to judge.
        unread: folders of tables whose cold files are not known.
        shared: other sites put files there too that the catalog lists, and delete them.
    """
    records = {record.folder: record for record in inventory.tables}
    for key in disk.keys:
        folder, _, rest = key.removeprefix("tables/").partition("/")
        if folder in unread:
            continue
        record = records.get(folder)
        if record is not None and (shared or record.cold == "delta") and _is_of_other(key, site):
            continue
        if record is None or not (shared and record.dropped):
            yield from _key_problem(disk.objects, record, folder, key, rest, living)
    for path in disk.hot:
        yield from _hot_problem(disk.layout, records.get(path.parent.name), path)
    for path in disk.payload:
        yield from _payload_problem(disk.layout, records, path)
    for path in disk.ids:
        record = records.get(path.parent.name)
        if path.parent.name in unread or (record is not None and record.dropped):
            continue
        names = {ids_name(name) for name in _cold_names(record)} if record is not None else set()
        if path.name not in names and path.exists():
            yield _leftover("orphan", record, path, "it caches the ids of no listed file")
    for path in disk.rollups:
        record = records.get(path.parent.name)
        if path.parent.name in unread or (record is not None and record.dropped):
            continue
        if not _is_kept(record, path.name, living) and path.exists():
            yield _leftover("orphan", record, path, "it is the partial of no listed file")
    for path in disk.staging:
        writer = path.relative_to(disk.layout.local / "staging").parts[0]
        if writer not in living and path.exists():
            what = "a writer that died had staged it"
            yield Problem(
                "staging", "leftover", None, path, what, "the next open to write deletes it"
            )


def _is_kept(record: TableRecord | None, name: str, living: set[str]) -> bool:
    """Whether a file among this site's partials is one of a listed file, or is being written."""
    if record is None or name.startswith("."):
        return record is not None and bool(living)
    try:
        file = PartialName.parse(name).file
    except CorruptionError:
        return False
    listed = [s.name for s in record.state.segments] + [g.name for g in record.garbage]
    listed += [name.replace("/", "-") for name in _cold_names(record)]
    return file in listed


def _cold_names(record: TableRecord) -> set[str]:
    """Cold files that are listed, or that wait for vacuum here or at another site."""
    waiting = {item.name for item in record.garbage if item.kind in COLD_KINDS}
    return waiting | record.replaced | {file.name for file in record.state.cold}


def _is_of_seals_to_come(name: ColdName, record: TableRecord, living: set[str]) -> bool:
    """Whether a living writer may be about to list a cold file: of a seal, or a compaction."""
    return bool(living) and not 0 < name.first <= record.state.sealed_through


def _is_of_other(key: str, site: str) -> bool:
    """Whether a key is that of another site's cold file, of its partial, or of its payload file."""
    name = "/".join(key.split("/")[-2:])
    try:
        if key.split("/")[2] == "_payload":
            return PayloadName.parse(name).site != site
        if key.split("/")[2] == "_rollups":
            name = PartialName.parse(name).file
        return ColdName.parse(name).site != site
    except CorruptionError:
        return False


def _key_problem(
    objects: Objects,
    record: TableRecord | None,
    folder: str,
    key: str,
    rest: str,
    living: set[str],
) -> Iterator[Problem]:
    path = objects.path(key)

    def exists() -> bool:  # it may be superseded and deleted by now
        return objects.exists(key)

    if record is not None and record.dropped and exists():
        yield from _dropped_problem(objects, record, folder, key)
        return
    if record is not None and key.startswith(data_prefix(folder)):
        name = key.removeprefix(data_prefix(folder))
        if name in _cold_names(record):
            return
        try:
            parsed = ColdName.parse(name)
        except CorruptionError as error:
            if record.cold != "delta":  # others put their files there too, and remove them
                yield _leftover("orphan", record, path, str(error))
            return
        if not _is_of_seals_to_come(parsed, record, living) and exists():
            yield _unlisted(record, path, "cold file")
        return
    if record is not None and key.startswith(rollups_prefix(folder)):
        if _is_stray(record, key.removeprefix(rollups_prefix(folder)), living) and exists():
            yield _leftover("orphan", record, path, "it is the partial of no listed file")
        return
    if record is not None and key.startswith(payload_key(folder, "")):
        # A seal puts them there before it lists its files: segments refer to them until then.
        named = payload_names((*record.state.cold, *record.state.segments))
        named += [item.name for item in record.garbage if item.kind in COLD_PAYLOAD_KINDS]
        name = key.removeprefix(payload_key(folder, ""))
        is_unnamed = name not in named and _tells_of_payload(record) and exists()
        if is_unnamed and not (living and _is_of_coming_chunk(objects, record, path)):
            yield _leftover("orphan", record, path, "no event refers to this payload file")
        return
    if record is not None and key.startswith(record_key(folder)):
        if not is_record_name(key.removeprefix(record_key(folder))) and exists():
            yield _leftover("orphan", record, path, "nothing names it")
        return
    if record is None:
        if exists() and not living:  # else it may be a table that is being made
            yield _leftover("orphan", None, path, "no table has this folder")
        return
    if key == tombstone_key(folder) and exists():
        what = "it says that the table was dropped, and the catalog lists the table"
        yield Problem("tombstone", "damage", record.name, path, what, _TOMBSTONE)
        return
    version = parse_schema_name(rest.removeprefix("schema/"))
    if version not in record.schemas and exists() and not living:  # else it may become one
        yield _leftover("orphan", record, path, "nothing names it")


def _is_stray(record: TableRecord, name: str, living: set[str]) -> bool:
    """Whether a sibling is of no cold file, and of none that a seal is about to list."""
    try:
        file = PartialName.parse(name).file
        if file in _cold_names(record):
            return False
        return not _is_of_seals_to_come(ColdName.parse(file), record, living)
    except CorruptionError:
        return True


def _dropped_problem(
    objects: Objects, record: TableRecord, folder: str, key: str
) -> Iterator[Problem]:
    """What is wrong with a file of a dropped table, which waits for its vacuum."""
    path = objects.path(key)
    if not any(item.kind == "table" for item in record.garbage):
        what = "the catalog says that its table was dropped and deleted"
        yield Problem("dropped", "damage", record.name, path, what, REBUILD)
    elif key == tombstone_key(folder):
        with suppress(NotFoundError):  # vacuumed meanwhile
            if not retain.is_tombstone(objects.storage.read(key)):
                what, help = (
                    "it is damaged",
                    "only that it is there counts, until vacuum deletes it",
                )
                yield Problem("tombstone", "leftover", record.name, path, what, help)


def _hot_problem(layout: SiteLayout, record: TableRecord | None, path: Path) -> Iterator[Problem]:
    if record is None:
        if path.exists():
            yield _leftover("orphan", None, path, "no table has this folder")
        return
    named = {s.name for s in record.state.segments}
    superseded = {g.name for g in record.garbage if g.kind == "segment"}
    parquet = path.name.replace(".duckdb", ".parquet")
    if record.dropped or parquet in superseded or not path.exists():
        return
    if path.suffix == ".duckdb":
        twins = {s.name for s in record.state.segments if s.has_duckdb}
        if parquet not in twins:
            yield _leftover("orphan", record, path, "nothing names it, and its rows are elsewhere")
        return
    if path.name in named:
        return
    try:
        SegmentName.parse(path.name)
    except CorruptionError as error:
        yield _leftover("orphan", record, path, str(error))
        return
    yield _unlisted(record, path, "segment")


def _tells_of_payload(record: TableRecord) -> bool:
    """Whether it is known of all cold files which payload files their rows refer to.

    What another engine has rewritten does not say, and its rows keep their references.
    """
    try:
        return all(ColdName.parse(file.name) for file in record.state.cold)
    except CorruptionError:
        return False


def _is_of_coming_chunk(objects: Objects, record: TableRecord, path: Path) -> bool:
    """Whether a load put a payload file there, and is about to list the events."""
    chunk = _footer(objects.fetched(path)).get("chunk")
    objects.let_go(path)
    return isinstance(chunk, int) and chunk > record.state.sealed_through


def _payload_problem(
    layout: SiteLayout, records: Mapping[str, TableRecord], path: Path
) -> Iterator[Problem]:
    """What is wrong with a payload file that lies beside segments."""
    folder = path.relative_to(layout.local / "payload").parts[0]
    record = records.get(folder)
    if record is None:
        if path.exists():
            yield _leftover("orphan", None, path, "no table has this folder")
        return
    named = payload_names(record.state.segments)
    named += [item.name for item in record.garbage if item.kind == "payload"]
    name = path.relative_to(layout.payload(folder)).as_posix()
    if not record.dropped and name not in named and path.exists():
        yield _leftover("orphan", record, path, "no event refers to this payload file")


def _unlisted(record: TableRecord, path: Path, what: str) -> Problem:
    return _leftover("orphan", record, path, f"no version lists this {what}")


def lost_by_catalog(
    objects: Objects,
    orphans: Sequence[Problem],
    journals: set[GenerationId],
    covered: set[GenerationId],
) -> list[Problem]:
    """The orphans as they are; as damage those whose rows are in no other place.

    A crash before a commit leaves an orphan, and the journals it was made from. Where those are
    gone, the catalog has lost a commit.
    """
    result = []
    for orphan in orphans:
        lost = False
        path = Path(orphan.file)
        if orphan.kind == "orphan" and path.suffix == ".parquet":
            footer = _footer(objects.fetched(path))
            objects.let_go(path)
            taken = [GenerationId(w, n) for w, n in footer.get("covers", ())]
            lost = any(id not in journals and id not in covered for id in taken)
        if lost:
            what = f"{orphan.what}, and the journals that it was made from are gone"
            orphan = Problem("lost", "damage", orphan.table, orphan.file, what, REBUILD)
        result.append(orphan)
    return result


def check_garbage(record: TableRecord, layout: SiteLayout, objects: Objects) -> Iterator[Problem]:
    """Lines of the catalog for files that are gone already; vacuum strikes them off."""
    for item in record.garbage:
        if item.kind in (*COLD_KINDS, *COLD_PAYLOAD_KINDS):
            key = data_prefix(record.folder) + item.name
            if item.kind in COLD_PAYLOAD_KINDS:
                key = payload_key(record.folder, item.name)
            path, there = objects.path(key), objects.exists(key)
        elif item.kind == "journal":
            writer, _, number = item.name.partition("/")
            if not number.isdecimal():  # `check_tiers` says so
                continue
            path = layout.writer(record.folder, writer) / journal_name(int(number))
            there = path.exists()
        elif item.kind == "segment":
            path = layout.hot(record.folder) / item.name
            there = path.exists()
        elif item.kind == "payload":
            path = layout.payload(record.folder) / item.name
            there = path.exists()
        elif item.kind == "purged_log":
            key = log_prefix(record.folder) + item.name
            path, there = objects.path(key), objects.exists(key)
        else:
            continue
        if not there:
            what = "the catalog still lists it as superseded, and it is deleted"
            yield Problem(
                "dangling", "leftover", record.name, path, what, "the next vacuum strikes it off"
            )


def _footer(path: Path) -> dict[str, Any]:
    try:
        return datafile.read_footer(path)
    except CorruptionError:
        return {}


def _leftover(kind: str, record: TableRecord | None, path: Path, what: str) -> Problem:
    table = record.name if record is not None else None
    return Problem(kind, "leftover", table, path, what, MOVE, "quarantine")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
