"""Commands about the hosts of a lake: sites, retire."""

from typing import Annotated

import typer
from rich.table import Table as Grid

from lakestore.cli.output import Json, LakeFolder, console, print_json
from lakestore.cli.place import open_existing, open_lake
from lakestore.sites import Site, SiteTable


def sites(lake: LakeFolder, as_json: Json = False) -> None:
    """List the hosts of the lake, and what each has of it."""
    with open_lake(lake, mode="r") as opened:
        root, found = opened.root, opened.sites()
    if as_json:
        print_json({"lake": root, "sites": [site.to_dict() for site in found]})
        return
    grid = Grid(title=f"{root}: {len(found)} site(s)", title_justify="left")
    for name in ("site", "table"):
        grid.add_column(name)
    for name in ("sealed through", "hot rows", "complete before"):
        grid.add_column(name, justify="right")
    for site in found:
        for part in site.tables:
            grid.add_row(f"{site.name}{' (this)' if site.is_this else ''}", *_cells(part))
        if not site.tables:
            grid.add_row(site.name, "none", "", "", "")
    console().print(grid)


def _cells(part: SiteTable) -> tuple[str, str, str, str]:
    hot = "unknown" if part.hot_rows is None else f"{part.hot_rows:,}"
    before = "never said"
    if part.retired:
        before = "retired"
    elif part.complete_before is not None:
        before = part.complete_before.strftime("%Y-%m-%d %H:%M:%SZ")
    return part.table, f"{part.sealed_through:,}", hot, before


def retire(
    lake: LakeFolder,
    site: Annotated[str, typer.Argument(metavar="SITE", help="Its name, as `sites` tells.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Do not wait any more for a host that is gone for good.

    The watermark goes on without what it never sealed. Run it on another host of the lake. Nothing
    is deleted, and a host that comes back joins anew.
    """
    with open_existing(lake) as opened:
        for known in opened.sites() if not yes else ():
            if known.name == site:
                typer.confirm(f"{_meaning(known)}\nRetire it?", abort=True, err=True)
        opened.retire(site)
        marks = opened.watermark()
    if as_json:
        told = {table: moment and moment.isoformat() for table, moment in marks.items()}
        print_json({"retired": site, "watermark": told})
        return
    print(f"retired site {site}")
    for table, moment in marks.items():
        print(f"{table}: complete before {moment.isoformat() if moment else '(not known)'}")


def _meaning(site: Site) -> str:
    """What it means to retire a site, for who is asked."""
    seen = site.seen.isoformat(timespec="seconds") if site.seen else "nobody knows when"
    return (
        f"Site {site.name} was last seen {seen}.\n"
        "Rows in its journals and hot segments that were never sealed will not be waited for: the\n"
        "watermark goes on without them. Should it come back, they are sealed then, and who has\n"
        "read up to the watermark by that time has missed them."
    )
