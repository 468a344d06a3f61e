"""The versions of a table's schema, and how rows of an older one are read as those of the newest.

Files of one version are read alike, by explicit lists of columns, so that nobody has to open all
files to learn what is in them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from lakestore import quoting
from lakestore.columns import Column, queried_type
from lakestore.errors import CorruptionError
from lakestore.evolution import origins_in
from lakestore.schema import FILE_ROW, TableSchema

FOREIGN = 0
"""The version of a file of another engine, which does not say."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class Projection:
    """Rows of one version of a schema as rows of another."""

    schema: TableSchema
    """Of the rows that come out."""
    origins: tuple[Column | None, ...]
    """For each of its columns what it was; None where there was none."""
    is_foreign: bool = False
    """Whether the rows are of another engine, which may have left columns out."""

    @cached_property
    def is_plain(self) -> bool:
        """Whether the rows have the same columns, in whatever order."""
        return not self.is_foreign and all(
            origin is not None
            and origin.name == column.name
            and origin.arrow_type.equals(column.arrow_type)
            for column, origin in zip(self.schema.columns, self.origins, strict=True)
        )

    @cached_property
    def names(self) -> Mapping[str, str]:
        """What the columns are called in the rows that come in; of those that are there."""
        pairs = zip(self.schema.names, self.origins, strict=True)
        return {name: origin.name for name, origin in pairs if origin is not None}

    def select(self, names: Sequence[str], source: str, where: str = "") -> str:
        """A SELECT of columns of the rows.

        Args:
            names: as the rows that come out call them.
            source: what stands after FROM.
            where: blank and a WHERE clause over the columns that come out, or nothing.
        """
        shown = quoting.identifiers(names)
        if self.is_plain:
            return f"SELECT {shown} FROM {source}{where}"
        if not where:
            return f"SELECT {self._expressions(names)} FROM {source}"
        whole = self._expressions(self.schema.names)
        return f"SELECT {shown} FROM (SELECT {whole} FROM {source}){where}"

    def read(
        self,
        names: Sequence[str],
        paths: Sequence[str],
        where: str = "",
        *,
        numbered: bool = False,
    ) -> str:
        """As `select`, of Parquet files that are all of these rows.

        Args:
            numbered: with the columns `filename` and `file_row_number`.
        """
        files = f"{quoting.literals(paths)}, hive_partitioning = false"
        if numbered:
            files += ", filename = true, file_row_number = true"
            shown = ", ".join((self._expressions(names), "filename", FILE_ROW))
            return f"SELECT {shown} FROM {self._source(files)}{where}"
        return self.select(names, self._source(files), where)

    def _source(self, files: str) -> str:
        """What stands after FROM for Parquet files."""
        if not self.is_foreign:
            return f"read_parquet({files})"
        # The columns that they lack come from a relation without rows, which has them all.
        nothing = ", ".join(_expression(column, None) for column in self.schema.columns)
        return (
            f"(SELECT {nothing} WHERE false UNION ALL BY NAME "
            f"FROM read_parquet({files}, union_by_name = true))"
        )

    def _expressions(self, names: Sequence[str]) -> str:
        pairs = zip(self.schema.columns, self.origins, strict=True)
        made = {column.name: _expression(column, origin) for column, origin in pairs}
        return ", ".join(made[name] for name in names)

    def table(self, rows: pa.Table) -> pa.Table:
        """Arrow rows, with the columns that come out in their order."""
        columns = []
        for column, origin in zip(self.schema.columns, self.origins, strict=True):
            if origin is None:
                columns.append(pa.nulls(rows.num_rows, column.arrow_type))
                continue
            values = rows.column(origin.name)
            if not values.type.equals(column.arrow_type):
                values = pc.cast(values, column.arrow_type)
            columns.append(values)
        return pa.table(columns, schema=self.schema.arrow)

    def batches(self, batches: Sequence[pa.RecordBatch]) -> Sequence[pa.RecordBatch]:
        """As `table`, batch by batch."""
        if not batches or batches[0].schema.equals(self.schema.arrow):
            return batches
        made = (self.table(pa.Table.from_batches([batch])) for batch in batches)
        return [batch for one in made for batch in one.to_batches()]


