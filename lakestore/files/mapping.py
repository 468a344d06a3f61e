"""Which column of a file fills which column of a table, decided before anything is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lakestore.errors import SchemaError
from lakestore.naming import target
from lakestore.schema import TableSchema


@dataclass(frozen=True)
class Options:
    """How the user wants a file read."""

    renames: Mapping[str, str] = field(default_factory=dict)
    nulls: tuple[str, ...] = ()
    delimiter: str | None = None
    ignore_unknown: bool = False
    skip_rejects: bool = False

    def key(self) -> str:
        """What, besides its content, decides which rows a file's batches hold."""
        return repr((sorted(self.renames.items()), self.nulls, self.delimiter, self.skip_rejects))


def check_unique(names: Sequence[str], what: str) -> None:
    """Raises `SchemaError` when a name is empty, or twice there but for its case."""
    seen: set[str] = set()
    for at, name in enumerate(names, 1):
        if not name:
            raise SchemaError(f"{what}: column {at} has no name")
        if name.casefold() in seen:
            raise SchemaError(f"{what}: column {name!r} is there twice")
        seen.add(name.casefold())


def targets(
    names: Sequence[str], schema: TableSchema, options: Options, what: str
) -> dict[str, str]:
    """File column → table column, for those that are taken.

    Raises:
        SchemaError: columns that the table lacks, or that it requires and the file lacks.
    """
    check_unique(names, what)
    wrong = [name for name in options.renames if name not in names]
    if wrong:
        raise SchemaError(
            f"{what}: --map names {_list(wrong)}, not in the file; it has {', '.join(names)}"
        )
    renamed = {name: table_name(name, schema, options) for name in names}
    check_unique(list(renamed.values()), f"{what}, after --map")
    unknown = [name for name, target in renamed.items() if target not in schema.names]
    if unknown and not ignores(schema, options):
        raise SchemaError(unknown_columns(unknown, schema, what))
    taken = {name: target for name, target in renamed.items() if target in schema.names}
    missing = missing_columns(set(taken.values()), schema)
    if missing:
        raise SchemaError(
            f"{what}: the table requires {_list(missing)}, and the file has no such column: "
            "name it with --map FROM=TO"
        )
    return taken


def table_name(name: str, schema: TableSchema, options: Options) -> str:
    """What the table calls a file's column, which may have the name that it had before."""
    called = options.renames.get(name, name)
    column = target(called, schema)
    return called if column is None else column.name


def ignores(schema: TableSchema, options: Options) -> bool:
    """Whether what the table lacks is left out: the user says so, or the table's schema."""
    return options.ignore_unknown or schema.document.on_new_column == "ignore"


def missing_columns(present: set[str], schema: TableSchema) -> list[str]:
    """Columns that must be filled and are not: no default, not derived, not made."""
    return [
        column.name
        for column in schema.columns
        if column.name not in present
        and not column.nullable
        and column.default is None
        and column.name not in schema.document.derived
        and not (schema.made_id and column.name == schema.event_id)
    ]


def unknown_columns(unknown: Sequence[str], schema: TableSchema, what: str) -> str:
    """The message about columns that a table lacks."""
    return (
        f"{what}: the table has no column {_list(unknown)}: drop what it lacks with "
        f"--ignore-unknown, or rename with --map FROM=TO; its columns: {', '.join(schema.names)}"
    )


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:10])
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"
