"""Where DuckDB spills what memory does not hold: a folder of each process.

DuckDB makes it when it spills and removes it when it ends; what a killed process left is deleted by
the next one of the same user. A folder of temporary files is open to all users: ours lie in one
that only this user can enter, and nothing in it is followed or believed.
"""

import atexit
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from lakestore.errors import StorageError
from lakestore.layout import WRITER_NAME
from lakestore.locks import ProcessLock

_lock: ProcessLock | None = None


def folder() -> Path:
    """This process's own, not made yet; those that dead processes left are gone."""
    global _lock
    parent = _parent()
    alive = parent / "alive"
    with suppress(OSError, StorageError):  # a query that spills then says what is wrong
        if _lock is None:
            _lock = ProcessLock.create(alive)
        _sweep(parent, alive)
    return parent / (_lock.name if _lock is not None else str(os.getpid()))


def _parent() -> Path:
    """A folder of this user alone."""
    path = Path(tempfile.gettempdir()) / f"lakestore-{os.getuid()}"
    with suppress(OSError):
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
            path.chmod(0o700)
            return path
    return Path(tempfile.mkdtemp(prefix="lakestore-"))


def _sweep(parent: Path, alive: Path) -> None:
    for name in sorted(os.listdir(alive)):
        lock = ProcessLock.take(alive / name) if WRITER_NAME.fullmatch(name) else None
        if lock is not None:
            shutil.rmtree(parent / name, ignore_errors=True)
            lock.release(forget=True)


@atexit.register
def _let_go() -> None:
    """The folder is DuckDB's to remove: it may still be at work, if this process ends by itself."""
    if _lock is not None:
        _lock.release(forget=False)


def _in_child() -> None:
    global _lock
    if _lock is not None:
        _lock.abandon()
        _lock = None


os.register_at_fork(after_in_child=_in_child)
