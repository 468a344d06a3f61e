"""What commands print: JSON for programs, tables for people, and a query's answer in a format."""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import duckdb
import pyarrow as pa
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lakestore import quoting
from lakestore.errors import InvalidInputError, StorageError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]
LakeFolder = Annotated[str, typer.Argument(metavar="LAKE", help="The lake: a folder, or s3://…")]
TableName = Annotated[str, typer.Argument(metavar="TABLE", help="The table's name.")]

FORMATS = ("table", "csv", "json", "ndjson", "parquet")
_COPY = {
    "csv": "FORMAT csv, HEADER",
    "json": "FORMAT json, ARRAY true",
    "ndjson": "FORMAT json",
    "parquet": "FORMAT parquet, COMPRESSION zstd",
}


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on a line of stdout."""
    print(json.dumps(value, default=str))


def console() -> Console:
    """Where people read: stdout, without guessing what numbers or paths are."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def human_bytes(size: float) -> str:
    """A size as people say it: `12.3 MB`."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def write_result(table: pa.Table, form: str, path: Path) -> None:
    """Write rows to a file in a format that DuckDB writes.

    Raises:
        StorageError: the file cannot be written.
        InvalidInputError: the format has no such type.
    """
    with duckdb.connect(config={"python_enable_replacements": False}) as con:
        con.execute("SET GLOBAL TimeZone = 'UTC'")
        con.execute("SET enable_progress_bar = false")  # DuckDB would draw it on stdout
        con.register("answer", table)
        try:
            con.execute(f"COPY answer TO {quoting.literal(str(path))} ({_COPY[form]})")
        except duckdb.IOException as error:
            raise StorageError(f"cannot write {str(path)!r}: {error}") from error
        except duckdb.Error as error:
            raise InvalidInputError(f"cannot write this as {form}: {error}") from error


def print_result(table: pa.Table, form: str) -> None:
    """The rows on stdout, in a format that DuckDB writes."""
    with tempfile.TemporaryDirectory(prefix="lakestore-") as folder:
        path = Path(folder) / "answer"
        write_result(table, form, path)
        sys.stdout.flush()
        with path.open("rb") as answer:
            shutil.copyfileobj(answer, sys.stdout.buffer)
        sys.stdout.buffer.flush()


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Any]:
    """A bar on stderr when somebody watches; yields what to call with the number done so far."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda done: None
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
