"""Locks that say which processes live.

The kernel lets a lock (`flock`) go when its process ends, however it ends. A number of a process
would say less: it may be another's by now.
"""

import fcntl
import os
import secrets
from contextlib import suppress
from pathlib import Path

from lakestore.storage.local import make_folder, refusals


class ProcessLock:
    """One file's lock; held until `release`, or the end of the process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.name = path.name
        self._path = path
        self._descriptor = descriptor

    @classmethod
    def create(cls, folder: Path) -> "ProcessLock":
        """The lock of a new file in a folder, whose name nobody used before."""
        make_folder(folder)
        while True:
            lock = cls.take(folder / secrets.token_hex(8))
            if lock is not None:
                return lock

    @classmethod
    def take(cls, path: Path) -> "ProcessLock | None":
        """The lock of a file, or None while another holds it.

        Raises:
            StorageError: the disk refused.
        """
        with refusals(f"cannot lock {str(path)!r}"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_nlink:  # else its last holder has just removed it
                    return cls(path, descriptor)
            except BlockingIOError:
                pass
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
            return None

    def release(self, *, forget: bool) -> None:
        """Let go; `forget` when its holder has left nothing to clean up."""
        if forget:
            with suppress(OSError):  # whoever looks next takes it for one that left nothing
                self._path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def abandon(self) -> None:
        """Close the descriptor only, as a forked child does; the parent keeps the lock."""
        os.close(self._descriptor)


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock of a file."""
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
