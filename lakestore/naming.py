"""Names of a batch's columns → the table's: those that were renamed, and those that are new."""

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from lakestore import columns as column_types
from lakestore.columns import Column
from lakestore.errors import SchemaError
from lakestore.schema import TableSchema

NO_COLUMN = "the batch has no column of the table"


class NewColumnsError(SchemaError):
    """A batch has columns that the table lacks; `rows` is all of it, for another attempt."""

    def __init__(self, message: str, rows: pa.Table, names: tuple[str, ...]) -> None:
        super().__init__(message)
        self.rows = rows
        self.names = names

    def declared(self) -> Mapping[str, str]:
        """Declarations of the new columns; raises `SchemaError` for one that cannot be kept."""
        fields = [self.rows.schema.field(name).with_nullable(True) for name in self.names]
        return column_types.declare(pa.schema(fields))


def target(name: str, schema: TableSchema) -> Column | None:
    """The table's column that a batch's column is; None when there is none."""
    for column in schema.columns:
        if name in (column.name, schema.document.renamed.get(column.name)):
            return column
    return None


def unknown(name: str, schema: TableSchema) -> str:
    """What is wrong with the name of a column."""
    return f"unknown column {name!r}; the table has {', '.join(schema.names)}"


def named(table: pa.Table, schema: TableSchema) -> pa.Table:
    """The batch by the table's names.

    Raises:
        NewColumnsError: it has others, and the schema does not say to leave these out.
        SchemaError: a column is there by its name of today and by the one before, and in a row
            both have a value.
    """
    names = table.schema.names
    fresh = [name for name in names if target(name, schema) is None]
    policy = schema.document.on_new_column
    # A column of nulls alone has no type, and there is nothing to keep of it.
    left_out = [
        n for n in fresh if policy == "add" and pa.types.is_null(table.schema.field(n).type)
    ]
    wanted = [] if policy == "ignore" else [name for name in fresh if name not in left_out]
    if wanted:
        raise NewColumnsError(unknown(wanted[0], schema), table, tuple(wanted))
    if len(fresh) == len(names) and table.num_rows:
        raise SchemaError(f"{NO_COLUMN}: {unknown(names[0], schema)}")
    table = table.drop_columns(fresh) if fresh else table
    for now, before in schema.document.renamed.items():
        if before in names:
            table = _renamed(table, before, now)
    return table


def _renamed(table: pa.Table, before: str, now: str) -> pa.Table:
    if now not in table.schema.names:
        return table.rename_columns({before: now})
    old, new = table.column(before), table.column(now)
    both = pc.and_(pc.is_valid(old), pc.is_valid(new))
    if pc.any(both).as_py():
        row = pc.index(both, True).as_py()
        raise SchemaError(
            f"row {row}: column {now!r} is also called {before!r}, and both are there"
        )
    if not old.type.equals(new.type):
        old, new = (new, old) if pa.types.is_null(old.type) else (old, new)
        if not pa.types.is_null(new.type):
            raise SchemaError(f"columns {now!r} and {before!r} are one, and have two types")
        return table.drop_columns([before, now]).append_column(now, old)
    index = table.schema.get_field_index(now)
    return table.set_column(index, now, pc.coalesce(new, old)).drop_columns([before])
