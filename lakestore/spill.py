"""Where DuckDB spills what memory does not hold: a folder of each instance, in one of its process.

Left alone, an in-memory DuckDB spills into the caller's working directory; and two must not share a
folder, for their files have the same names. DuckDB makes the folder when it spills and removes it
when it ends; what a killed process left is deleted by the next one of the same user. A folder of
temporary files is open to all users: ours lie in one that only this user can enter, and nothing in
it is followed or believed.
"""

import atexit
import itertools
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
_numbers = itertools.count()


def folder() -> Path:
    """For one more instance, which makes it; those that dead processes left are gone."""
    global _lock
    parent = _parent()
    alive = parent / "alive"
    with suppress(OSError, StorageError):  # a query that spills then says what is wrong
        if _lock is None:
            _lock = ProcessLock.create(alive)
        _sweep(parent, alive)
        own = parent / _lock.name
        own.mkdir(mode=0o700, exist_ok=True)
        return own / str(next(_numbers))
    return parent / f"{os.getpid()}-{next(_numbers)}"


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
