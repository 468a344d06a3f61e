"""Commands that look after a lake and its bytes: doctor, verify, rebuild."""

from typing import Annotated

import typer

from lakestore.cli.output import Json, LakeFolder, print_json
from lakestore.cli.place import given, open_lake
from lakestore.clock import SystemClock
from lakestore.doctor import diagnose
from lakestore.opening import place
from lakestore.rebuild import run as rebuilding


def doctor(
    lake: Annotated[
        str, typer.Argument(metavar="LAKE", help="A lake, or where one is to be.")
    ] = ".",
    as_json: Json = False,
) -> None:
    """Look whether this machine can keep the promises. Exits with 1 if not."""
    found = diagnose(*place(lake, **given()), SystemClock())
    if as_json:
        print_json(found.to_dict())
    else:
        print(found)
    if not found.ok:
        raise typer.Exit(1)


def verify(
    lake: LakeFolder,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Make caches again, and quarantine what nothing reads."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what --repair would do, and do nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check every promise against every byte. Exits with 1 if one is broken."""
    with open_lake(lake, mode="r") as opened:
        if repair or dry_run:
            done = opened.repair(dry_run=dry_run)
            report, facts = done.report, done.to_dict()
            lines = [f"{'would' if dry_run else 'did'}: {action}" for action in done.actions]
        else:
            report = opened.verify()
            facts, lines = report.to_dict(), []
    if as_json:
        print_json(facts)
    else:
        print("\n".join([*lines, str(report)]))
    if not report.ok:
        raise typer.Exit(1)


def rebuild(lake: LakeFolder, as_json: Json = False) -> None:
    """Make a lost or damaged catalog again from all other files.

    The old one goes to quarantine. Nothing is changed when a damaged or missing file would cost
    rows.
    """
    made = rebuilding.rebuild(*place(lake, **given()), SystemClock())
    if as_json:
        print_json(made.to_dict())
    else:
        print(made)
