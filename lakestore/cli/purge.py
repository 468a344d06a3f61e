"""The command that erases chosen events: purge."""

from typing import Annotated

import typer

from lakestore.cli.filters import Where, conditions
from lakestore.cli.output import Json, LakeFolder, TableName, print_json
from lakestore.cli.place import open_existing
from lakestore.cli.shape import DryRun


def purge(
    lake: LakeFolder,
    table: TableName,
    where: Where = None,
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Erase events from every tier, and every copy of them. Run it again after the grace.

    Exits with 1 while copies are left.
    """
    if not where:
        raise typer.BadParameter("say which events: --where COLUMN=VALUE", param_hint="--where")
    with open_existing(lake) as opened:
        chosen = opened[table]
        wanted = conditions(chosen.schema.stored, where)
        if not yes and not dry_run:
            foretold = chosen.purge(wanted, dry_run=True)
            typer.confirm(f"{foretold}\nErase them for good?", abort=True, err=True)
        done = chosen.purge(wanted, dry_run=dry_run)
    if as_json:
        print_json(done.to_dict())
    else:
        print(done)
    if not done.complete and not dry_run:
        raise typer.Exit(1)
