"""A filled lake, the kinds of files in it, and what can befall their bytes."""

import os
import random
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from conftest import SCHEMA, events

import lakestore as ls
from lakestore.catalog import tables as t

SETTINGS = {"segment_duckdb_rows": 1, "flush_rows": 60, "vacuum_grace_s": 0, "cold_grace_s": 0}
ROWS = 200
SECTOR = 512

KINDS = {
    "lake file": r"lakestore\.json",
    "views": r"lake\.duckdb",
    "tombstone": r"tables/gone/dropped\.json",
    "of a dropped table": r"(tables|_site/hot|_site/rollups)/gone/.*",
    "schema document": r"tables/\w+/schema/\d+\.toml",
    "zero-row file": r"tables/\w+/schema/\d+\.parquet",
    "record": r"tables/events/_replaced/\w+\.json",
    "cold file": r"tables/events/data/day=.*\.parquet",
    "segment": r"_site/hot/events/.*\.parquet",
    "segment's twin": r"_site/hot/events/.*\.duckdb",
    "ids": r"_site/ids/events/.*\.ids",
    "partial": r"(tables/events/_rollups|_site/rollups/events)/.*\.parquet",
    "finished journal": r"_site/journal/events/\w+/000005\.journal",
    "journal": r"_site/journal/events/\w+/000006\.journal",
    "catalog": r"_site/catalog\.sqlite",
    "catalog's log": r"_site/catalog\.sqlite-wal",
    "index of the catalog's log": r"_site/catalog\.sqlite-shm",
    "lock": r"_site/(writers/\w+|views\.lock)",
}


ROLLED_UP = ls.TableSchema.from_toml(
    SCHEMA.text + '[[rollups]]\nname = "hourly"\nby = ["name"]\nsums = ["n"]\nhistograms = ["x"]\n'
)


def kind_of(name: str) -> str | None:
    """The kind of a file, by its path below the lake's folder; the first that fits."""
    return next((kind for kind, form in KINDS.items() if re.fullmatch(form, name)), None)


def fill(root: Path, killed: Path) -> None:
    """A lake with every kind of file, and a copy of it as a kill would have left it."""
    with ls.open(root, upkeep="manual", settings=SETTINGS) as lake:
        lake.create_table("empty", SCHEMA)
        table = lake.create_table("events", ROLLED_UP)
        table.append(events(0, 30), producer="job", seq=0)
        table.seal()
        table.append(events(30, 60))
        table.seal()
        table.compact()  # both have rows of the second day
        table.append(events(60, 100), producer="job", seq=1)
        table.flush()
        table.append(events(0, 15), producer="late", seq=1)  # all sealed: a segment of no rows
        table.flush()
        gone = lake.create_table("gone", SCHEMA)
        gone.append(events(0, 10))
        gone.flush()
        lake.maintain()
        lake.drop_table("gone")
        table.append(events(100, 140), producer="job", seq=2)
        table.append(events(140, 180), producer="job", seq=3)  # that many: the journal is finished
        table.append(events(180, 190), producer="job", seq=4)
        table.append(events(190, 200), producer="job", seq=5)
        shutil.copytree(root, killed)


@dataclass(frozen=True)
class Harm:
    """What befell a file: None for bytes when it is a pipe by now."""

    name: str
    data: bytes | None

    def do(self, path: Path) -> None:
        """Put a file that was harmed in its place: another one, so that nothing cached fits it."""
        path.unlink()
        if self.data is None:
            os.mkfifo(path)
        else:
            path.write_bytes(self.data)


def flip(data: bytes, bit: int) -> Harm:
    """One bit the other way round."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return Harm(f"bit {bit % 8} of byte {bit // 8} flipped", bytes(changed))


def harms(data: bytes, chance: random.Random, flips: int) -> Iterator[Harm]:
    """Bits that flip in the first and last bytes and in between, ends cut off, sectors zeroed."""
    size = len(data)
    places = [0, 5, size // 2, size - 9, size - 1]
    # Mostly where there is something: half of a page of SQLite or DuckDB is not in use.
    filled = [place for place in range(size) if data[place]]
    places += [chance.choice(filled) for _ in range(flips)]
    for place in dict.fromkeys(place for place in places if 0 <= place < size):
        yield flip(data, place * 8 + chance.randrange(8))
    for length in dict.fromkeys((0, size // 2, size - 1)):
        yield Harm(f"cut to {length} bytes", data[:length])
    sectors = [start for start in range(0, size, SECTOR) if any(data[start : start + SECTOR])]
    for start in dict.fromkeys((sectors[0], chance.choice(sectors), sectors[-1])):
        end = min(start + SECTOR, size)
        yield Harm(f"bytes {start} to {end} zeroed", data[:start] + bytes(end - start) + data[end:])
    yield Harm("a pipe in its place", None)


class Files:
    """The files of a lake as they were, to put back what was harmed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.good = {path: path.read_bytes() for path in _files(root)}

    def of(self, kind: str) -> list[Path]:
        """Those of a kind, in order."""
        return sorted(p for p in self.good if kind_of(p.relative_to(self.root).as_posix()) == kind)

    def restore(self) -> None:
        """Make every file as it was; what came since goes."""
        for path in _files(self.root):
            if path not in self.good:
                path.unlink()
        for path, data in self.good.items():
            if not path.is_file() or path.read_bytes() != data:
                path.unlink(missing_ok=True)
                path.write_bytes(data)


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if not path.is_dir())


FREE = {
    "lake.version", "tables.created_at", "tables.dropped_at", "segments.committed_at",
    "cold_files.committed_at", "garbage.since",
    "cold_files.added", "history.version", "history.at", "history.operation",
    "history.files_added", "history.rows_added", "history.files_removed", "history.rows_removed",
}  # fmt: skip
"""Columns on whose values no answer depends: times, a count of commits, and what tells of the past.

Of the last, `verify` finds what was at no version; the rows that are there now are the same.
"""


def said(catalog: Path) -> dict[str, list[object]]:
    """What a catalog says that answers and structure depend on; raises `sqlite3.Error`."""
    said: dict[str, list[object]] = {}
    with closing(sqlite3.connect(catalog)) as con:
        con.text_factory = bytes
        for name, relation in t.metadata.tables.items():
            if name == "leases":
                continue
            columns = [c.name for c in relation.columns if f"{name}.{c.name}" not in FREE]
            listed = ", ".join(f'"{column}"' for column in columns)
            said[name] = con.execute(f"SELECT {listed} FROM {name} ORDER BY {listed}").fetchall()
        said["live"] = con.execute("SELECT id FROM tables WHERE dropped_at IS NULL").fetchall()
    return said
