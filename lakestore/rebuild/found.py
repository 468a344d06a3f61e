"""What the files of a lake say of its tables, without a catalog."""

from collections import defaultdict

from lakestore.catalog.records import Garbage, Sent, TableRecord
from lakestore.layout import (
    parse_schema_name,
    schema_key,
    split_folder,
    tombstone_key,
)
from lakestore.rebuild.sources import Found, Shared, Sources
from lakestore.rebuild.tables import TableReader
from lakestore.snapshot import TableState
from lakestore.verify.journals import list_journals

_NOTHING = TableState(0, 0, (), (), frozenset())


class Finder:
    """Reads what is on the disk, table by table; lists its names at once."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._storage = sources.storage
        self._layout = sources.layout
        self._keys: dict[str, list[str]] = defaultdict(list)
        for key in self._storage.list("tables/"):
            self._keys[key.split("/")[1]].append(key)

    def find(self, shared: Shared | None) -> Found:
        """All tables; where a file does not fit, a problem that says so.

        Args:
            shared: what is known where sites share the catalog. What it lists was read after the
                names were: a table that is dropped meanwhile has no tombstone among them.
        """
        found = Found()
        folders = set(self._keys)
        for kind in ("hot", "journal"):
            folders |= {path.name for path in (self._layout.local / kind).glob("*")}
        newest: dict[str, tuple[int, str]] = {}
        for folder in folders:
            if self._is_table(folder):
                name, number = split_folder(folder)
                best = newest.get(name.casefold(), (0, ""))
                newest[name.casefold()] = max(best, (number, folder))
        for folder in sorted(folders):
            if shared is not None and shared.listed is not None:
                if not self._is_listed(folder, shared, found):
                    continue
                dropped = folder in shared.dropped
            else:
                _, current = newest.get(split_folder(folder)[0].casefold(), (0, ""))
                # A folder is made while no table has its name: those before it were dropped.
                dropped = folder != current or tombstone_key(folder) in self._keys[folder]
            record = self._table(folder, shared, found, dropped=dropped)
            if record is not None:
                found.tables.append(record)
        return found

    def _is_table(self, folder: str) -> bool:
        """Whether it is more than a table that was about to be made."""
        data = any(not key.startswith(f"tables/{folder}/schema/") for key in self._keys[folder])
        return data or self._has_rows_here(folder) or bool(self._documents(folder))

    def _has_rows_here(self, folder: str) -> bool:
        segments = any(self._layout.hot(folder).glob("*.parquet"))
        return segments or bool(list_journals(self._layout, folder))

    def _is_listed(self, folder: str, shared: Shared, found: Found) -> bool:
        """Whether a catalog that sites share lists a table; it has to where rows are here."""
        assert shared.listed is not None
        if folder in shared.dropped:
            return True
        if folder not in shared.listed:
            if self._has_rows_here(folder):
                found.problems.append(f"there are rows of {folder!r}, which the catalog lists not")
            return False
        if tombstone_key(folder) in self._keys[folder]:
            found.problems.append(
                f"the catalog lists the table in {folder!r}, and "
                f"{self._storage.url(tombstone_key(folder))!r} says that it was dropped"
            )
            return False
        return True

    def _documents(self, folder: str) -> dict[int, str]:
        """The schema documents of a folder, by version."""
        documents = {}
        for key in self._keys[folder]:
            version = parse_schema_name(key.rsplit("/", 1)[1])
            if version is not None and key == schema_key(folder, version):
                try:
                    documents[version] = self._storage.read(key).decode()
                except UnicodeDecodeError:
                    documents[version] = ""  # damaged, as its zero-row file will show
        return documents

    def _table(
        self, folder: str, shared: Shared | None, found: Found, *, dropped: bool
    ) -> TableRecord | None:
        documents = self._documents(folder)
        if dropped:
            gone = (Garbage(0, 0, folder, "table", "", 0),)
            name, none = split_folder(folder)[0], frozenset[Sent]()
            return TableRecord(
                0, name, folder, "parquet", True, 0, documents, {}, none, gone, _NOTHING
            )
        if not documents:
            if self._is_table(folder):
                found.problems.append(
                    f"table {folder!r} has files, and its schema document is gone: restore "
                    f"{self._storage.url(schema_key(folder, 1))!r}"
                )
            return None
        return TableReader(
            self._sources, shared, folder, documents, self._keys[folder], found
        ).read()
