"""Bit rot: one flipped bit, one cut end, one zeroed sector, in every kind of file there is.

`verify` finds all of it, but for what the bytes cannot tell and nothing depends on, which is
counted here and held to be harmless. Queries of a damaged lake are right or say what is damaged;
three kinds of file are exceptions, which are counted too: DuckDB passes over the page checksums of
Parquet, SQLite has none, and the end of a journal that nobody finished may be one never written.
"""

import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import events
from support import bitrot
from support.bitrot import Files, Harm, harms
from support.soundness import assert_sound

import lakestore as ls
from lakestore import datafile
from lakestore.catalog import integrity
from lakestore.journal import JournalReader
from lakestore.retain import is_tombstone
from lakestore.snapshot import FileInfo
from lakestore.verify import run
from lakestore.verify.partials import PartialCheck
from lakestore.verify.report import Report

pytestmark = pytest.mark.faults

SEED = 20261126
FLIPS = {"cold file": 10, "segment": 10, "catalog": 50, "catalog's log": 12}
"""Random flips in each file of a kind, where it is not two."""
CACHES = {
    "views": "views",
    "zero-row file": "empty",
    "segment's twin": "twin",
    "ids": "ids",
    "partial": "rollup",
}
"""What can be made again, and what `repair` calls that."""
UNREAD = ("of a dropped table", "index of the catalog's log")
"""Nothing is read of them again: they wait for vacuum, and for SQLite to make it anew."""
UNNEEDED = (*CACHES, *UNREAD, "schema document", "tombstone", "record")
"""Every query is right without them."""
MAY_MISLEAD = ("cold file", "segment", "catalog", "catalog's log", "journal")
"""Kinds of which a query may take damaged bytes for good ones; `verify` may not."""


@dataclass
class Tally:
    """What came of the harms of one kind."""

    harms: int = 0
    found: int = 0
    harmless: int = 0
    misleading: int = 0
    """Found, and not noticed by a query that gave other rows."""
    missed: list[str] = field(default_factory=list)


@dataclass
class Look:
    """What is seen of a damaged lake."""

    refused: str | None = None
    """Why it could not be opened."""
    report: Report | None = None
    rows: pa.Table | None = None
    error: str = ""
    """Why the query failed."""


def look(root: Path, *, scan: bool = False) -> Look:
    """Open a lake to read, verify it, and read all of its rows; from Parquet alone with `scan`."""
    try:
        lake = ls.open(root, mode="r")
    except ls.LakestoreError as error:
        return Look(refused=f"{type(error).__name__}: {error}")
    seen = Look()
    with lake:
        seen.report = lake.verify()
        try:
            if scan:
                table = lake["events"]
                frame = table.scan().collect().sort("id")
                seen.rows = frame.to_arrow().cast(table.schema.arrow)
            else:
                seen.rows = lake.sql("FROM events ORDER BY id").to_arrow()
        except ls.LakestoreError as error:
            seen.error = f"{type(error).__name__}: {error}"
        lake._site.engine.detach_idle()
    return seen


class Lake:
    """A lake that is harmed in one file at a time, and looked at."""

    def __init__(self, root: Path) -> None:
        self.files = Files(root)
        self.root = root
        self.rows = look(root).rows
        self._said = bitrot.said(root / "_site/catalog.sqlite")
        self.files.restore()

    def sweep(self, kind: str, *, until_missed: bool = False) -> Tally:
        """Do every harm to every file of a kind, each by itself."""
        tally, chance = Tally(), random.Random(SEED)
        for path in self.files.of(kind)[: 1 if kind in UNNEEDED else 2]:
            for harm in harms(self.files.good[path], chance, FLIPS.get(kind, 2)):
                if harm.data is None and kind in (*UNREAD, "tombstone"):
                    continue
                self.judge(kind, path, harm, tally)
                if until_missed and tally.missed:
                    return tally
        return tally

    def judge(self, kind: str, path: Path, harm: Harm, tally: Tally) -> None:
        harm.do(path)
        try:
            seen = look(self.root, scan=kind == "segment")
            tally.harms += 1
            what = f"{kind}: {path.name}: {harm.name}: {seen.refused or seen.error or seen.report}"
            right = seen.rows is not None and seen.rows.equals(self.rows)
            misled = seen.rows is not None and not right
            if (misled and kind not in MAY_MISLEAD) or (not right and kind in UNNEEDED):
                tally.missed.append(what)
            elif self._is_found(kind, path, seen):
                tally.found += 1
                tally.misleading += misled
                if kind in CACHES and tally.found % 4 == 1:
                    self._repair(kind, what)
            elif right and self._is_harmless(kind, path):
                tally.harmless += 1
            else:
                tally.missed.append(what)
        finally:
            self.files.restore()

    def _is_found(self, kind: str, path: Path, seen: Look) -> bool:
        """Whether what is damaged was told of, with the file that it is in."""
        catalog = kind.startswith("catalog")
        named = "catalog" if catalog else path.name
        assert not seen.error or catalog or named in seen.error, seen.error
        if seen.report is None:
            return seen.refused is not None and named in seen.refused
        if kind == "record" and not path.is_file():  # nothing lists those: its seals are in parts
            return not seen.report.ok
        # What the catalog says wrong of a file is told of that file.
        return any(catalog or problem.file == path for problem in seen.report.problems)

    def _is_harmless(self, kind: str, path: Path) -> bool:
        """Whether nothing is different but bytes that nothing depends on."""
        if kind.startswith("catalog"):
            try:
                return bitrot.said(self.root / "_site/catalog.sqlite") == self._said
            except sqlite3.Error:
                return False
        if kind == "zero-row file":  # what pyarrow says of its own version
            good = pq.read_metadata(pa.BufferReader(self.files.good[path]))
            found = pq.read_metadata(path)
            return found.schema.equals(good.schema) and found.created_by != good.created_by
        if kind == "tombstone":  # another time, which nobody reads
            return is_tombstone(path.read_bytes())
        return kind in UNREAD

    def _repair(self, kind: str, what: str) -> None:
        with ls.open(self.root, mode="r") as lake:
            done = lake.repair(dry_run=False)
            assert {action.do for action in done.actions} <= {CACHES[kind]}, what
            assert done.report.problems == (), what
            assert lake.sql("FROM events ORDER BY id").to_arrow().equals(self.rows), what
            lake._site.engine.detach_idle()


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("rot")
    bitrot.fill(base / "lake", base / "killed")
    return base / "lake", base / "killed"


