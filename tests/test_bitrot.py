"""Bit rot: a flipped bit, a file cut short, a zeroed block, in every kind of file, are found.

`verify` must name each. What can be made again is made again by `repair`, and answers stay right
meanwhile. Of journals, documents and the catalog a reader gets the right rows or an error. Only of
Parquet files not: DuckDB does not check the sums of their pages, and a query may show what rotted.
"""

import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from support.planted import assert_caught
from test_verify import SETTINGS, fill

import lakestore as ls
from lakestore.snapshot import FileInfo
from lakestore.verify import documents
from lakestore.verify import run as verify_run
from lakestore.verify.datafiles import Checked, DataFileCheck
from lakestore.verify.journals import JournalCheck

pytestmark = pytest.mark.faults

FLIPS, BLOCKS, BLOCK = 14, 6, 512
SOAK = 20
"""A soak does so many times more of each."""

KINDS = {
    "lake file": "lakestore.json",
    "schema document": "tables/events/schema/0001.toml",
    "schema document of an empty table": "tables/empty/schema/0001.toml",
    "zero-row file": "tables/events/schema/0001.parquet",
    "zero-row file of an empty table": "tables/empty/schema/0001.parquet",
    "cold file": "tables/events/data/*/*.parquet",
    "segment": "_site/hot/events/000003-*.parquet",
    "DuckDB file": "_site/hot/events/000003-*.duckdb",
    "id cache": "_site/ids/events/*.ids",
    "journal": "_site/journal/events/*/000004.journal",
    "catalog": "_site/catalog.sqlite",
    "views": "lake.duckdb",
}
CACHES = ("zero-row file", "zero-row file of an empty table", "DuckDB file", "id cache", "views")
PARQUET = ("cold file", "segment")
NOT_READ = (
    "_site/hot/events/000001-*",  # superseded: nothing names them, and vacuum deletes them
    "_site/hot/events/000002-*",
    "_site/journal/events/*/00000[123].journal",
    "_site/views.lock",  # empty
    "_site/writers/*",
)


@dataclass(frozen=True)
class Harm:
    """What is done to a file, and what is left of it."""

    name: str
    data: bytes


