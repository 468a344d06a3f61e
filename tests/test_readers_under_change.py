"""Readers loop while writers and maintainers are at work: every answer is of one instant.

Those append, flush, merge, seal, compact and vacuum. A row is never there twice and never missing,
a batch is whole, and a reader never sees less than before; nor less than was acknowledged when it
asked, nor more than was begun when it was answered.
"""

import gc
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from support import readers
from support.readers import QUERY, SCHEMA, Counts, Reader, ask_duckdb, batch_of

import lakestore as ls
from lakestore.query import run

SETTINGS = {"segments_max": 3, "segment_duckdb_rows": 100}


class Traffic:
    """Two writers and a maintainer, in threads; and readers, in threads and processes."""

    def __init__(self, folder: Path, grace_s: float) -> None:
        self.root = folder / "lake"
        self.counts = Counts(folder / "counts")
        self._settings = {**SETTINGS, "vacuum_grace_s": grace_s, "cold_grace_s": grace_s}
        self._lakes: list[ls.Lake] = []
        self._threads: list[threading.Thread] = []
        self._processes: list[subprocess.Popen[str]] = []
        self._over = threading.Event()
        self.readers: list[Reader] = []
        self.failures: list[BaseException] = []
        self.rounds = 0

    def open(self, mode: str = "rw") -> ls.Lake:
        lake = ls.open(self.root, mode=mode, upkeep="manual", settings=self._settings)
        self._lakes.append(lake)
        return lake

    def spawn(self, job: Callable[[], object]) -> None:
        """Do a job again and again, until all is over."""

        def loop() -> None:
            try:
                while not self._over.is_set():
                    job()
            except BaseException as error:
                self.failures.append(error)
                self._over.set()

        self._threads.append(threading.Thread(target=loop))

    def write(self, lake: ls.Lake, writer: int) -> None:
        numbers = itertools.count()
        counts = self.counts

        def append() -> None:
            number = next(numbers)
            level = ("disk", "os")[number % 2]
            counts.begun[writer] += 1
            lake["events"].append(
                batch_of(writer, number), level=level, producer=f"w{writer}", seq=number
            )
            counts.acknowledged[writer] += 1
            time.sleep(0.001)  # so that queries stay quick, not so that anything comes right

        self.spawn(append)

    def maintain(self, lakes: list[ls.Lake]) -> None:
        verbs = itertools.cycle(
            ["flush", "flush", "vacuum", "seal", "flush", "compact", "flush", "vacuum"]
        )

        def one() -> None:
            verb = next(verbs)
            known = self.counts.acknowledged.copy()
            for lake in lakes:
                if verb == "vacuum":
                    lake["events"].vacuum(dry_run=False)
                elif verb == "compact":
                    lake["events"].compact()
                else:
                    getattr(lake, verb)()
            if verb in ("flush", "seal"):
                self.counts.published[:] = known
            if verb == "seal":
                self.counts.sealed[:] = known
            self.rounds += 1

        self.spawn(one)

    def read(self, ask: Callable[[], list[tuple]], floor: str = "acknowledged") -> None:
        reader = Reader(self.counts, ask, floor)
        self.readers.append(reader)
        self.spawn(reader.look)

    def read_from_outside(self, how: str) -> None:
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        process = subprocess.Popen(
            [sys.executable, readers.__file__, str(self.root), str(self.counts.path), how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
        )
        self._processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

    def run(self, looks: int, rounds: int, seconds_max: float) -> list[int]:
        """Until each reader has looked and the maintainer has worked so often; their looks."""
        for thread in self._threads:
            thread.start()
        end = time.monotonic() + seconds_max
        while time.monotonic() < end and not self._over.wait(0.05):
            if min(r.looks for r in self.readers) >= looks and self.rounds >= rounds:
                break
        self._over.set()
        for thread in self._threads:
            thread.join()
        if self.failures:
            raise self.failures[0]
        found = [reader.looks for reader in self.readers]
        for process in self._processes:
            out, error = process.communicate(timeout=60)
            assert process.returncode == 0, error
            found.append(int(out))
        return found

    def close(self) -> None:
        self._over.set()
        for process in self._processes:
            process.kill()
            process.communicate()
        for lake in self._lakes:
            lake.close()


@pytest.fixture
def traffic(tmp_path: Path) -> Iterator[Callable[[float], Traffic]]:
    started: list[Traffic] = []

    def start(grace_s: float) -> Traffic:
        traffic = Traffic(tmp_path, grace_s)
        started.append(traffic)
        return traffic

    yield start
    for one in started:
        one.close()


@pytest.mark.parametrize(
    ("cold", "grace_s"), [("parquet", 0), ("parquet", 20), ("delta", 0), ("delta", 20)]
)
def test_every_answer_is_of_one_instant(traffic, cold, grace_s, soak, figure):
    """With no grace too: who meets a vanished file looks again. Shells need the grace."""
    t = traffic(grace_s)
    lakes = [t.open(), t.open()]
    lakes[0].create_table("events", SCHEMA, cold=cold)
    t.read_from_outside("lakestore")
    for writer, lake in enumerate(lakes):
        t.write(lake, writer)
    t.maintain(lakes)
    t.read(lambda: lakes[0].sql(QUERY).fetchall())
    other = t.open("r")
    t.read(lambda: other.sql(QUERY).fetchall())
    t.read(lambda: ls_aggregate(other["events"].to_arrow()))
    if grace_s:
        t.read_from_outside("duckdb")
        t.read(ask_duckdb(t.root), "published")
    if grace_s and cold == "delta":  # other engines see what is sealed
        data = str(t.root / "tables/events/data")
        t.read(lambda: ls_aggregate(DeltaTable(data).to_pyarrow_table()), "sealed")
        t.read(lambda: ls_aggregate(pl.scan_delta(data).collect().to_arrow()), "sealed")
    looks = t.run(*((2_000, 500, 900) if soak else (6, 9, 120)))
    assert min(looks) >= 2
    assert sum(t.counts.published) > 0
    report = lakes[0].verify()
    assert report.ok, report.problems
    (root,) = {lake._site.storage.root for lake in lakes}
    assert list(Path(root, "tables/events/_replaced").iterdir())  # there were compactions
    figure("readers under change", "answers", sum(looks))
    figure("readers under change", "batches", int(sum(t.counts.begun)))
    figure("readers under change", "rounds of maintenance", t.rounds)


class StaleCatalog:
    """Says what was published before the buffers were looked at, and never looks again."""

    def __init__(self, site: Any) -> None:
        self._site = site
        self._states: Any = None

    def __getattr__(self, name: str) -> Any:
        return self if name == "catalog" else getattr(self._site, name)

    def states(self, ids: Any) -> Any:
        if self._states is None:
            self._states = self._site.catalog.states(ids)
            time.sleep(0.005)  # a flush comes in between
        return self._states


def test_a_planted_bug_is_caught(traffic, figure, monkeypatch):
    """The published files are read before the buffers: what is flushed in between is missed."""
    pin = run.pin
    monkeypatch.setattr(run, "pin", lambda site, tables: pin(StaleCatalog(site), tables))
    t = traffic(0)
    lake = t.open()
    lake.create_table("events", SCHEMA)
    t.write(lake, 0)
    t.maintain([lake])
    t.read(lambda: lake.sql(QUERY).fetchall())
    figure("readers under change", "mutants planted")
    with pytest.raises(AssertionError, match="lost|a hole"):
        t.run(2_000, 500, 120)
    figure("readers under change", "mutants caught")


def ls_aggregate(rows: pa.Table) -> list[tuple]:
    """The answer to QUERY from all the rows."""
    found = rows.group_by("writer").aggregate(
        [
            ("id", "count"), ("id", "count_distinct"), ("batch", "count_distinct"),
            ("batch", "max"), ("n", "sum"),
        ]
    )  # fmt: skip
    return [
        tuple(row[name] for name in ("writer", "id_count", "id_count_distinct",
                                     "batch_count_distinct", "batch_max", "n_sum"))
        for row in found.to_pylist()
    ]  # fmt: skip


def fill(lake: ls.Lake, batches: int) -> ls.Table:
    """A table with rows in every tier; the answer to QUERY is that of `batches` batches."""
    table = lake.create_table("events", SCHEMA)
    for number in range(batches):
        table.append(batch_of(0, number))
        if number in (batches // 4, batches // 2):
            table.flush()
        if number == batches // 3:
            table.seal()
    return table


def change(lake: ls.Lake, batches: int) -> None:
    """Flush, seal and vacuum all there was, and append more."""
    table = lake["events"]
    table.seal()
    table.vacuum(dry_run=False)
    table.append(batch_of(0, batches))
    table.flush()
    table.vacuum(dry_run=False)


def test_a_result_and_a_scan_survive_the_vacuum_of_what_they_read(tmp_path):
    """Without any grace: this process knows what it reads."""
    batches = 30
    rows = batches * readers.ROWS
    with ls.open(tmp_path / "lake", upkeep="manual", settings={"vacuum_grace_s": 0}) as lake:
        table = fill(lake, batches)
        result = lake.sql("SELECT n FROM events ORDER BY n")
        scan = table.scan()
        stream = iter(scan.collect_batches(chunk_size=50, maintain_order=False))
        first = next(stream)
        hot = list((tmp_path / "lake/_site/hot/events").glob("*.parquet"))
        change(lake, batches)
        rest = list(stream)
        streamed = sorted(n for part in [first, *rest] for n in part["n"].to_list())
        assert streamed == list(range(rows))
        assert result.to_arrow()["n"].to_pylist() == list(range(rows))
        assert scan.collect().height == rows  # the same snapshot, again
        del scan, stream, rest, first
        # A query looks at its caller's variables; CPython 3.11 keeps what it saw until the next.
        assert lake.sql("SELECT count(*) FROM events").fetchone() == (rows + readers.ROWS,)
        gc.collect()
        table.vacuum(dry_run=False)
        assert not any(path.exists() for path in hot)


SCANNER = """
import sys
import lakestore as ls
lake = ls.open(sys.argv[1], mode="r")
scan = lake["events"].scan()
con = lake.connect()
print("open", flush=True)
sys.stdin.readline()
print(scan.collect().height, flush=True)
print(con.execute("SELECT count(*) FROM events").fetchall()[0][0], flush=True)
"""


@pytest.mark.parametrize("grace_s", [0, 900])
def test_a_scan_of_another_process_survives_for_the_grace(tmp_path, grace_s):
    """Past the grace it may fail, and says so; it never answers with a part."""
    batches = 12
    rows = batches * readers.ROWS
    settings = {"vacuum_grace_s": grace_s}
    with ls.open(tmp_path / "lake", upkeep="manual", settings=settings) as lake:
        fill(lake, batches)
        process = subprocess.Popen(
            [sys.executable, "-c", SCANNER, str(tmp_path / "lake")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        change(lake, batches)
        out, error = process.communicate("go\n", timeout=60)
    if grace_s:
        assert process.returncode == 0, error
        assert out == f"{rows}\n{rows}\n"
    else:
        assert process.returncode == 1
        assert out == ""
        assert "No files found" in error or "No such file" in error or "not exist" in error
