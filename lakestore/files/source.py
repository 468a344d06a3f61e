"""Where a file's bytes come from: plain, gzip, one CSV in a zip, or standard input.

What cannot be read twice (stdin, a zip's member) is spooled to a temporary file.
"""

import gzip
import hashlib
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from lakestore.errors import InvalidInputError, NotFoundError, StorageError

FORMATS = ("csv", "ndjson", "arrow", "parquet")
SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".json": "ndjson",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}


@dataclass(frozen=True)
class Source:
    """A file that can be read again and again; `name` is what the user called it."""

    name: str
    path: Path
    format: str
    gzipped: bool

    def open(self) -> IO[bytes]:
        """Its bytes, decompressed."""
        if self.gzipped:
            return cast(IO[bytes], gzip.open(self.path, "rb"))
        return self.path.open("rb")

    def digest(self) -> str:
        """The sha256 of its content, as it is stored."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def open_source(name: str, form: str | None) -> Iterator[Source]:
    """The source that an argument of the command line names; `-` is standard input.

    Raises:
        NotFoundError: there is no such file.
        InvalidInputError: its name does not tell a format and none is given.
        StorageError: it cannot be read, or there is no room to spool it.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="lakestore-") as folder:
            yield _resolve(name, form, Path(folder))
    except (zipfile.BadZipFile, gzip.BadGzipFile, EOFError) as error:
        raise InvalidInputError(f"{name}: damaged archive: {error}") from error
    except OSError as error:
        raise StorageError(f"{name}: cannot be read: {error}") from error


def _resolve(name: str, form: str | None, spool: Path) -> Source:
    if name == "-":
        if form is None:
            raise InvalidInputError(f"stdin has no name: add --format {'|'.join(FORMATS)}")
        path = spool / "stdin"
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
        return Source("stdin", path, form, gzipped=False)
    path = Path(name)
    if not path.exists():
        raise NotFoundError(f"no file {name!r}")
    if path.is_dir():
        raise InvalidInputError(f"{name!r} is a folder; name the files in it")
    if path.suffix.lower() == ".zip":
        member = _unzip(path, spool)
        return Source(name, member, form or _format_of(name, member), gzipped=False)
    gzipped = path.suffix.lower() == ".gz"
    return Source(name, path, form or _format_of(name, path), gzipped)


def _format_of(name: str, path: Path) -> str:
    inner = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    form = SUFFIXES.get(inner.suffix.lower())
    if form is None:
        raise InvalidInputError(
            f"{name!r}: its name does not tell a format: add --format {'|'.join(FORMATS)}"
        )
    return form


def _unzip(path: Path, spool: Path) -> Path:
    """The only data file of a zip, extracted; other members, such as a readme, do not count."""
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if Path(n).suffix.lower() in SUFFIXES]
        names = [n for n in names if not n.startswith("__MACOSX/")]
        if len(names) > 1:  # a readme.txt beside the data
            names = [n for n in names if Path(n).suffix.lower() != ".txt"]
        if len(names) != 1:
            raise InvalidInputError(
                f"{str(path)!r} holds {len(names)} data files, and must hold one: unzip it, "
                "and name the files"
            )
        target = spool / ("member" + Path(names[0]).suffix.lower())
        with archive.open(names[0]) as member, target.open("wb") as file:
            shutil.copyfileobj(member, file, 1 << 20)
    return target