def _expression(column: Column, origin: Column | None) -> str:
    name, kind = quoting.identifier(column.name), queried_type(column.sql_type)
    if origin is None:
        return f"CAST(NULL AS {kind}) AS {name}"
    source = quoting.identifier(origin.name)
    if not origin.arrow_type.equals(column.arrow_type):
        return f"CAST({source} AS {kind}) AS {name}"
    return source if origin.name == column.name else f"{source} AS {name}"


class Lineage:
    """The versions of a table's schema that are known, each made from the one before it."""

    def __init__(self, versions: Mapping[int, TableSchema]) -> None:
        """A lineage of at least one version, in the form that an append takes."""
        self.versions = dict(sorted(versions.items()))
        self.newest = max(self.versions)
        self.schema = self.versions[self.newest]
        self._stored: dict[int, Projection] = {}
        self._buffered: dict[int, Projection] = {}

    def __contains__(self, version: object) -> bool:
        return version in self.versions

    @property
    def is_single(self) -> bool:
        """Whether there never was another version."""
        return len(self.versions) == 1

    def accepts(self, version: int) -> TableSchema:
        """The schema of a version; raises `CorruptionError` when there is no such version."""
        if version not in self.versions:
            raise CorruptionError(
                f"rows are of schema version {version}, and known are "
                f"{', '.join(map(str, self.versions))}: run `lakestore verify`"
            )
        return self.versions[version]

    def stored_in(self, version: int) -> TableSchema:
        """What files of a version hold; of another engine's, what is in the newest."""
        return self.schema.stored if version == FOREIGN else self.accepts(version).stored

    def stored(self, version: int) -> Projection:
        """Rows of segments and cold files of a version, as those of the newest."""
        return self._projection(self._stored, version, lambda schema: schema.stored)

    def buffered(self, version: int) -> Projection:
        """Rows of journals of a version, as those of the newest."""
        return self._projection(self._buffered, version, lambda schema: schema.buffered)

    def _projection(
        self, known: dict[int, Projection], version: int, form: Callable[[TableSchema], TableSchema]
    ) -> Projection:
        if version not in known:
            have = form(self.schema if version == FOREIGN else self.accepts(version))
            want = form(self.schema)
            source = self._origins(version) if version != FOREIGN else {n: n for n in want.names}
            columns = {column.name: column for column in have.columns}
            # What takes the place of a payload column has a name of its own, and keeps it.
            found = tuple(columns.get(source.get(n, n) or "") for n in want.names)
            known[version] = Projection(want, found, version == FOREIGN and not self.is_single)
        return known[version]

    def _origins(self, version: int) -> dict[str, str | None]:
        """What each column of the newest version was in an older one."""
        return origins_in([s for number, s in self.versions.items() if number >= version])

    def relation(self, files: Iterable[tuple[int, str]], *, numbered: bool = False) -> str:
        """What stands after FROM for all columns of Parquet files; of one at least.

        Args:
            files: each with its version.
            numbered: as in `Projection.read`.
        """
        groups = self.grouped(files)
        if len(groups) == 1 and groups[0][0].is_plain:
            numbers = ", filename = true, file_row_number = true" if numbered else ""
            paths = quoting.literals(groups[0][1])
            return f"read_parquet({paths}, hive_partitioning = false{numbers})"
        names = self.schema.stored.names
        parts = (one.read(names, paths, numbered=numbered) for one, paths in groups)
        return f"({' UNION ALL '.join(parts)})"

    def grouped(self, files: Iterable[tuple[int, Item]]) -> list[tuple[Projection, list[Item]]]:
        """Files by how they are read, those of the newest version first.

        Args:
            files: each with its version.
        """
        plain: list[Item] = []
        others: dict[int, list[Item]] = {}
        for version, item in files:
            if version == self.newest or self.stored(version).is_plain:
                plain.append(item)
            else:
                others.setdefault(version, []).append(item)
        groups = [(self.stored(self.newest), plain)] if plain else []
        return groups + [(self.stored(v), others[v]) for v in sorted(others, reverse=True)]
