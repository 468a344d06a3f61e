"""The view of a table's payloads, `usage_payload`: a row for each event that has one."""

from collections.abc import Iterable, Sequence

from lakestore import quoting
from lakestore.context import TableContext
from lakestore.kept import SAME_AS
from lakestore.schema import FILE_ROW, TableSchema
from lakestore.snapshot import ColdFile, Segment

_FILE = "lakestore_file"


def view_name(table: str) -> str:
    """What the view of a table's payloads is called, unless a table has that name."""
    return f"{table}_payload"


def payload_names(files: Iterable[Segment | ColdFile]) -> list[str]:
    """Names of the payload files that the rows of some files refer to, in order."""
    return sorted({name for file in files for name in file.info.payload})


def hot_paths(table: TableContext, segments: Sequence[Segment]) -> list[str]:
    """Where the payload files of segments are."""
    return [str((table.payload_folder / n).absolute()) for n in payload_names(segments)]


def select(schema: TableSchema, paths: Sequence[str]) -> str:
    """The query of payload files: the events in them, each with the payload that is its own.

    An event whose payload another row has is joined with it; who looks for one event by its id or
    time has the filter reach the files all the same.

    Args:
        schema: the table's, in the form that an append takes.
        paths: what DuckDB opens for the files; one at least.
    """
    shown = schema.payload_view.names
    of_event = [f"event.{quoting.identifier(name)}" for name in shown[:2]]
    of_other = [f"other.{quoting.identifier(name)}" for name in shown[2:]]
    return (
        f"WITH files AS NOT MATERIALIZED (FROM read_parquet({quoting.literals(paths)}, "
        f"hive_partitioning = false, filename = '{_FILE}', file_row_number = true)) "
        f"SELECT {quoting.identifiers(shown)} FROM files WHERE {SAME_AS} IS NULL "
        f"UNION ALL SELECT {', '.join((*of_event, *of_other))} FROM files AS event "
        f"JOIN files AS other ON event.{_FILE} = other.{_FILE} "
        f"AND event.{SAME_AS} = other.{FILE_ROW}"
    )
