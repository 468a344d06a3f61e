"""The versions of a table's schema, as documents and the zero-row files beside them tell."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lakestore.errors import CorruptionError, SchemaError
from lakestore.layout import schema_key
from lakestore.lineage import Lineage
from lakestore.rebuild.sources import Found, Sources
from lakestore.schema import TableSchema


class Documents:
    """Those of one table."""

    def __init__(
        self,
        sources: Sources,
        found: Found,
        folder: str,
        texts: Mapping[int, str],
        footer: Callable[[Path, str], Mapping[str, Any]],
    ) -> None:
        """Documents by version, committed or not.

        Args:
            footer: that of a file of the table, by its path and what to call it.
        """
        self.texts = texts
        self._sources = sources
        self._storage = sources.storage
        self._found = found
        self._folder = folder
        self._footer = footer

    def schemas(self) -> dict[int, TableSchema] | None:
        """What they say; None when one is damaged, which is a problem."""
        schemas = {version: self._schema(version) for version in self.texts}
        known = {version: schema for version, schema in schemas.items() if schema is not None}
        return known if len(known) == len(schemas) else None

    def lineage(
        self, schemas: Mapping[int, TableSchema], used: set[int], listed: Sequence[int] | None
    ) -> Lineage:
        """The versions that were committed, as far as files tell.

        A log lists them. Else it is the newest document whose line has all versions that rows are
        of, and beside which there is a zero-row file: a version is committed after both. One that
        never was may be taken for one.

        Args:
            used: versions that rows are of.
            listed: what a log lists.

        Raises:
            CorruptionError: a document that is needed is gone.
        """
        for line in self._lines(schemas) if listed is None else [listed]:
            if used <= set(line) <= schemas.keys():
                return Lineage({version: schemas[version] for version in line})
        raise CorruptionError(
            f"its rows are of schema versions {sorted(used)}, and their documents are not there: "
            f"restore {self._storage.url(schema_key(self._folder, max(used)))!r}"
        )

    def _lines(self, versions: Iterable[int]) -> list[Sequence[int]]:
        """Up to each version those that led to it, as its zero-row file tells; the newest first.

        Without one, all that are there; those come last.
        """
        told, guessed = list[Sequence[int]](), list[Sequence[int]]()
        for version in sorted(versions, reverse=True):
            key = schema_key(self._folder, version, "parquet")
            every = [number for number in sorted(self.texts) if number <= version]
            try:
                if self._storage.size(key) is None:
                    guessed.append(every)
                    continue
                footer = self._footer(self._sources.fetched(key), self._storage.url(key))
                told.append([int(number) for number in footer.get("versions", [version])])
            except CorruptionError:  # a cache: `verify` says so, and repairs it
                told.append(every)
        return told + guessed

    def _schema(self, version: int) -> TableSchema | None:
        path = self._storage.url(schema_key(self._folder, version))
        key = schema_key(self._folder, version, "parquet")
        empty = self._storage.url(key)
        text = self.texts[version]
        try:
            schema = TableSchema.from_toml(text)
            there = self._storage.size(key) is not None
            footer = self._footer(self._sources.fetched(key), empty) if there else None
            if footer is not None and footer.get("document") != text:
                self._found.problems.append(f"{path!r} is not what {empty!r} says of it")
                return None
        except SchemaError as error:
            self._found.problems.append(f"{path!r} is damaged: {error}")
            return None
        except CorruptionError:  # a cache: `verify` says so, and repairs it
            pass
        return schema
