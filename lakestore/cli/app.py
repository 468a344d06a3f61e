"""The commands by name, and the one place where deliberate errors become an exit code.

Exit codes: 0 it worked, 1 it failed and stderr says why, 2 the arguments are wrong.
"""

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import lakestore
from lakestore.cli import (
    chart,
    check,
    demo,
    events,
    export,
    hosts,
    ingest,
    load,
    purge,
    query,
    retention,
    schemas,
    shape,
    tables,
)
from lakestore.cli.place import placed
from lakestore.errors import LakestoreError


class _Verbs(TyperGroup):
    """The commands; a deliberate error of any of them is printed, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LakestoreError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="lakestore: what SQLite is to rows, for event data. A lake is a folder, or s3://bucket/prefix.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"lakestore {lakestore.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    pass


for _verb in (
    tables.init,
    tables.create,
    ingest.ingest,
    load.load,
    export.export,
    query.sql,
    query.shell,
    query.tail,
    events.events,
    events.event,
    events.totals,
    chart.chart,
    events.facets,
    events.top,
    events.metrics,
    tables.status,
    tables.history,
    tables.flush,
    tables.seal,
    retention.prune,
    retention.undo,
    retention.vacuum,
    hosts.sites,
    hosts.retire,
    shape.compact,
    purge.purge,
    shape.maintain,
    check.verify,
    check.rebuild,
    check.doctor,
    demo.demo,
):
    app.command()(placed(_verb))

_schema = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Show, check and evolve a table's schema."
)
for _of_schema in (schemas.show, schemas.check, schemas.evolve):
    _schema.command()(placed(_of_schema))
app.add_typer(_schema, name="schema")
