"""Vacuum: the only thing that deletes. It deletes what nothing names any more, after a grace.

Order of effects, numbered as their failpoints are: vacuum.1 files chosen, and those in the root
claimed, so that no undo brings them back, .2 one deleted, or all of the root, .3 their folders
fsynced, .4 their lines struck off the catalog, .5 committed. A crash before that leaves a line for
a file that is gone, and the next vacuum strikes it off. Deleting outside any lock is safe, because
names are never used twice: nobody can be creating what is deleted here.
"""

import json
import shutil
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from lakestore import hot, partialfiles
from lakestore.catalog.records import COLD_KINDS, COLD_PAYLOAD_KINDS, ROOT_KINDS, Garbage
from lakestore.failpoint import reach
from lakestore.layout import (
    PayloadName,
    SiteLayout,
    data_name,
    data_prefix,
    ids_name,
    journal_name,
    log_prefix,
    past_name,
    payload_key,
    rollups_prefix,
    tombstone_key,
)
from lakestore.opensite import SiteContext
from lakestore.storage.local import fsync_folder, refusals


@dataclass(frozen=True)
class Vacuumed:
    """What a vacuum deleted, or would: file names by kind."""

    journals: tuple[str, ...]
    segments: tuple[str, ...]
    dry_run: bool
    payload: tuple[str, ...] = ()
    """Payload files of segments."""
    cold: tuple[str, ...] = ()
    cold_payload: tuple[str, ...] = ()
    """Payload files in the root, to which only rows of cold files refer that went."""
    log: tuple[str, ...] = ()
    """Versions of a log that told of purged rows; a checkpoint stands for them."""
    bytes: int = 0
    """Of all of them, as far as they are there."""

    def __len__(self) -> int:
        kinds = (self.journals, self.segments, self.payload, self.cold, self.cold_payload)
        return sum(map(len, kinds)) + len(self.log)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        counts = {
            "journals": self.journals,
            "segments": self.segments,
            "payload files of segments": self.payload,
            "cold files": self.cold,
            "payload files of cold files": self.cold_payload,
            "versions of a log": self.log,
        }
        told = ", ".join(f"{len(names):,} {what}" for what, names in counts.items() if names)
        verb = "would delete" if self.dry_run else "deleted"
        return f"{verb} {told or 'nothing'} ({self.bytes:,} bytes)"


def choose(
    garbage: Sequence[Garbage],
    now: float,
    grace_s: float,
    cold_grace_s: float,
    in_use: Container[str],
) -> list[Garbage]:
    """What may be deleted. Pure.

    Journals go at once: only this site reads them, and a reader that misses one finds its rows
    in a segment. Other files wait out their grace, and queries that still read them; and payload
    files in the root, the cold files that may refer to them.
    """
    cold = max(grace_s, cold_grace_s)
    graces = {"journal": 0.0, "cold": cold, "cold_payload": cold}
    chosen = [
        g
        for g in garbage
        if g.kind == "journal"
        or (now - g.since >= graces.get(g.kind, grace_s) and g.name not in in_use)
    ]
    going = {g.id for g in chosen}
    waiting: dict[int, float] = {}
    for g in garbage:
        if g.kind == "cold" and g.id not in going:
            waiting[g.table_id] = min(g.since, waiting.get(g.table_id, g.since))
    payload = [g for g in chosen if g.kind == "cold_payload"]
    first = [g for g in chosen if g.kind != "cold_payload"]
    return first + [g for g in payload if g.since < waiting.get(g.table_id, now)]


def vacuum(site: SiteContext, chosen: Sequence[Garbage], *, dry_run: bool) -> Vacuumed:
    """Delete superseded files, or say which would go.

    Raises:
        StorageError: the disk refused; what is gone is struck off at the next vacuum.
    """
    if not dry_run:
        chosen = _claimed(site, chosen)
    local = [item for item in chosen if not _is_in_root(item)]
    shared = [item for item in chosen if _is_in_root(item)]
    size = sum(_bytes(item, site.layout) for item in local) + _bytes_in_root(shared, site)
    if not dry_run:
        reach("vacuum.1")
        deletions = [(item.name, partial(_delete, item, site)) for item in local]
        if shared:
            deletions.append((f"{len(shared):,} files", partial(_delete_in_root, shared, site)))
        for what, delete in deletions:
            with refusals(f"cannot delete {what!r}"):
                delete()
                reach("vacuum.2")
        for folder in {_folder(item, site.layout) for item in local}:
            if folder.is_dir():  # or a power loss could bring back what the catalog forgets next
                with refusals(f"cannot sync {str(folder)!r}"):
                    fsync_folder(folder)
        reach("vacuum.3")
        if chosen:
            with site.catalog.commit() as commit:
                for item in chosen:
                    commit.forget(item)
                reach("vacuum.4")
            reach("vacuum.5")
    return Vacuumed(
        tuple(g.name for g in chosen if g.kind == "journal"),
        tuple(g.name for g in chosen if g.kind in ("segment", "table")),
        dry_run,
        tuple(g.name for g in chosen if g.kind == "payload"),
        tuple(g.name for g in chosen if g.kind in COLD_KINDS),
        tuple(g.name for g in chosen if g.kind in COLD_PAYLOAD_KINDS),
        tuple(g.name for g in chosen if g.kind == "purged_log"),
        size,
    )


def _is_in_root(item: Garbage) -> bool:
    return item.kind in ROOT_KINDS


