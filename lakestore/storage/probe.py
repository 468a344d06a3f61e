"""Probe a store: whether it keeps what a commit rests on. Some accept conditions and ignore them.

`rclone serve s3` (1.75) took 60 of 60 creations of a name that existed: two commits of one version
would both have been acknowledged, and the first one lost.
"""

import hashlib
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from lakestore.errors import LakestoreError, StorageError, UnsafeStoreError
from lakestore.storage.local import discard, make_folder
from lakestore.storage.s3 import S3Storage

_GOOD_FOR_S = 86_400.0
REQUESTS = 4
"""How many requests a probe makes, but for deleting what it put."""


def probe(storage: S3Storage) -> None:
    """Try what is needed, with objects that are deleted again.

    Raises:
        UnsafeStoreError: the store does not do what it says.
        StorageError: it does not answer, or refuses.
        NotFoundError: there is no such bucket.
    """
    key = f"lakestore-probe-{uuid4().hex}"
    try:
        if not storage.put(key, b"first", create=True):
            raise _unsafe(storage, "says that a name exists that was never used")
        if storage.put(key, b"second", create=True):
            raise _unsafe(storage, "accepts If-None-Match and overwrites all the same")
        if storage.read(key) != b"first":
            raise _unsafe(storage, "refuses to overwrite an object and has overwritten it")
        try:
            end = storage.last_bytes(key, 3)
        except StorageError as error:
            raise _unsafe(
                storage, f"does not answer requests for the end of an object ({error})"
            ) from error
        if end != b"rst":
            raise _unsafe(storage, "does not give the end of an object that is asked for")
    finally:
        with suppress(LakestoreError):
            storage.delete(key)


def probe_once(storage: S3Storage, folder: Path) -> None:
    """Probe a store, unless it was found good within a day; raises as `probe`.

    Args:
        folder: where this host remembers it.
    """
    wanted = f"{storage.url('')} {storage.endpoint or 'aws'}\n"
    note = folder / f"probed-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    known = False
    with suppress(OSError):
        known = note.read_text() == wanted
        if known and 0 <= time.time() - note.stat().st_mtime < _GOOD_FOR_S:
            return
    try:
        probe(storage)
    except UnsafeStoreError:
        discard(note)
        raise
    except StorageError:
        if known:  # it was good, and is silent: appends need not wait for it
            return
        raise
    make_folder(folder)
    with suppress(OSError):  # it is only probed again
        staged = note.with_suffix(f".{uuid4().hex}")
        try:
            staged.write_text(wanted)
            staged.replace(note)
        finally:
            discard(staged)


def _unsafe(storage: S3Storage, what: str) -> UnsafeStoreError:
    return UnsafeStoreError(
        f"the store of {storage.url('')!r} {what}: two writers could overwrite each other there; "
        "use one that honours conditional writes, such as AWS S3, R2, MinIO or Tigris"
    )
