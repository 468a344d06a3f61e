"""The lake's objects as verify reads them: files on this disk, or copies made for the occasion.

What is in the cache of a store's files is not asked: the bytes in the store are what counts.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from lakestore.errors import NotFoundError
from lakestore.opensite import SiteContext
from lakestore.storage import Storage
from lakestore.storage.local import LocalStorage, discard, make_folder
from lakestore.storage.s3 import S3Storage

_LEFT_S = 86_400.0


class Objects:
    """Objects by key."""

    def __init__(self, storage: Storage, copies: Path) -> None:
        self.storage = storage
        self._copies = copies

    def path(self, key: str) -> Path:
        """Where an object is, or its copy will be."""
        if isinstance(self.storage, LocalStorage):
            return Path(self.storage.url(key))
        return self._copies / key

    def fetch(self, key: str) -> Path:
        """The path, with an object's bytes; nothing is there when there is no such object.

        Raises:
            StorageError: the store does not answer.
        """
        path = self.path(key)
        if isinstance(self.storage, S3Storage) and not path.exists():
            make_folder(path.parent)
            with suppress(NotFoundError):
                self.storage.download(key, self.storage.size(key) or 0, path)
        return path

    def fetched(self, path: Path) -> Path:
        """A path that `path` gave, with the object's bytes; any other as it is."""
        return self.fetch(self._key(path)) if path.is_relative_to(self._copies) else path

    def let_go(self, path: Path) -> None:
        """Delete a copy: the next one needs room."""
        if path.is_relative_to(self._copies):
            discard(path)

    def exists(self, key: str) -> bool:
        """Whether there is such an object now."""
        return self.storage.size(key) is not None

    def shown(self, path: Path) -> Path | str:
        """What a user calls a file: of a copy, the object's URL."""
        if not path.is_relative_to(self._copies):
            return path
        return self.storage.url(self._key(path))

    def _key(self, path: Path) -> str:
        return path.relative_to(self._copies).as_posix()


@contextmanager
def objects_of(site: SiteContext) -> Iterator[Objects]:
    """The lake's objects, and room for copies while they are looked at."""
    for left in site.layout.files.glob("verify-*"):  # of one that was killed
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _LEFT_S:
                shutil.rmtree(left, ignore_errors=True)
    copies = site.layout.files / f"verify-{uuid4().hex}"
    try:
        yield Objects(site.storage, copies)
    finally:
        shutil.rmtree(copies, ignore_errors=True)
