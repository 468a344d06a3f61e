"""The catalog's relations.

`lake`, `tables`, `schemas` and `cold_files` are the lake's, and every site that shares the catalog
sees the same. A site's own are its row of `sites`, what it holds of each table, and the relations
that name a holding.
"""

from typing import get_args

from sqlalchemy import Boolean, Column, Date, ForeignKey, MetaData, Table, UniqueConstraint

from lakestore.catalog.records import GarbageKind
from lakestore.catalog.strict import BigNumber, Number, Seconds, Text

FORMAT = 4

metadata = MetaData()

lake = Table(
    "lake",
    metadata,
    Column("one", Number(), primary_key=True),  # always 1: the table has a single row
    Column("format", Number(), nullable=False),
    Column("uuid", Text(), nullable=False),
    Column("version", BigNumber(), nullable=False),  # counts commits that change what all see
)

sites = Table(
    "sites",  # the hosts whose rows are in the lake; SQLite's file knows its own alone
    metadata,
    Column("name", Text(), primary_key=True),
    Column("version", BigNumber(), nullable=False),  # counts commits that change what it holds
    # 0 in Postgres: only its sealed files are known, because the catalog was made again elsewhere.
    Column("joined_at", Seconds(), nullable=False),
)

tables = Table(
    "tables",
    metadata,
    Column("id", Number(), primary_key=True),
    Column("name", Text(), nullable=False),
    Column("folder", Text(), nullable=False, unique=True),  # never reused, though names are
    Column("cold", Text(among=("parquet", "delta")), nullable=False),
    Column("created_at", Seconds(), nullable=False),
    Column("dropped_at", Seconds(nullable=True)),
)

schemas = Table(
    "schemas",
    metadata,
    Column("table_id", ForeignKey("tables.id"), primary_key=True),
    Column("version", Number(), primary_key=True),
    Column("text", Text(), nullable=False),
)

cold_files = Table(
    "cold_files",
    metadata,
    Column("table_id", ForeignKey("tables.id"), primary_key=True),
    Column("name", Text(), primary_key=True),
    Column("day", Date, nullable=False),
    Column("first", BigNumber(), nullable=False),
    Column("last", BigNumber(), nullable=False),
    Column("schema_version", Number(), nullable=False),
    Column("committed_at", Seconds(), nullable=False),
    Column("info", Text(), nullable=False),
    # Versions of the lake: from which on it is part of the table, and from which on no more. One
    # that comes back is listed once more.
    Column("added", BigNumber(), primary_key=True),
    Column("removed", BigNumber(), nullable=False),  # 0 while it is
)

history = Table(
    "history",  # what changed the cold tier of a table, version by version
    metadata,
    Column("table_id", ForeignKey("tables.id"), primary_key=True),
    Column("version", BigNumber(), primary_key=True),
    Column("at", Seconds(), nullable=False),
    Column("operation", Text(), nullable=False),
    Column("site", Text(), nullable=False),  # whose commit it was; empty when nobody's
    Column("files_added", Number(), nullable=False),
    Column("rows_added", BigNumber(), nullable=False),
    Column("files_removed", Number(), nullable=False),
    Column("rows_removed", BigNumber(), nullable=False),
)

records = Table(
    "records",  # of replacements, until they are kept in the root
    metadata,
    Column("number", Number(), primary_key=True),  # in the order of the commits
    Column("id", Text(), nullable=False, unique=True),
    Column("table_id", ForeignKey("tables.id"), nullable=False),
    Column("text", Text(), nullable=False),
)

holdings = Table(
    "holdings",  # what a site has of a table; segments are numbered by each site for itself
    metadata,
    Column("id", Number(), primary_key=True),
    Column("table_id", ForeignKey("tables.id"), nullable=False),
    Column("site", ForeignKey("sites.name"), nullable=False),
    Column("sealed_through", BigNumber(), nullable=False),
    Column("last_segment", BigNumber(), nullable=False),
    # Segments up to here are being sealed into a log: they may be cold before this catalog knows.
    Column("sealing_through", BigNumber(), nullable=False),
    # All that was accepted before is cold, in microseconds since 1970; 0 when nobody has said.
    Column("complete_before", BigNumber(), nullable=False),
    Column("dropped", Boolean, nullable=False),  # the table is, and the site's files are garbage
    UniqueConstraint("table_id", "site"),
)

segments = Table(
    "segments",
    metadata,
    Column("holding_id", ForeignKey("holdings.id"), primary_key=True),
    Column("first", BigNumber(), primary_key=True),
    Column("last", BigNumber(), nullable=False),
    Column("name", Text(), nullable=False),
    Column("has_duckdb", Boolean, nullable=False),
    Column("committed_at", Seconds(), nullable=False),
    Column("info", Text(), nullable=False),
)

generations = Table(
    "generations",  # journal files whose rows a segment holds; until the file is deleted
    metadata,
    Column("holding_id", ForeignKey("holdings.id"), primary_key=True),
    Column("writer", Text(), primary_key=True),
    Column("number", Number(), primary_key=True),
)

producers = Table(
    "producers",
    metadata,
    Column("holding_id", ForeignKey("holdings.id"), primary_key=True),
    Column("producer", Text(), primary_key=True),
    Column("seq", BigNumber(), nullable=False),
)

batches = Table(
    "batches",  # what producers sent, flushed while other writers might still hold it too
    metadata,
    Column("holding_id", ForeignKey("holdings.id"), primary_key=True),
    Column("producer", Text(), primary_key=True),
    Column("seq", BigNumber(), primary_key=True),
)

leases = Table(
    "leases",  # who merges, seals and vacuums a table, and until when (Unix seconds)
    metadata,
    Column("holding_id", ForeignKey("holdings.id"), primary_key=True),
    Column("writer", Text(), nullable=False),
    Column("until", Seconds(), nullable=False),
)

garbage = Table(
    "garbage",  # files that no version names any more; `vacuum` deletes them after the grace
    metadata,
    Column("id", Number(), primary_key=True),
    Column("holding_id", ForeignKey("holdings.id"), nullable=False),
    Column("kind", Text(among=get_args(GarbageKind)), nullable=False),
    Column("name", Text(), nullable=False),
    Column("since", Seconds(), nullable=False),
    UniqueConstraint("holding_id", "kind", "name"),
)
