"""Commands that let old rows go: prune, undo, vacuum."""

from datetime import datetime
from typing import Annotated

import typer

from lakestore.cli.filters import at
from lakestore.cli.output import Json, LakeFolder, TableName, print_json
from lakestore.cli.place import open_existing
from lakestore.errors import InvalidInputError
from lakestore.lake import Lake

_OneTable = Annotated[str | None, typer.Argument(help="One table only.")]


def prune(
    lake: LakeFolder,
    table: _OneTable = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="AGE", help="Such as 90d; by default what the schema says as retention."
        ),
    ] = None,
    before: Annotated[
        datetime | None,
        typer.Option(parser=at, metavar="TIME", help="Instead: events before it have expired."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    confirm: Annotated[
        bool, typer.Option("--confirm", help="Though it is more than half, or the clock is odd.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Take files off the table whose every event has expired.

    They stay on the disk for a grace, in which `undo` brings them back.
    """
    done = {}
    with open_existing(lake) as opened:
        chosen = [table] if table is not None else _that_expire(opened, older_than, before)
        for name in chosen:
            done[name] = opened[name].prune(older_than, before, dry_run=dry_run, confirm=confirm)
    if as_json:
        print_json({name: pruned.to_dict() for name, pruned in done.items()})
        return
    for name, pruned in done.items():
        print(f"{name}: {pruned}")


def _that_expire(lake: Lake, older_than: str | None, before: datetime | None) -> list[str]:
    """All tables, or where no time is said those that declare a retention."""
    if older_than is not None or before is not None:
        return lake.tables()
    names = [n for n in lake.tables() if lake[n].schema.document.retention is not None]
    if not names:
        raise InvalidInputError(
            "no table declares a retention: say --older-than, or --before, or name a table"
        )
    return names


def undo(
    lake: LakeFolder,
    table: TableName,
    version: Annotated[
        int | None, typer.Option(help="Of the prune; by default the newest.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring back what a prune took, while its files are there."""
    with open_existing(lake) as opened:
        undone = opened[table].undo(version)
    if as_json:
        print_json(undone.to_dict())
    else:
        print(f"{table}: {undone}")


def vacuum(
    lake: LakeFolder,
    table: _OneTable = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run/--yes", help="Only say what would go, or delete it.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Say what is past its grace, or (--yes) delete it."""
    with open_existing(lake) as opened:
        part = opened if table is None else opened[table]
        done = part.vacuum(dry_run=dry_run)
    if as_json:
        print_json(done.to_dict())
    else:
        print(done)
