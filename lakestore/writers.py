"""Who writes: each process that opens a lake for writing is one writer, alive while it is locked.

The kernel lets the lock (`flock`) go when the process ends, however it ends. Whoever can take a
writer's lock may take over its journals and sweep its staged files.
"""

import fcntl
import os
import secrets
import shutil
from collections.abc import Container
from pathlib import Path

from lakestore.layout import WRITER_NAME, SiteLayout
from lakestore.storage.local import make_folder


class WriterLock:
    """The lock of one writer; held until `release`, or the end of the process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.name = path.name
        self._path = path
        self._descriptor = descriptor

    @classmethod
    def create(cls, folder: Path) -> "WriterLock":
        """A lock for a new writer, whose name nobody used before."""
        make_folder(folder)
        while True:
            lock = cls.take(folder / secrets.token_hex(8))
            if lock is not None:
                return lock

    @classmethod
    def take(cls, path: Path) -> "WriterLock | None":
        """The lock of a writer, or None while that writer lives."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:  # else its last holder has just removed it
                return cls(path, descriptor)
        except BlockingIOError:
            pass
        os.close(descriptor)
        return None

    def release(self, *, forget: bool) -> None:
        """Let go; `forget` when the writer has left nothing to recover."""
        if forget:
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def abandon(self) -> None:
        """Close the descriptor that a forked child inherited; the parent keeps the lock."""
        os.close(self._descriptor)


def writers_with_journals(layout: SiteLayout) -> set[str]:
    """Writers that left a journal file of any table."""
    return {path.parent.name for path in (layout.local / "journal").glob("*/*/*.journal")}


def take_over_dead(site: SiteLayout, mine: Container[str]) -> list[WriterLock]:
    """Locks of every dead writer that left something, but for those in `mine`."""
    make_folder(site.writers)
    names = {path.name for path in site.writers.iterdir()} | writers_with_journals(site)
    locks = [
        WriterLock.take(site.writers / name)
        for name in sorted(names)
        if WRITER_NAME.fullmatch(name) and name not in mine
    ]
    return [lock for lock in locks if lock is not None]


def sweep_staging(site: SiteLayout, dead: list[WriterLock]) -> int:
    """Delete what dead writers had staged; returns the number of files."""
    count = 0
    for lock in dead:
        folder = site.staging_of(lock.name)
        if folder.is_dir() and not folder.is_symlink():
            count += sum(1 for _ in folder.iterdir())
            shutil.rmtree(folder)
    return count


def is_alive(path: Path) -> bool:
    """Whether the writer of a lock file lives: somebody holds its lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def living(site: SiteLayout) -> set[str]:
    """Names of the writers that live, this process's own among them."""
    if not site.writers.is_dir():
        return set()
    paths = (path for path in site.writers.iterdir() if WRITER_NAME.fullmatch(path.name))
    return {path.name for path in paths if is_alive(path)}
