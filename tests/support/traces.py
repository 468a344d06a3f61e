"""Look for words in every byte of a lake, whatever it is packed in."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lakestore.idhash import hash_ids


def traces(folder: Path, words: Sequence[str], ids: pa.Array, times: pa.Array) -> dict[str, str]:
    """Files below a folder that have one of some words, or the hash of one of some ids: which."""
    hashes = {n.tobytes() for dedup in ("day", "none") for n in _hashes(ids, times, dedup)}
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        told = b"\n".join(_told(path))
        words_found = [word for word in words if word.encode() in told]
        if words_found:
            found[path.relative_to(folder).as_posix()] = words_found[0]
        elif path.suffix == ".ids" and any(hash in told for hash in hashes):
            found[path.relative_to(folder).as_posix()] = "the hash of an id"
    return found


def _hashes(ids: pa.Array, times: pa.Array, dedup: str) -> np.ndarray:
    return hash_ids(ids, times, dedup)


def _told(path: Path) -> Iterator[bytes]:
    """All that a file says: its bytes, and what they mean."""
    yield path.read_bytes()
    yield path.as_posix().encode()
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield str(batch.to_pylist()).encode()
            yield str(file.metadata.to_dict()).encode()
            yield str(file.metadata.metadata).encode()
    if path.suffix == ".duckdb":
        with duckdb.connect(str(path), read_only=True) as con:
            for (sql,) in con.execute(
                "SELECT sql FROM duckdb_views() WHERE NOT internal"
            ).fetchall():
                yield sql.encode()
            for (table,) in con.execute("SELECT table_name FROM duckdb_tables()").fetchall():
                yield str(con.sql(f'FROM "{table}"').fetchall()).encode()
