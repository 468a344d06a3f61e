"""The file of one partial: small Parquet whose footer holds a digest of all its bytes.

Readers give wrong values for most flipped bits, and page checksums do not cover the footer.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from lakestore.datafile import FOOTER_KEY, UNREADABLE, leaves
from lakestore.storage.local import open_to_read

_UNSIGNED = "0" * 16  # what the digest is while it is taken


def write(path: Path, partial: pa.Table, footer: Mapping[str, Any], *, codec: str = "zstd") -> None:
    """Write the partial of a rollup, which is small, with a digest of its bytes; not fsynced.

    Sums have no dictionaries, being as many as rows. Split into streams of bytes they would take a
    tenth less, but DuckDB 2.0 does not read decimals so.
    """
    told = {FOOTER_KEY: json.dumps({**footer, "digest": _UNSIGNED})}
    sink = pa.BufferOutputStream()
    pq.write_table(
        partial.replace_schema_metadata(told),
        sink,
        compression=codec,
        use_dictionary=leaves(partial.schema, pa.types.is_decimal, wanted=False),
        write_statistics=[partial.schema.names[0]],
        write_page_checksum=True,
    )
    data = sink.getvalue().to_pybytes()
    head, _, tail = data.rpartition(_UNSIGNED.encode())
    path.write_bytes(head + xxhash.xxh3_64_hexdigest(data).encode() + tail)


def read(path: Path, schema: pa.Schema, footer: Mapping[str, Any]) -> pa.Table | None:
    """A partial; None when it is missing, damaged, or says something else of itself."""
    with suppress(*UNREADABLE), _opened(path, schema, footer) as parquet:
        return parquet.read(use_threads=False).replace_schema_metadata(None)
    return None


def is_intact(path: Path, schema: pa.Schema, footer: Mapping[str, Any]) -> bool:
    """Whether a partial could be read."""
    with suppress(*UNREADABLE), _opened(path, schema, footer):
        return True
    return False


@contextmanager
def _opened(path: Path, schema: pa.Schema, footer: Mapping[str, Any]) -> Iterator[pq.ParquetFile]:
    """The file, if it is whole; raises `ValueError` and what reading damaged bytes raises."""
    with open_to_read(path) as file:
        data = file.read()
    with pq.ParquetFile(pa.BufferReader(data)) as parquet:
        told = json.loads((parquet.metadata.metadata or {})[FOOTER_KEY])
        digest = told.pop("digest")
        head, _, tail = data.rpartition(digest.encode())
        whole = xxhash.xxh3_64_hexdigest(head + _UNSIGNED.encode() + tail) == digest
        if not (whole and told == footer and parquet.schema_arrow.equals(schema)):
            raise ValueError(f"{str(path)!r} is not that partial")
        yield parquet
