"""What a failed query means: wrong SQL, a damaged file, or too little of something."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb

from lakestore.context import TableContext
from lakestore.datafile import read_footer, sha256
from lakestore.engine import duckdb_error
from lakestore.errors import CorruptionError, InvalidInputError, NotFoundError, StorageError
from lakestore.instances import LOST, interrupted
from lakestore.settings import GIB
from lakestore.snapshot import FileInfo
from lakestore.storage.local import refusal

FAILURES = (duckdb.Error, OSError, ValueError, RecursionError)
"""What DuckDB's Python package raises; Arrow hands some of DuckDB's errors on as an OSError."""

_READ_MAX = 1 * GIB
"""How much is read, after a query has failed, to find the damaged file by its sha256."""
_UNREADABLE = "a file of the lake cannot be read"


def may_be_damage(error: Exception) -> bool:
    """Whether a DuckDB file of a segment may be at fault, or DuckDB itself."""
    if interrupted(error) or "requires the extension" in str(error):
        return False
    return (
        isinstance(error, (duckdb.IOException, duckdb.SerializationException, OSError, *LOST))
        or type(error) is duckdb.Error
        or any(word in str(error) for word in ("orrupt", "No files found"))
    )


def translated(error: Exception, tables: Sequence[TableContext]) -> Exception:
    """The error to raise in the place of DuckDB's.

    Args:
        tables: those the statement names.

    Raises:
        KeyboardInterrupt: that is what it was.
    """
    message = str(error).strip()
    if interrupted(error):
        raise KeyboardInterrupt from error
    if isinstance(error, duckdb.CatalogException) and "Table with name" in message:
        names = ", ".join(table.entry.name for table in tables) or "none yet"
        first = message.split("\n", 1)[0]
        return NotFoundError(f"{first} The lake's tables: {names}")
    if isinstance(error, duckdb.OutOfMemoryException):
        return StorageError(f"the query needs more memory than memory_bytes allows: {error}")
    if not may_be_damage(error) and not names_a_file(message, tables):
        return InvalidInputError(message)
    refused = refusal(_UNREADABLE, error)
    if refused is not None:
        return refused
    damage = _damage(tables)
    if damage is not None:
        return CorruptionError(f"{damage}; restore it from a copy")
    if names_a_file(message, tables):
        return CorruptionError(f"{_UNREADABLE}: {message}")
    if isinstance(error, LOST):
        return StorageError(f"DuckDB failed in this query, and is started anew: {message}")
    return duckdb_error("a file cannot be read (`lakestore verify` names it if it is ours)", error)


def names_a_file(message: str, tables: Sequence[TableContext]) -> bool:
    """Whether an error is about a file of a table: DuckDB calls bad bytes invalid input too."""
    folders = {
        str(folder)
        for table in tables
        for folder in (table.hot_folder, table.payload_folder, table.site.layout.files)
    }
    folders |= {table.site.storage.url(f"tables/{table.entry.folder}") for table in tables}
    return any(f"{folder}/" in message for folder in folders)


def _damage(tables: Sequence[TableContext]) -> str | None:
    """What is wrong with the first file that is not what was published, as far as it is cheap.

    DuckDB's errors do not always say which file it was.
    """
    files = list(_files(tables))
    thorough = sum(info.bytes for _, info in files) <= _READ_MAX
    for path, info in files:
        try:
            size = path.stat().st_size
            if size != info.bytes:
                return f"{str(path)!r} has {size:,} bytes of {info.bytes:,}"
            read_footer(path)
            if thorough and sha256(path) != info.sha256:
                return f"{str(path)!r} is not what was published"
        except FileNotFoundError:
            return f"{str(path)!r} is gone"
        except CorruptionError as error:
            return str(error)
        except (OSError, StorageError) as error:
            return f"{str(path)!r} cannot be read: {error}"
    return None


def _files(tables: Sequence[TableContext]) -> Iterator[tuple[Path, FileInfo]]:
    for table in tables:
        state = table.state()
        for segment in state.hot:
            yield table.segment_path(segment), segment.info
        for file in state.cold if not table.site.storage.remote else ():
            yield table.cold_path(file), file.info
