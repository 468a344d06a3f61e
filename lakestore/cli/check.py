"""Commands that look after the bytes: verify, rebuild."""

from typing import Annotated

import typer

import lakestore
from lakestore.cli.output import Json, LakeFolder, print_json
from lakestore.rebuild.run import rebuild as rebuild_lake


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
    """Re-check every promise against the bytes of every file; exits with 1 when one is broken."""
    with lakestore.open(lake, mode="r") as opened:
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
    """Make a lost or damaged catalog again from all other files; the old one goes to quarantine.

    Nothing is changed when a damaged or missing file would cost rows.
    """
    made = rebuild_lake(lake)
    if as_json:
        print_json(made.to_dict())
    else:
        print(made)
