"""Repair: do what is safe about the problems that verify finds, and nothing else.

Caches are made again, and what nothing reads is moved to quarantine; nothing is deleted or
overwritten. Of objects in a store only `lake.duckdb` is made again: the rest of a store is not one
site's to tidy. Journals and listed data files are never touched: what is lost in them, only a copy
brings back. While the catalog itself is in doubt nothing is done at all: a rebuild may need what it
does not name.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from lakestore import hot, shell
from lakestore.context import TableContext
from lakestore.locks import ProcessLock
from lakestore.opensite import SiteContext
from lakestore.storage.local import LocalStorage, fsync_file, make_folder, publish_new, set_aside
from lakestore.verify.report import REBUILD, Problem, Repair, Report
from lakestore.verify.run import verify


@dataclass(frozen=True)
class Action:
    """One thing that a repair does, or would do."""

    do: Repair
    table: str | None
    file: Path | str

    def __str__(self) -> str:
        verb = {
            "quarantine": "move to quarantine",
            "ids": "move to quarantine; it is made again when needed",
            "rollup": "move to quarantine; it is made again when needed",
            "twin": "make again from its Parquet file",
            "views": "make again from the catalog",
            "empty": "make again from the schema",
        }[self.do]
        return f"{self.file}: {verb}"


@dataclass(frozen=True)
class Repaired:
    """What a repair did (or would do), and how the lake was found, then."""

    actions: tuple[Action, ...]
    report: Report
    dry_run: bool

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries and lists."""
        actions = [asdict(action) | {"file": str(action.file)} for action in self.actions]
        return self.report.to_dict() | {"actions": actions, "dry_run": self.dry_run}


def plan(problems: Sequence[Problem]) -> list[Action]:
    """What is safe to do about problems, views last: they read what the others make. Pure."""
    if any(p.severity == "damage" and p.help == REBUILD for p in problems):
        return []
    actions = [
        Action(p.repair, p.table, p.file)
        for p in problems
        if p.repair is not None and (isinstance(p.file, Path) or p.repair == "views")
    ]
    return sorted(actions, key=lambda action: action.do == "views")


def repair(site: SiteContext, tables: Sequence[TableContext], *, dry_run: bool) -> Repaired:
    """Verify, do what is safe, and verify again; with `dry_run` only say what would be done.

    Raises:
        StorageError: the disk refused; what was done is done, and the rest can be tried again.
    """
    found = verify(site, tables)
    actions = plan(found.problems)
    if dry_run or not actions:
        return Repaired(tuple(actions), found, dry_run)
    with _writing(site) as staged:
        aside = _Aside(staged)
        for action in actions:
            _do(action, staged, [replace(t, site=staged) for t in tables], aside)
        if any(action.do == "rollup" for action in actions):  # views list what is gone
            shell.publish(staged, lambda: [replace(t, site=staged) for t in tables])
    return Repaired(tuple(actions), verify(site, tables), dry_run)


def _do(action: Action, site: SiteContext, tables: Sequence[TableContext], aside: "_Aside") -> None:
    if action.do == "views":
        shell.publish(site, lambda: tables)
        return
    assert isinstance(action.file, Path)
    site.engine.forget(action.file)
    aside.move(action.file)
    table = next((t for t in tables if t.entry.name == action.table), None)
    if table is None:
        return
    if action.do == "empty":
        shell.write_empty(table)
    elif action.do == "twin":
        name = action.file.with_suffix(".parquet").name
        segment = next((s for s in table.state().hot if s.name == name), None)
        if segment is not None:  # else it was sealed meanwhile
            made = site.staging / f"{uuid4().hex}.duckdb"
            hot.build_duckdb(site.engine, table.segment_path(segment), made, segment.info.rows)
            fsync_file(made)
            publish_new(made, action.file)


class _Aside:
    """A new folder in quarantine, which keeps files under the paths they had."""

    def __init__(self, site: SiteContext) -> None:
        stamp = site.clock.now().strftime("%Y%m%dT%H%M%S")
        self._folder = site.layout.quarantine / f"{stamp}-{uuid4().hex[:8]}"
        root = [site.storage.folder] if isinstance(site.storage, LocalStorage) else []
        self._bases = (site.layout.local, *root)

    def move(self, path: Path) -> None:
        """Move a file away, if it is there."""
        for base in self._bases:
            if path.is_relative_to(base) and path.exists():
                target = self._folder / path.relative_to(base)
                make_folder(target.parent)
                set_aside(path, target)
                return


@contextmanager
def _writing(site: SiteContext) -> Iterator[SiteContext]:
    """The site, with a writer's name to stage files under."""
    if site.lock is not None:
        yield site
        return
    lock = ProcessLock.create(site.layout.writers)
    try:
        writing = replace(site, lock=lock, dead=[])
        make_folder(writing.staging)
        yield writing
        if not any(writing.staging.iterdir()):
            writing.staging.rmdir()
    finally:
        lock.release(forget=True)
