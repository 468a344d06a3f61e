"""Verify caches: a segment's DuckDB file, id hashes of cold files, `lake.duckdb`.

Files are opened in a DuckDB of their own: a damaged one must not bring down the instance that
answers this process's queries. Opening a file a second time lets go of the lock that DuckDB has
on it, which is no loss: published files are only ever read.
"""

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb
import numpy as np

from lakestore import quoting
from lakestore.engine import sorter
from lakestore.errors import CorruptionError
from lakestore.fileids import FileIds
from lakestore.hot import EVENTS
from lakestore.idhash import Hashes
from lakestore.layout import PartialName, ids_name
from lakestore.schema import TableSchema
from lakestore.storage.local import raise_refusal, require_file
from lakestore.verify.report import REPAIR, Problem

_FLAT_DAY = re.compile(r"^\w+=\d{4}-\d{2}-\d{2}-")
_PARQUET = re.compile(r"'((?:[^']|'')*\.parquet)'")


@contextmanager
def reader() -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB of its own to read files in."""
    with (
        tempfile.TemporaryDirectory(prefix="lakestore-verify-") as folder,
        sorter(Path(folder)) as con,
    ):
        yield con


def check_twin(
    con: duckdb.DuckDBPyConnection, table: str, schema: TableSchema, parquet: Path, twin: Path
) -> Problem | None:
    """Whether a segment's DuckDB file holds the very rows of its Parquet file."""
    columns = quoting.identifiers(schema.names)
    fold = f"SELECT count(*), sum(hash({columns})), bit_xor(hash({columns})) FROM "
    source = f"read_parquet({quoting.literals([str(parquet)])}, hive_partitioning = false)"
    if not twin.exists():
        return _cache("twin", table, twin, "the segment's DuckDB file is gone", "twin")
    try:
        require_file(twin)
        con.execute(f"ATTACH {quoting.literal(str(twin))} AS twin (READ_ONLY)")
        try:
            same = (
                con.execute(f"{fold} twin.{EVENTS}").fetchall()
                == con.execute(f"{fold} {source}").fetchall()
            )
        finally:
            con.execute("DETACH twin")
    except (duckdb.Error, OSError) as error:
        raise_refusal(f"cannot read {str(twin)!r}", error)
        what = f"DuckDB cannot read it: {str(error).splitlines()[0]}"
        return _cache("twin", table, twin, what, "twin")
    if not same:
        what = f"it does not hold the rows of {parquet.name!r}"
        return _cache("twin", table, twin, what, "twin")
    return None


def check_ids(table: str, ids: FileIds, folder: Path, name: str, hashes: Hashes) -> Problem | None:
    """Whether the cached id hashes of a cold file, if there are any, are its own."""
    path = folder / ids_name(name)
    cached = ids.cached(name)
    if not path.exists():  # made when it is first needed
        return None
    if cached is None:
        return _cache("ids", table, path, "it is damaged, or of another version", "ids")
    if not np.array_equal(cached, np.sort(hashes)):
        return _cache("ids", table, path, "it holds other ids than its cold file", "ids")
    return None


def check_views(
    con: duckdb.DuckDBPyConnection,
    path: Path,
    version: int,
    expected: Mapping[str, Sequence[str]],
    *,
    follows: bool,
) -> Problem | None:
    """Whether `lake.duckdb` lists what is published; for when nothing is committed meanwhile.

    Args:
        version: the catalog's; an older one is a crash's doing, and the next publish's to mend.
        expected: the files of each table's view.
        follows: there are logs that others add to: what is listed may be older than they are.
    """
    if not path.exists():
        return _cache("views", None, path, "it is gone", "views")
    try:
        require_file(path)
        con.execute(f"ATTACH {quoting.literal(str(path))} AS views (READ_ONLY)")
        try:
            generation, _ = con.execute("SELECT generation, n_rows FROM views._lake").fetchall()[0]
            rows = con.execute(
                "SELECT view_name, sql FROM duckdb_views() "
                "WHERE database_name = 'views' AND NOT internal"
            ).fetchall()
        finally:
            con.execute("DETACH views")
    except (duckdb.Error, OSError, LookupError, UnicodeDecodeError) as error:
        raise_refusal(f"cannot read {str(path)!r}", error)
        what = f"DuckDB cannot read it: {str(error).splitlines()[0]}"
        return _cache("views", None, path, what, "views")
    listed = {
        name: {text.replace("''", "'") for text in _PARQUET.findall(sql)}
        for name, sql in rows
        if name != "_lake"
    }
    tables = {name: listed.pop(name) for name in expected.keys() & listed.keys()}
    if tables == {name: set(files) for name, files in expected.items()} and all(
        _is_of_rollup(name, files, expected) for name, files in listed.items()
    ):
        return None
    if generation < version or follows:
        what = "it shows an older state of the lake; the next publish replaces it"
        return Problem("views", "leftover", None, path, what, REPAIR, "views")
    return _cache("views", None, path, "it does not list the files that are published", "views")


def _is_of_rollup(view: str, listed: set[str], expected: Mapping[str, Sequence[str]]) -> bool:
    """Whether a view lists, for each file of its table, its rows or their partial."""
    shown = {_data_file(path) for path in listed}
    return any(
        view.startswith(f"{name}_rollup_") and shown == {_data_file(file) for file in files}
        for name, files in expected.items()
    )


def _data_file(path: str) -> str:
    """The name, without folders, of the data file that a path is, or is the partial of."""
    name = Path(path).name
    with suppress(CorruptionError):
        name = PartialName.parse(name).file
    return _FLAT_DAY.sub("", name)


def _cache(kind: str, table: str | None, path: Path, what: str, repair: str) -> Problem:
    return Problem(kind, "cache", table, path, what, REPAIR, repair)  # type: ignore[arg-type]