class Patient:
    """A lake, and what it held when all was well."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with self.open() as lake:
            self.rows = lake["events"].to_arrow().sort_by("n").sort_by("id")
        assert self.look() == []
        self.catalog = self.dump()

    def open(self) -> ls.Lake:
        return ls.open(self.root, mode="r", settings=SETTINGS)

    def file(self, kind: str) -> Path:
        return sorted(self.root.glob(KINDS[kind]))[0]

    def look(self) -> list[str]:
        """What an open or `verify` says is wrong."""
        try:
            with self.open() as lake:
                return [str(p) for p in lake.verify().problems]
        except (ls.CorruptionError, ls.FormatTooNewError) as error:
            return [str(error)]

    def read(self) -> pa.Table | None:
        """The rows; None when an error says that they cannot be read."""
        try:
            with self.open() as lake:
                return lake["events"].to_arrow().sort_by("n").sort_by("id")
        except (ls.CorruptionError, ls.FormatTooNewError, ls.NotFoundError):
            return None

    def dump(self) -> list[str]:
        """What the catalog says; but for leases, which decide no answer."""
        path = self.root / KINDS["catalog"]
        with sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True) as con:
            says = [line for line in con.iterdump() if 'INTO "leases"' not in line]
        con.close()
        return says


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Patient:
    root = tmp_path_factory.mktemp("bitrot") / "lake"
    with ls.open(root, upkeep="manual", settings=SETTINGS) as lake:
        fill(lake)
    return Patient(root)


def harms(data: bytes, seed: str, times: int = 1) -> Iterator[Harm]:
    """Flips spread over a file, cuts of it, and blocks of zeros in it."""
    rng = random.Random(seed)
    size = len(data)
    for at in sorted(rng.sample(range(size), min(size, FLIPS * times))):
        bit = 1 << rng.randrange(8)
        yield Harm(f"bit {bit} of byte {at}", data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
    for cut in sorted({0, 1, size // 2, size - 9}):
        yield Harm(f"cut to {cut} of {size}", data[:cut])
    starts = [at for at in range(0, size, BLOCK) if any(data[at : at + BLOCK])]
    for at in sorted(rng.sample(starts, min(len(starts), BLOCKS * times))):
        end = min(at + BLOCK, size)
        yield Harm(f"zeros from {at} to {end}", data[:at] + bytes(end - at) + data[end:])


@pytest.fixture
def damaged(patient: Patient) -> Iterator[Callable[[str], Path]]:
    """Which file of a kind is hurt; it is well again after the test."""
    kept: dict[Path, bytes] = {}

    def choose(kind: str) -> Path:
        path = patient.file(kind)
        kept[path] = path.read_bytes()
        return path

    yield choose
    for path, data in kept.items():
        path.write_bytes(data)
    assert patient.look() == []


def test_every_file_of_a_lake_is_of_a_kind(patient):
    every = {p for p in patient.root.rglob("*") if p.is_file()}
    known = {p for pattern in (*KINDS.values(), *NOT_READ) for p in patient.root.glob(pattern)}
    assert every == known


@pytest.mark.parametrize("kind", KINDS)
def test_bit_rot_is_found(patient, damaged, figure, soak, kind):
    done, idle = judge(patient, damaged, kind, SOAK if soak else 1)
    figure("bit rot", "harms", done)
    figure("bit rot", "found", done - idle)
    figure("bit rot", "in space that nothing uses", idle)


def judge(
    patient: Patient, damaged: Callable[[str], Path], kind: str, times: int
) -> tuple[int, int]:
    """How many harms were done to a file, and how many of them in space that nothing uses."""
    path = damaged(kind)
    done = list(harms(path.read_bytes(), kind, times))
    missed, idle = [], 0
    for harm in done:
        path.write_bytes(harm.data)
        rows = patient.read()
        said = patient.look()
        if not said and kind == "catalog" and patient.dump() == patient.catalog:
            idle += 1  # in space that SQLite does not use
        elif not said:
            missed.append(harm.name)
        elif kind != "catalog":
            names = (path.name, f"{str(patient.root)!r} is lake")
            assert any(name in line for line in said for name in names), (harm.name, said)
        right = rows is None or rows.equals(patient.rows) or kind in PARQUET
        if kind == "journal" and rows is not None:  # it may look torn: rows at its end are missed
            right = rows.equals(patient.rows.slice(0, rows.num_rows))
        assert right, (harm.name, said)
        if kind in CACHES:
            assert rows is not None, (harm.name, said)
    assert missed == []
    return len(done), idle


@pytest.mark.parametrize("kind", CACHES)
def test_what_can_be_made_again_is_repaired(patient, tmp_path, figure, kind):
    for number, harm in enumerate(list(harms(patient.file(kind).read_bytes(), kind))[::5]):
        root = tmp_path / f"{number}"
        shutil.copytree(patient.root, root)
        (root / patient.file(kind).relative_to(patient.root)).write_bytes(harm.data)
        with ls.open(root, upkeep="manual", settings=SETTINGS) as lake:
            assert lake.repair(dry_run=False).report.ok, harm.name
            assert lake.verify().ok, harm.name
            assert lake["events"].to_arrow().sort_by("n").sort_by("id").equals(patient.rows)
        figure("bit rot", "repaired")


def _only_sizes_are_compared(patch: pytest.MonkeyPatch) -> None:
    def check(self: DataFileCheck, path: Path, listed: FileInfo, *_: object) -> Checked:
        checked = Checked(path)
        if not path.exists() or path.stat().st_size != listed.bytes:
            self._note(checked, "damaged", "it is too short", "", rows_lost=listed.rows)
        return checked

    patch.setattr(DataFileCheck, "check", check)


def _documents_need_only_be_there(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(documents, "_document", lambda *_: ())


def _twins_need_only_be_there(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verify_run, "check_twin", lambda *_: None)


def _caches_are_believed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verify_run, "check_ids", lambda *_: None)


def _tails_are_all_of_crashes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(JournalCheck, "_tail", lambda *_: None)


def _views_are_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verify_run, "check_views", lambda *_: None)


PLANTED = [
    (_only_sizes_are_compared, "segment"),
    (_documents_need_only_be_there, "schema document"),
    (_twins_need_only_be_there, "DuckDB file"),
    (_caches_are_believed, "id cache"),
    (_tails_are_all_of_crashes, "journal"),
    (_views_are_not_looked_at, "views"),
]


@pytest.mark.parametrize(("plant", "kind"), PLANTED)
def test_a_planted_bug_is_caught(request, figure, plant, kind):
    assert_caught(request, figure, "bit rot", plant, judge, kind=kind, times=1)
