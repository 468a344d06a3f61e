"""Verify the log of a Delta table: that every version is there, and what it adds up to."""

from collections.abc import Sequence
from dataclasses import replace

from lakestore.catalog.records import TableEntry, TableRecord
from lakestore.context import cold_table
from lakestore.errors import CorruptionError, FormatTooNewError
from lakestore.layout import ColdName, log_prefix, log_version_name, parse_log_version
from lakestore.opensite import SiteContext
from lakestore.schema import TableSchema
from lakestore.verify.objects import Objects
from lakestore.verify.report import RESTORE, Problem
from lakestore.verify.tiers import Footers, partial_seals, sealed_ranges
from lakestore.versions import document


def with_log(site: SiteContext, record: TableRecord, schema: TableSchema) -> TableRecord:
    """What the catalog says of a table, with what lists its cold files, read anew.

    Raises:
        CorruptionError: the log is damaged.
        FormatTooNewError: it needs what lakestore cannot read.
        StorageError: it cannot be read for now.
    """
    version = max(record.schemas, default=1)
    entry = TableEntry(record.id, record.name, record.folder, record.cold, version, schema.text)
    cold = cold_table(site, entry, schema)
    state = cold.current(record.state, newest=True)
    # The catalog follows the log, and may not have done so yet.
    ahead = [number for number in cold.versions() if number > version]
    texts = {number: document(site, record.folder, number) for number in ahead}
    return replace(
        record,
        state=state,
        schemas={**record.schemas, **texts},
        replaced=frozenset(cold.replaced()),
    )


def log_problem(objects: Objects, record: TableRecord, error: Exception) -> Problem:
    """The problem that reading a log raised."""
    assert isinstance(error, CorruptionError | FormatTooNewError)
    path = objects.path(log_prefix(record.folder)[:-1])
    return Problem("log", "damage", record.name, path, str(error), RESTORE)


def check_versions(objects: Objects, record: TableRecord, keys: Sequence[str]) -> list[Problem]:
    """Versions that lie beyond one that is missing: what they say is not read.

    Args:
        keys: the lake's files, listed before the log was read.
    """
    prefix = log_prefix(record.folder)
    names = [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
    known = record.state.cold_version
    beyond = [v for name in names if (v := parse_log_version(name)) is not None and v > known]
    if not beyond:
        return []
    path = objects.path(prefix + log_version_name(known + 1))
    what = f"it is missing, and the log goes on to version {max(beyond)}"
    return [Problem("log", "damage", record.name, path, what, RESTORE)]


def own_files(record: TableRecord, site: str) -> set[str]:
    """Names of a table's files that this site made."""
    own = {segment.name for segment in record.state.hot}
    for file in record.state.cold:
        try:
            if ColdName.parse(file.name).site == site:
                own.add(file.name)
        except CorruptionError:
            if record.cold == "parquet":  # else another engine has named it
                own.add(file.name)
    return own


def only(record: TableRecord, names: set[str]) -> TableRecord:
    """A table with those of its cold files alone."""
    cold = tuple(file for file in record.state.cold if file.name in names)
    return replace(record, state=replace(record.state, cold=cold))


def keeps_all_seals(record: TableRecord, footers: Footers, gone: Footers, site: str) -> bool:
    """Whether every cold file that a site made is still there.

    Others may compact and delete: what the footers of the rest say is not all then.
    """
    own = only(record, own_files(record, site))
    last = 0
    for first, end in sealed_ranges(own, gone):
        if first != last + 1:
            return False
        last = end
    return last == record.state.sealed_through and not partial_seals(own, footers, gone)