def _claimed(site: SiteContext, chosen: Sequence[Garbage]) -> list[Garbage]:
    """The files without those of the root that came back meanwhile; the others cannot any more."""
    shared = [item for item in chosen if _is_in_root(item)]
    if not shared:
        return list(chosen)
    with site.catalog.commit() as commit:
        lost = {item.id for item in shared if not commit.claim_garbage(item)}
    return [item for item in chosen if item.id not in lost]


def _bytes_in_root(items: Sequence[Garbage], site: SiteContext) -> int:
    """Bytes of files of the root, as far as they are told or found."""
    payload = [item for item in items if item.kind in COLD_PAYLOAD_KINDS]
    others = [item for item in items if item.kind not in COLD_PAYLOAD_KINDS]
    found = site.storage.sizes([_key(item) for item in others])
    told = (PayloadName.parse(item.name).bytes for item in payload)
    return sum(told) + sum(size or 0 for size in found)


def _key(item: Garbage) -> str:
    """Where a file of the root is."""
    if item.kind in COLD_PAYLOAD_KINDS:
        return payload_key(item.folder, str(PayloadName.parse(item.name)))
    if item.kind == "purged_log":
        return log_prefix(item.folder) + past_name(item.name)
    return data_prefix(item.folder) + data_name(item.name)


def _bytes(item: Garbage, layout: SiteLayout) -> int:
    """Size of a file of the site, as far as it is there; a table's files are not counted."""
    if item.kind == "payload":
        return PayloadName.parse(item.name).bytes
    path = layout.hot(item.folder) / item.name
    if item.kind == "journal":
        path = _journal_path(item, layout)
    try:
        return path.stat().st_size if item.kind != "table" else 0
    except OSError:
        return 0


def _journal_path(item: Garbage, layout: SiteLayout) -> Path:
    writer, number = item.name.split("/")
    return layout.writer(item.folder, writer) / journal_name(int(number))


def _folder(item: Garbage, layout: SiteLayout) -> Path:
    """The folder that a deleted file was in."""
    if item.kind == "journal":
        return layout.writer(item.folder, item.name.split("/")[0])
    if item.kind == "payload":
        return (layout.payload(item.folder) / item.name).parent
    return layout.hot(item.folder)


def _delete(item: Garbage, site: SiteContext) -> None:
    layout = site.layout
    if item.kind == "journal":
        _journal_path(item, layout).unlink(missing_ok=True)
    elif item.kind == "segment":
        partialfiles.forget(layout.rollups(item.folder), [item.name])
        hot.delete(layout.hot(item.folder), item.name)
        site.engine.forget(hot.duckdb_path(layout.hot(item.folder), item.name))
    elif item.kind == "payload":
        (layout.payload(item.folder) / str(PayloadName.parse(item.name))).unlink(missing_ok=True)
    elif item.kind == "table":
        _delete_table(item.folder, site)


def _delete_in_root(items: Sequence[Garbage], site: SiteContext) -> None:
    """Delete cold files, then what belongs to them, and what is cached of it here."""
    cold = [item for item in items if item.kind in COLD_KINDS]
    site.storage.delete(*map(_key, cold))
    site.storage.delete(*(_key(item) for item in items if item.kind not in COLD_KINDS))
    for folder in sorted({item.folder for item in cold}):
        names = [item.name for item in cold if item.folder == folder]
        stems = {rollups_prefix(folder) + name.removesuffix(".parquet") for name in names}
        days = sorted({stem.rpartition("/")[0] for stem in stems})  # ten thousand files are of one
        partials = (key for day in days for key in site.storage.list(f"{day}/"))
        site.storage.delete(*(key for key in partials if key.split(".")[0] in stems))
        partialfiles.forget(site.layout.rollups(folder), names)
        for name in names:
            (site.layout.ids(folder) / ids_name(name)).unlink(missing_ok=True)


def _delete_table(name: str, site: SiteContext) -> None:
    """Delete all of a dropped table; last what says that it was dropped."""
    bury(site, name)
    layout, tombstone = site.layout, tombstone_key(name)
    kept = (
        layout.hot(name),
        layout.payload(name),
        layout.ids(name),
        layout.rollups(name),
        layout.journals(name),
    )
    for folder in kept:
        if folder.is_dir():
            shutil.rmtree(folder)
            fsync_folder(folder.parent)
    listed = site.storage.list(f"tables/{name}/")
    site.storage.delete(*(key for key in listed if key != tombstone))
    site.storage.delete(tombstone)


def bury(site: SiteContext, folder: str) -> None:
    """Say beside a dropped table's files that it was dropped: a rebuild must not bring it back.

    Only once the catalog says so, for a table that lives on must have no tombstone. A crash in
    between is made good by the next open, or by vacuum.

    Raises:
        StorageError: the disk refused.
    """
    key = tombstone_key(folder)
    if site.storage.size(key) is None:
        site.put_new(key, _tombstone(site.clock.now()).encode())


def is_tombstone(text: bytes) -> bool:
    """Whether a file holds what `bury` writes."""
    try:
        return text.decode() == _tombstone(datetime.fromisoformat(json.loads(text)["dropped"]))
    except (ValueError, LookupError, TypeError):
        return False


def _tombstone(dropped: datetime) -> str:
    return json.dumps({"format": 1, "dropped": dropped.isoformat()}) + "\n"
