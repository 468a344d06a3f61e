"""Hashes of the ids in published files: who might hold a duplicate, without reading the file.

Each cold file has a cache beside the site's catalog: its id hashes, sorted, 8 bytes a row, mapped
into memory. A cache that is missing, damaged or of another hash version is made again from the
file. Segments are read when first asked for; they live too briefly for a cache on disk.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from lakestore.errors import StorageError
from lakestore.idhash import HASH_VERSION, Hashes, Sought, hash_batch, in_sorted
from lakestore.layout import ids_name
from lakestore.schema import TableSchema
from lakestore.settings import MIB
from lakestore.storage.local import discard, make_folder, require_file

_MAGIC = b"LKIDS1\0\0"
_MAPPED_BYTES = 256 * MIB
"""Of the most recently used, which may count as memory of this process; 32 million ids."""


class FileIds:
    """Sorted id hashes of a table's files, by file name."""

    def __init__(self, folder: Path, schema: TableSchema) -> None:
        self._folder = folder
        self._schema = schema
        self._lock = threading.Lock()  # guards _known and _bytes
        self._known: OrderedDict[str, Hashes] = OrderedDict()  # the most recently used last
        self._bytes = 0
        self.checked: set[str] = set()
        """Segments whose ids the appender knows: what it accepts is no duplicate of theirs."""

    def contains(
        self, name: str, source: Callable[[], Path], hashes: Hashes
    ) -> npt.NDArray[np.bool_]:
        """For each hash, whether the file may hold its id.

        Args:
            source: gives the file, when its hashes are not known yet.
        """
        run = self._load(name, source)
        return in_sorted(run, hashes) if len(run) else np.zeros(len(hashes), dtype=np.bool_)

    def common(self, name: str, source: Callable[[], Path], sought: Sought) -> Hashes:
        """Those of the hashes that the file may hold, sorted; as `contains`."""
        return sought.found_in(self._load(name, source))

    def of(self, name: str, path: Path) -> Hashes:
        """The sorted hashes of a file that is at `path`."""
        return self._load(name, lambda: path)

    def in_memory(self, names: Sequence[str]) -> list[Hashes | None]:
        """The sorted hashes of each file, None where they have to be loaded first.

        Of all files at once, for with thousands of them a lock for each is most of a lookup.
        """
        with self._lock:
            found = [self._known.get(name) for name in names]
            for name, hashes in zip(names, found, strict=True):
                if hashes is not None:
                    self._known.move_to_end(name)
        return found

    def remember(self, name: str, hashes: Hashes) -> None:
        """Keep the hashes of a cold file just written."""
        self._store(name, np.sort(hashes))

    def forget(self, name: str) -> None:
        """Let a file's hashes go, because the file goes."""
        with self._lock:
            self._pop(name)
            self.checked.discard(name)
        with suppress(OSError):  # a cache that stays is only never read again
            self._path(name).unlink(missing_ok=True)

    def _load(self, name: str, source: Callable[[], Path]) -> Hashes:
        with self._lock:
            known = self._pop(name)
        if known is None:
            known = self.cached(name)
            if known is None:
                known = np.sort(read_hashes(source(), self._schema))
                if "/" in name:  # a cold file; segments have no folder
                    self._store(name, known)
        with self._lock:
            self._pop(name)  # another thread may have loaded it too
            self._known[name] = known
            self._bytes += known.nbytes
            while self._bytes > _MAPPED_BYTES and len(self._known) > 1:
                self._bytes -= self._known.popitem(last=False)[1].nbytes
        return known

    def _pop(self, name: str) -> Hashes | None:
        known = self._known.pop(name, None)
        self._bytes -= known.nbytes if known is not None else 0
        return known

    def _path(self, name: str) -> Path:
        return self._folder / ids_name(name)

    def _store(self, name: str, ordered: Hashes) -> None:
        """A cache: no fsync, because a damaged one is noticed by its checksum."""
        path = self._path(name)
        staged = path.with_suffix(f".{os.getpid()}")
        digest = xxhash.xxh3_64_digest(HASH_VERSION.encode() + ordered.tobytes())
        try:
            make_folder(self._folder)
            staged.write_bytes(_MAGIC + digest + ordered.tobytes())
            staged.replace(path)
        except (OSError, StorageError):  # it can be made again, from the file itself
            discard(staged)

    def cached(self, name: str) -> Hashes | None:
        """The hashes in a cold file's cache; None when it is missing, damaged or outdated."""
        try:
            require_file(self._path(name))
            with pa.memory_map(str(self._path(name))) as file:  # the map outlives the descriptor
                raw = np.frombuffer(file.read_buffer(), dtype=np.uint64)
        except (OSError, ValueError):
            return None
        if len(raw) < 2 or raw[:1].tobytes() != _MAGIC:
            return None
        hasher = xxhash.xxh3_64(HASH_VERSION.encode())
        hasher.update(raw[2:].data)
        return raw[2:] if hasher.digest() == raw[1:2].tobytes() else None


def read_hashes(path: str | Path, schema: TableSchema) -> Hashes:
    """Id hashes of a Parquet file's rows, in file order; reads two columns."""
    columns = [schema.event_id, schema.event_time]
    parts: list[Hashes] = []
    require_file(Path(path))
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for batch in file.iter_batches(batch_size=131_072, columns=columns):
            parts.append(hash_batch(batch, schema))
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)
