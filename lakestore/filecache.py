"""Objects as files of this machine: where they are, or, from a store, copies in a bounded cache.

Published objects never change, so a copy is good as long as it is there. Those not used for longest
go first. A copy is checked against the sha256 that it was published with, where that is known, so
bytes that a network or a disk changed are found when they arrive.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from lakestore.errors import CorruptionError, StorageError
from lakestore.storage import Storage
from lakestore.storage.local import discard, make_folder, open_to_read, refusals
from lakestore.storage.s3 import S3Storage

_YOUNG_S = 60.0
"""A copy used so recently is not deleted: a query may be about to open it."""


@dataclass(frozen=True)
class Wanted:
    """An object, and what its bytes have to be.

    `sha256` may be the beginning of it, and is empty when it is not known.
    """

    key: str
    size: int
    sha256: str = ""


class FileCache:
    """Where objects of a storage can be read as files; any thread may ask."""

    def __init__(self, storage: Storage, folder: Path, bytes_max: int) -> None:
        """A cache in `folder`, which other processes of this site share.

        Args:
            bytes_max: how much it may hold, but for what is in use.
        """
        self._storage = storage
        self._folder = folder
        self._bytes_max = bytes_max
        self._lock = threading.Lock()  # one thread looks for what can go
        self.downloads = 0
        """Objects that were fetched."""

    def path(self, wanted: Wanted) -> Path:
        """The file with an object's bytes; raises as `paths`."""
        (path,) = self.paths([wanted])
        return path

    def paths(self, wanted: Sequence[Wanted]) -> list[Path]:
        """The files with the objects' bytes, fetched when they are not here.

        Raises:
            NotFoundError: there is no such object.
            CorruptionError: it is not what was published.
            StorageError: the store or the disk failed.
        """
        if not isinstance(self._storage, S3Storage):
            return [Path(self._storage.url(one.key)) for one in wanted]
        paths = {one.key: self._target(one) for one in wanted}
        missing = [one for one in wanted if not _use(paths[one.key])]
        if missing:
            by_key = {one.key: one for one in missing}
            self._storage.each(lambda key: self._fetch(by_key[key], paths[key]), list(by_key))
            self._make_room()
        return [paths[one.key] for one in wanted]

    def copied(self, wanted: Wanted) -> Path | None:
        """The copy of an object, if there is one: without asking the store."""
        path = self._target(wanted)
        return path if _use(path) else None

    def put(self, wanted: Wanted, source: Path) -> None:
        """Keep a copy of a file that is about to be published: it is read again soon."""
        if not self._storage.remote or wanted.size > self._bytes_max:
            return
        target = self._target(wanted)
        with suppress(OSError, StorageError):  # it can be fetched
            make_folder(target.parent)
            os.link(source, target)
            self._make_room()

    def sweep(self, live: Sequence[Wanted], is_wanted: Callable[[Path], bool]) -> None:
        """Delete copies of objects that are not live.

        Args:
            is_wanted: whether another copy is to stay, for it is of something else.
        """
        kept = {self._target(one) for one in live}
        with suppress(OSError):
            for path in self._folder.iterdir():
                if path.is_file() and path not in kept and not is_wanted(path):
                    discard(path)

    def drop_damaged(self, wanted: Sequence[Wanted]) -> bool:
        """Delete copies that this disk has altered, to be fetched again; whether there were any."""
        if not self._storage.remote:
            return False
        copies = [(self._target(one), one) for one in wanted]
        damaged = [path for path, one in copies if path.exists() and _wrong(path, one)]
        for path in damaged:
            discard(path)
        return bool(damaged)

    def _target(self, wanted: Wanted) -> Path:
        """One name an object and state of its bytes, whatever the key has in it."""
        told = f"{wanted.key}\0{wanted.size}\0{wanted.sha256}".encode()
        return self._folder / f"{hashlib.sha256(told).hexdigest()[:32]}{Path(wanted.key).suffix}"

    def _fetch(self, wanted: Wanted, target: Path) -> None:
        assert isinstance(self._storage, S3Storage)
        make_folder(self._folder)
        url = self._storage.url(wanted.key)
        staged = self._folder / f".{uuid4().hex}"
        try:
            for attempt in range(2):  # a byte may have been lost or changed on its way
                discard(staged)
                self._storage.download(wanted.key, wanted.size, staged)
                self.downloads += 1
                wrong = _wrong(staged, wanted)
                if wrong is None:
                    break
                if attempt:
                    raise CorruptionError(f"{url!r} is not what was published: {wrong}")
            with refusals(f"cannot keep a copy of {url!r}"):
                staged.replace(target)
        finally:
            discard(staged)

    def _make_room(self) -> None:
        with self._lock, suppress(OSError):  # another process deletes too
            held = [(path, path.stat()) for path in self._folder.iterdir() if path.is_file()]
            total = sum(state.st_size for _, state in held)
            now = time.time()
            for path, state in sorted(held, key=lambda one: one[1].st_mtime):
                if total <= self._bytes_max:
                    break
                if now - state.st_mtime > _YOUNG_S:
                    path.unlink(missing_ok=True)
                    total -= state.st_size


def _use(path: Path) -> bool:
    """Whether there is a copy; notes that it is used."""
    try:
        os.utime(path)
    except OSError:
        return False
    return True


def _wrong(path: Path, wanted: Wanted) -> str | None:
    with refusals(f"cannot read {str(path)!r}"):
        size = path.stat().st_size
        if size != wanted.size:
            return f"it has {size:,} bytes of {wanted.size:,}"
        if wanted.sha256:
            with open_to_read(path) as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if not found.startswith(wanted.sha256):
                return "its sha256 is another"
    return None