@pytest.fixture(scope="module")
def lake(folders) -> Iterator[Lake]:
    filled = Lake(folders[0])
    yield filled
    assert_sound(filled.root, allowed=())


@pytest.fixture(scope="module")
def killed(folders) -> Lake:
    return Lake(folders[1])


def test_every_file_is_of_a_kind(lake, killed):
    """A kind of file that is new is told here: say how it is damaged, and how that is found."""
    names = [p.relative_to(f.root).as_posix() for f in (lake.files, killed.files) for p in f.good]
    assert [name for name in names if bitrot.kind_of(name) is None] == []
    assert {bitrot.kind_of(name) for name in names} == set(bitrot.KINDS)
    assert lake.rows.num_rows == bitrot.ROWS
    assert [path for path in lake.files.of("lock") if path.stat().st_size] == []


WITH_BYTES = [kind for kind in bitrot.KINDS if kind != "lock"]


@pytest.mark.parametrize("kind", WITH_BYTES)
def test_all_of_it_is_found(lake, killed, figure, kind):
    tally = (killed if kind.endswith("log") else lake).sweep(kind)
    figure("bit rot", "harms", tally.harms)
    figure("bit rot", "found", tally.found)
    figure("bit rot", "harmless: answers and structure identical", tally.harmless)
    figure("bit rot", "found, of which a query was misled", tally.misleading)
    figure("bit rot", "missed", len(tally.missed))
    assert tally.missed == []
    assert tally.harms == tally.found + tally.harmless >= 10
    if kind not in (*UNREAD, "catalog", "catalog's log", "zero-row file", "tombstone"):
        assert tally.harmless == 0


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("UPDATE producers SET seq = 'x'", "catalog"),
        ("UPDATE producers SET seq = -1", "catalog"),
        ("UPDATE producers SET seq = seq + 1", "producer"),
        ("UPDATE producers SET producer = x'ff' WHERE producer = 'late'", "catalog"),
        ("UPDATE garbage SET kind = 'x'", "catalog"),
        ("UPDATE garbage SET since = 'x'", "catalog"),
        ("DELETE FROM garbage WHERE kind = 'table'", "dropped"),
        ("UPDATE tables SET dropped_at = 1 WHERE name = 'empty'", "dropped"),
        ("UPDATE tables SET cold = 'x'", "catalog"),
        ("UPDATE tables SET created_at = 1e300", "catalog"),
        ("UPDATE tables SET name = x'00' WHERE name = 'empty'", "catalog"),
        ("UPDATE lake SET version = -1", "catalog"),
        ("UPDATE lake SET format = 'x'", "catalog"),
        ("UPDATE lake SET uuid = x'ff'", "catalog"),
        ("DELETE FROM lake", "catalog"),
        ("UPDATE schemas SET text = CAST(x'ff' AS TEXT)", "catalog"),
        ("UPDATE segments SET info = 'x'", "catalog"),
        ("UPDATE segments SET info = replace(info, '\"rows\": ', '\"rows\": -')", "catalog"),
        ("UPDATE cold_files SET day = 'x'", "catalog"),
        ("UPDATE cold_files SET info = replace(info, '+00:00', '')", "catalog"),
        ("UPDATE cold_files SET added = 'x'", "catalog"),
        ("UPDATE cold_files SET added = 1000", "catalog"),
        ("UPDATE cold_files SET removed = -1", "catalog"),
        ("UPDATE cold_files SET removed = added", "seal"),
        ("UPDATE history SET operation = x'ff'", "catalog"),
        ("UPDATE history SET version = version + 1000", "catalog"),
        ("UPDATE history SET files_removed = -1", "catalog"),
        ("UPDATE history SET at = 'x'", "catalog"),
        ("INSERT INTO records SELECT id, 'x' || id, id, '{}' FROM tables", "catalog"),
        ("INSERT INTO records SELECT id, 'x' || id, id, 5 FROM tables", "catalog"),
    ],
)
def test_catalog_values_of_another_kind(lake, statement, kind):
    """Whoever comes across them raises lakestore's errors, and verify says so."""
    with closing(sqlite3.connect(lake.root / "_site/catalog.sqlite")) as con, con:
        assert con.execute(statement).rowcount > 0
    try:
        seen = look(lake.root)
    finally:
        lake.files.restore()
    kinds = {problem.kind for problem in seen.report.problems} if seen.report else set()
    assert kind in kinds or (seen.refused or "").startswith("CorruptionError"), seen


