"""The command `export`: rows of one snapshot, to a file or a folder of files by day."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lakestore.cli.filters import End, Start, Where, chosen, conditions
from lakestore.cli.output import (
    Json,
    LakeFolder,
    TableName,
    human_bytes,
    print_json,
    progress,
)
from lakestore.cli.place import open_lake


def export(
    lake: LakeFolder,
    table: TableName,
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help=".parquet, .csv, .tsv, .ndjson, .arrow, or no suffix: Parquet files by day.",
        ),
    ],
    where: Where = None,
    start: Start = None,
    end: End = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--columns", "-c", metavar="A,B", help="Which, in this order (repeatable)."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write rows of every tier, as of one instant, to a file.

    The file is there once it is whole, or not at all.

    \b
    lakestore export lake usage errors.csv -w 'status_code>=500' --start 7d
    lakestore export lake usage by-day/ --start 2026-11-01 --end 2026-12-01
    """
    with open_lake(lake, mode="r") as opened, progress(f"exporting {table}", None) as show:
        asked = opened[table]
        report = asked.export(
            path,
            conditions(asked.schema.stored, where or ()),
            start=start,
            end=end,
            columns=chosen(asked.schema.stored, columns) or None,
            overwrite=overwrite,
            progress=show,
        )
    if as_json:
        print_json(asdict(report) | {"path": str(path)})
    else:
        files = f" in {report.files:,} files" if report.files != 1 else ""
        print(f"{path}: {report.rows:,} rows, {human_bytes(report.bytes)}{files}")
