"""Who writes: each process that opens a lake for writing is one writer, alive while it is locked.

The kernel lets the lock (`flock`) go when the process ends, however it ends. Whoever can take a
writer's lock may take over its journals and sweep its staged files.
"""

import shutil
from collections.abc import Container
from dataclasses import dataclass

from lakestore.layout import WRITER_NAME, SiteLayout
from lakestore.locks import ProcessLock, is_held
from lakestore.storage.local import make_folder, refusals


@dataclass
class Recovery:
    """What this process took over from dead writers since it opened the lake."""

    writers: int = 0
    generations: int = 0
    rows: int = 0
    torn_bytes: int = 0
    """Cut off the ends of journals: of appends that were not acknowledged."""
    staged_files: int = 0
    """Unpublished files that were swept."""

    def __bool__(self) -> bool:
        return bool(self.writers)


def writers_with_journals(layout: SiteLayout) -> set[str]:
    """Writers that left a journal file of any table."""
    return {path.parent.name for path in (layout.local / "journal").glob("*/*/*.journal")}


def take_over_dead(site: SiteLayout, mine: Container[str]) -> list[ProcessLock]:
    """Locks of every dead writer that left something, but for those in `mine`.

    Raises:
        StorageError: the disk refused; no lock was taken.
    """
    make_folder(site.writers)
    names = {path.name for path in site.writers.iterdir()} | writers_with_journals(site)
    locks: list[ProcessLock] = []
    try:
        for name in sorted(names):
            if WRITER_NAME.fullmatch(name) and name not in mine:
                lock = ProcessLock.take(site.writers / name)
                locks += [lock] if lock is not None else []
    except BaseException:
        for lock in locks:  # or the rows behind them would be hidden from the next attempt
            lock.abandon()
        raise
    return locks


def sweep_staging(site: SiteLayout, dead: list[ProcessLock]) -> int:
    """Delete what dead writers had staged; returns the number of files."""
    count = 0
    for lock in dead:
        folder = site.staging_of(lock.name)
        if folder.is_dir() and not folder.is_symlink():
            with refusals(f"cannot sweep {str(folder)!r}"):
                count += sum(1 for _ in folder.iterdir())
                shutil.rmtree(folder)
    return count


def living(site: SiteLayout) -> set[str]:
    """Names of the writers that live, this process's own among them."""
    if not site.writers.is_dir():
        return set()
    paths = (path for path in site.writers.iterdir() if WRITER_NAME.fullmatch(path.name))
    return {path.name for path in paths if is_held(path)}
