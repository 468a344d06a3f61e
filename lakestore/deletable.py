"""Which files vacuum may delete now: what the catalog lists, but for what somebody has use for."""

from collections.abc import Container, Sequence

from lakestore import retain
from lakestore.catalog.records import COLD_KINDS, COLD_PAYLOAD_KINDS, ROOT_KINDS, Garbage
from lakestore.context import TableContext, states
from lakestore.opensite import SiteContext
from lakestore.payloadview import payload_names
from lakestore.snapshot import GenerationId


def deletable(
    site: SiteContext,
    tables: Sequence[TableContext],
    in_use: Container[str],
    table: TableContext | None = None,
) -> list[Garbage]:
    """Those of one table or all.

    Args:
        tables: all of the lake.
        in_use: names of files that queries read.
    """
    garbage = [g for g in site.catalog.garbage() if _is_ours(g, site, tables)]
    if table is not None:
        garbage = [g for g in garbage if g.table_id == table.entry.id]
    graces = site.settings.vacuum_grace_s, site.settings.cold_grace_s
    chosen = retain.choose(garbage, site.clock.now().timestamp(), *graces, in_use)
    # A store is asked for what is due alone, and not every second while a file waits.
    return not_live(chosen, site, tables)


def _is_ours(garbage: Garbage, site: SiteContext, tables: Sequence[TableContext]) -> bool:
    """Whether a file is this process's to delete.

    A journal is its writer's, or of whoever took a dead writer over; and while the buffer holds
    its rows, the catalog must go on saying that a segment has them too.
    """
    if garbage.kind != "journal":
        return True
    writer, number = garbage.name.split("/")
    id = GenerationId(writer, int(number))
    its = [table for table in tables if table.entry.id == garbage.table_id]
    held = any(table.buffer is not None and id in table.buffer.ids for table in its)
    return writer in site.writers and not held


def not_live(
    garbage: Sequence[Garbage], site: SiteContext, tables: Sequence[TableContext]
) -> list[Garbage]:
    """Without cold files that are part of a table, whatever the catalog says of them.

    Nor payload files that rows of these refer to.
    """
    ids = {g.table_id for g in garbage if g.kind in ROOT_KINDS}
    live: set[tuple[int, str, str]] = set()
    for id, state in states(site, [t for t in tables if t.entry.id in ids]).items():
        live |= {(id, kind, file.name) for kind in COLD_KINDS for file in state.cold}
        payload = [*payload_names(state.cold), *payload_names(state.segments)]
        live |= {(id, kind, name) for kind in COLD_PAYLOAD_KINDS for name in payload}
    return [g for g in garbage if (g.table_id, g.kind, g.name) not in live]
