"""Commands that keep a lake in shape: maintain, compact."""

import sys
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table as Grid

from lakestore.cli.output import Json, LakeFolder, console, human_bytes, print_json
from lakestore.cli.place import open_existing
from lakestore.compact import Compacted
from lakestore.maintenance import Plan

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
MaxSeconds = Annotated[float | None, typer.Option(min=0, help="Begin nothing after so long.")]
MaxBytes = Annotated[
    int | None, typer.Option(min=0, help="Begin nothing that reads more than is left of these.")
]
OneTable = Annotated[str | None, typer.Argument(help="One table only.")]


def maintain(
    lake: LakeFolder,
    max_seconds: MaxSeconds = None,
    max_bytes: MaxBytes = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Do what is due, the most valuable first.

    Flush, merge, seal, prune, vacuum, compact.

    Made for cron: it takes over what dead writers left, may be killed at any point, and two at once
    do nothing twice. Exits with 1 if something failed.
    """
    with open_existing(lake) as opened:
        if dry_run:
            _show(opened.plan_maintenance(), as_json)
            return
        report = opened.maintain(max_seconds=max_seconds, max_bytes=max_bytes)
    if as_json:
        print_json(asdict(report))
    else:
        print(
            f"flushed {report.flushed}, merged {report.merged}, sealed {report.sealed} tables; "
            f"pruned {report.pruned:,} rows, compacted {report.compacted} days; "
            f"deleted {report.deleted} superseded files"
        )
        if report.left:
            print(f"{report.left} task(s) are left for the next time")
    for problem in report.problems:
        print(f"error: {problem}", file=sys.stderr)
    if report.problems:
        raise typer.Exit(1)


def _show(plan: Plan, as_json: bool) -> None:
    if as_json:
        print_json(plan.to_dict())
        return
    grid = Grid(show_footer=True)
    grid.add_column("task", f"{len(plan.tasks)}")
    grid.add_column("table")
    grid.add_column("what")
    grid.add_column("bytes", human_bytes(plan.bytes), justify="right")
    for task in plan.tasks:
        cost = human_bytes(task.bytes) if task.bytes else ""
        grid.add_row(task.verb, task.table, task.what, cost)
    console().print(grid if plan.tasks else "nothing is due")


def compact(
    lake: LakeFolder,
    table: OneTable = None,
    today: Annotated[bool, typer.Option("--today", help="The day that has not ended too.")] = False,
    max_seconds: MaxSeconds = None,
    max_bytes: MaxBytes = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Merge the small cold files of each day; no answer changes."""
    done = {}
    with open_existing(lake) as opened:
        for name in [table] if table is not None else opened.tables():
            done[name] = opened[name].compact(
                today=today, max_seconds=max_seconds, max_bytes=max_bytes, dry_run=dry_run
            )
    if as_json:
        print_json({name: asdict(one) for name, one in done.items()})
    for name, one in done.items() if not as_json else ():
        print(_told(name, one, dry_run=dry_run))


def _told(name: str, done: Compacted, *, dry_run: bool) -> str:
    if not done.jobs:
        return f"{name}: nothing to compact"
    would, became = ("would compact", "about ") if dry_run else ("compacted", "")
    text = (
        f"{name}: {would} {done.files_before:,} files of {done.days:,} day(s) to "
        f"{became}{done.files_after:,}, {human_bytes(done.bytes_before)}"
    )
    if not dry_run:
        text += f" to {human_bytes(done.bytes_after)}"
    return text + (f"; {done.duplicates:,} duplicates went" if done.duplicates else "")
