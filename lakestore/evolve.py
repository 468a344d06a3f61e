"""Evolve: give a table the next version of its schema; files stay as they are.

Order of effects, numbered as their failpoints are:

    evolve.1 document put    .2 zero-row files put    .3 (of a Delta table) version of the log made
    .4 listed in the catalog    .5 committed    .6 taken up by this process

The commit point is the catalog transaction, of a Delta table the version of its log, which the
catalog follows. A crash before it leaves a document that nothing lists: the same one is taken up
by the next who brings it, and another one gets the next number.
"""

from collections.abc import Callable
from dataclasses import replace

from lakestore import shell
from lakestore.context import TableContext
from lakestore.delta import types
from lakestore.errors import ConflictError, SchemaError
from lakestore.evolution import Change, decide
from lakestore.failpoint import reach
from lakestore.layout import schema_key
from lakestore.lineage import Lineage
from lakestore.schema import TableSchema
from lakestore.versions import described, take_up

_ATTEMPTS = 10


def check(table: TableContext, schema: TableSchema) -> Change:
    """What of a table's schema that one would change; nothing is done.

    Raises:
        SchemaError: it cannot become that; says each reason.
    """
    *earlier, old = table.lineage.versions.values()
    change = decide(old, schema, table.entry.cold, earlier)
    if table.entry.cold == "delta":
        types.schema_string(schema.stored)
        column = types.partition_column(table.schema)
        if types.partition_column(schema.stored) != column:
            raise SchemaError(f"column {column!r} is the one that the Delta table is parted by")
    return change


def evolve(table: TableContext, make: Callable[[TableSchema], TableSchema]) -> TableContext:
    """Make the next version of a table's schema, unless it is what the newest says already.

    Args:
        make: the new schema from the newest one, in the form that an append takes; asked again
            when another process was first.

    Raises:
        SchemaError: it cannot become that; says each reason.
        ConflictError: others change it all the time.
        StorageError: nothing was committed.
        CommitUncertainError: the next one finds out whether it was.
    """
    for attempt in range(_ATTEMPTS):
        table = take_up(table.newest, table.state(newest=True).schema_version)
        schema = make(table.accepts)
        if check(table, schema).is_nothing:
            break
        try:
            table = _commit(table, schema)
            break
        except ConflictError:
            if attempt == _ATTEMPTS - 1:
                raise
    return table


def _commit(table: TableContext, schema: TableSchema) -> TableContext:
    id, follows = table.entry.id, table.entry.schema_version
    fresh = _documented(table, schema)
    version = fresh.entry.schema_version
    table.cold.evolve(fresh.schema, list(fresh.lineage.versions))
    reach("evolve.3")
    try:
        with table.site.catalog.commit() as commit:
            commit.add_schema(id, follows, version, schema.text)
            reach("evolve.4")
    except ConflictError:  # another process may have followed the log already
        if table.site.catalog.schemas(id).get(version) != schema.text:
            raise
    reach("evolve.5")
    table = take_up(table, version)
    reach("evolve.6")
    return table


def _documented(table: TableContext, schema: TableSchema) -> TableContext:
    """The table as it will be, its document and zero-row files put under the next free number."""
    entry, number = table.entry, table.entry.schema_version
    while True:
        number += 1
        fresh = replace(
            table,
            entry=replace(entry, schema_version=number, schema_text=schema.text),
            schema=schema.stored,
            accepts=schema,
            lineage=Lineage({**table.lineage.versions, number: schema}),
        )
        key, text = schema_key(entry.folder, number), schema.text.encode()
        created = table.site.put_new(key, text)
        reach("evolve.1")
        if not created and table.site.storage.read(key) != text:
            continue  # of somebody who was not done with it, and may be yet
        shell.write_empty(fresh)
        reach("evolve.2")
        says = {"document": schema.text, "versions": list(fresh.lineage.versions)}
        footer = {} if created else described(table.site, entry.folder, number)
        if created or all(footer.get(fact) == value for fact, value in says.items()):
            return fresh
