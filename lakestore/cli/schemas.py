"""Commands about a table's schema: `schema show`, `schema check`, `schema evolve`."""

from pathlib import Path
from typing import Annotated

import typer

from lakestore.cli.output import Json, LakeFolder, TableName, print_json
from lakestore.cli.place import open_existing, open_lake
from lakestore.errors import NotFoundError, SchemaError
from lakestore.evolution import Change
from lakestore.schema import TableSchema

Document = Annotated[
    Path, typer.Argument(metavar="FILE.toml", help="The whole schema, as it is to be.")
]


def show(
    lake: LakeFolder,
    table: TableName,
    version: Annotated[int | None, typer.Option(help="An older one.")] = None,
    as_json: Json = False,
) -> None:
    """Print a table's schema document: edit it, then `schema check` and `schema evolve`."""
    with open_lake(lake, mode="r") as opened:
        schemas = opened[table].schemas
    number = max(schemas) if version is None else version
    if number not in schemas:
        there = ", ".join(map(str, schemas))
        raise NotFoundError(f"no version {number} of the schema of {table!r}; there are {there}")
    shown = schemas[number]
    if as_json:
        columns = {c.name: {"type": c.sql_type, "nullable": c.nullable} for c in shown.columns}
        facts = {"table": table, "version": number, "versions": list(schemas), "columns": columns}
        print_json(facts | {"document": shown.text})
    else:
        print(f"# version {number} of {', '.join(map(str, schemas))}\n{shown.text}", end="")


def check(lake: LakeFolder, table: TableName, file: Document, as_json: Json = False) -> None:
    """Say what a schema would change; exits with 1 if the table cannot become so."""
    with open_lake(lake, mode="r") as opened:
        try:
            change = opened[table].evolve(TableSchema.from_file(file), dry_run=True)
        except SchemaError as error:
            if not as_json:
                raise
            print_json({"table": table, "allowed": False, "error": str(error)})
            raise typer.Exit(1) from error
    _say(table, change, as_json=as_json, done=False)


def evolve(
    lake: LakeFolder,
    table: TableName,
    file: Document,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="As `schema check`: change nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Give a table the next version of its schema. No file is rewritten."""
    if dry_run:
        check(lake, table, file, as_json)
        return
    with open_existing(lake) as opened:
        change = opened[table].evolve(TableSchema.from_file(file))
    _say(table, change, as_json=as_json, done=True)


def _say(table: str, change: Change, *, as_json: bool, done: bool) -> None:
    if as_json:
        print_json({"table": table, "allowed": True, "changes": change.lines(), "done": done})
    elif change.is_nothing:
        print(f"{table} has that schema already")
    else:
        print("\n".join([f"{'did' if done else 'would'}: {line}" for line in change.lines()]))