def ends(path: Path) -> list[int]:
    """Where the appends in a journal end."""
    reader = JournalReader(path)
    return [entry.end for entry in reader.read()]


def test_a_cut_between_two_appends_is_found_in_a_finished_journal(lake, figure):
    (finished,), (last,) = lake.files.of("finished journal"), lake.files.of("journal")
    tally = Tally()
    for end in ends(finished)[:-1]:
        harm = Harm(f"cut to {end} bytes", lake.files.good[finished][:end])
        lake.judge("finished journal", finished, harm, tally)
    assert (tally.harms, tally.found, tally.misleading) == (1, 1, 0)
    figure("bit rot", "harms", tally.harms)
    figure("bit rot", "found", tally.found)
    # The exception: an append that is gone without a trace, from a file that nobody went on from.
    end = ends(last)[0]
    Harm("", lake.files.good[last][:end]).do(last)
    seen = look(lake.root)
    lake.files.restore()
    assert seen.report.problems == ()
    assert seen.rows.equals(lake.rows.slice(0, bitrot.ROWS - 10))


def test_the_journal_of_a_writer_that_lives(lake, tmp_path, figure):
    """The writer finds everything, a cut between two appends too; others never see altered rows."""
    root = tmp_path / "lake"
    shutil.copytree(lake.root, root)
    with ls.open(root, upkeep="manual", settings=bitrot.SETTINGS) as writer:
        for start in (200, 220):
            writer["events"].append(events(start, start + 20))
        whole = writer.sql("FROM events ORDER BY id").to_arrow()
        path = max(root.glob(f"_site/journal/events/{writer._site.writer}/*"))
        good = path.read_bytes()
        cut = Harm("cut between two appends", good[: ends(path)[0]])
        tried = [*harms(good, random.Random(SEED), 12), cut]
        for harm in tried:
            harm.do(path)
            assert path in {problem.file for problem in writer.verify().problems}, harm.name
            seen = look(root)
            assert seen.error or seen.rows.equals(whole.slice(0, len(seen.rows))), harm.name
            assert seen.error or len(seen.rows) >= 200, harm.name
        path.unlink()
        path.write_bytes(good)
        assert writer.verify().problems == ()
    figure("bit rot", "harms", len(tried))
    figure("bit rot", "found", len(tried))


BUGS: dict[str, tuple[str, object, str, Callable[..., object]]] = {
    "lake file unread": ("lake file", run._Verification, "_lake_file", lambda *_: []),
    "views unread": ("views", run, "check_views", lambda *_, **__: None),
    "documents unread": ("schema document", run, "check_documents", lambda *_: []),
    "twin unread": ("segment's twin", run, "check_twin", lambda *_: None),
    "partials unchecked": ("partial", PartialCheck, "check", lambda *_: ()),
    "id hashes unchecked": ("ids", run, "check_ids", lambda *_: None),
    "journals end anywhere": ("finished journal", JournalReader, "_on_disk", lambda _: 0),
    "catalog's own check left out": ("catalog", integrity, "check", lambda _: []),
    "statistics unchecked": ("catalog", FileInfo, "__eq__", lambda *_: True),
    "tiers unchecked": ("catalog", run, "check_tiers", lambda *_, **__: []),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(lake, monkeypatch, figure, bug):
    kind, owner, name, instead = BUGS[bug]
    monkeypatch.setattr(owner, name, instead)
    _caught(lake.sweep(kind, until_missed=True), figure)


def test_planted_bugs_in_the_checks_of_data_files_are_caught(lake, monkeypatch, figure):
    good = {path: datafile.sha256(path) for path in lake.files.good}
    monkeypatch.setattr(datafile, "sha256", good.__getitem__)
    _caught(lake.sweep("cold file", until_missed=True), figure)


def _caught(tally: Tally, figure: Callable[..., None]) -> None:
    figure("bit rot", "mutants planted")
    figure("bit rot", "mutants caught", min(1, len(tally.missed)))
    assert tally.missed
