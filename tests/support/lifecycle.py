"""A small life of a lake, and the check of what is left of it, for tests that cut it short.

`Ledger` is the oracle: a file of its own, outside the lake, that says which batches were handed
in and which were acknowledged. Whatever happens to the lake, `Ledger.problems` must find nothing.
"""

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from support.commands import rebuild
from support.mutants import plant
from support.partials import relation

import lakestore as ls
from lakestore import cold
from lakestore.load import chunks
from lakestore.query.attach import attach

START = datetime(2025, 3, 1, tzinfo=UTC)
SCHEMA = ls.TableSchema.from_toml(
    """
    format = 2
    event_id = "id"
    event_time = "at"
    [columns]
    id = "VARCHAR not null"
    at = "TIMESTAMPTZ not null"
    n = "BIGINT"
    note = "VARCHAR"
    body = "VARCHAR"
    [payload]
    body = "full"
    [[rollups]]
    name = "hourly"
    by = ["note"]
    sums = ["n"]
    histograms = ["n"]
    """
)
EVOLVED = ls.TableSchema.from_toml(
    SCHEMA.text.replace('note = "VARCHAR"', 'note = "VARCHAR"\nextra = "VARCHAR"')
)
"""A column more, in the midst of the others."""
REJECTING = ls.TableSchema.from_toml(
    SCHEMA.text.replace("[columns]", 'rejects = "rejected"\n    [columns]', 1)
)
MISFITS: list[dict[str, Any]] = [{"id": None, "n": 1}, {"id": "x", "at": "never"}]
"""Rows that end a batch of the producer `bad`, and do not fit."""
SETTINGS = {
    "segments_max": 2,
    "segment_duckdb_rows": 20,
    "vacuum_grace_s": 0,
    "cold_grace_s": 0,
}
FIRST_DAY = range(40)
SEALED = frozenset(range(30))
"""Numbers of the events that `prepare` seals."""
LOADED = range(25, 85)


def rows(numbers: Iterable[int]) -> pa.Table:
    """Events by number: every column follows from it. Forty fall on one day."""
    all_numbers = list(numbers)
    return pa.table(
        {
            "id": [f"e{n:05d}" for n in all_numbers],
            "at": [START + timedelta(minutes=36 * n) for n in all_numbers],
            "n": [n * n for n in all_numbers],
            "note": [f"note {n % 7}" for n in all_numbers],
            "body": [f"body {n % 5}" for n in all_numbers],
        },
        schema=SCHEMA.arrow,
    )


class Ledger:
    """What was handed in and what was acknowledged; every line survives a SIGKILL."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self.submitted: dict[tuple[str, str], set[int]] = {}
        self.acknowledged: set[tuple[str, str]] = set()
        self.maybe_dropped: set[str] = set()
        self.maybe_missing: set[str] = set()
        self.maybe_pruned: set[int] = set()
        self.pruned: set[int] = set()
        """Those of which it is known."""
        self.maybe_twice: set[int] = set()
        """Sealed events that were handed in again: seen twice, if at all, until the next flush."""
        self.maybe_purged: set[int] = set()
        self.purged = False
        for line in os.pread(self._file, 1 << 24, 0).splitlines():
            self._take(json.loads(line))

    def note(self, event: str, table: str, batch: str = "", numbers: Iterable[int] = ()) -> None:
        entry = [event, table, batch, list(numbers)]
        os.write(self._file, json.dumps(entry).encode() + b"\n")
        self._take(entry)

    def _take(self, entry: list) -> None:
        event, table, batch, numbers = entry
        if event == "submit":
            self.maybe_twice |= set(numbers) & SEALED & self._numbers(table)
            self.submitted[table, batch] = set(numbers)
        elif event == "acknowledge":
            self.acknowledged.add((table, batch))
        elif event == "flushed":
            self.maybe_twice.clear()
        elif event == "creating":
            self.maybe_missing.add(table)
            if table in self.maybe_dropped:  # it was, and this is another of its name
                self.maybe_dropped.discard(table)
                self.submitted = {k: v for k, v in self.submitted.items() if k[0] != table}
                self.acknowledged = {k for k in self.acknowledged if k[0] != table}
        elif event == "created":
            self.maybe_missing.discard(table)
        elif event == "pruning":
            self.maybe_pruned |= set(numbers)
        elif event == "pruned":
            self.pruned |= set(numbers)
        elif event == "undoing":
            self.pruned -= set(numbers)
        elif event == "undone":
            self.maybe_pruned -= set(numbers)
        elif event == "purging":
            self.maybe_purged = set(numbers)
        elif event == "purged":
            self.purged = True
        elif event == "dropping":
            self.maybe_dropped.add(table)

    def _numbers(self, table: str) -> set[int]:
        return set().union(*(s for (t, _), s in self.submitted.items() if t == table))

    def problems(self, lake: ls.Lake) -> list[str]:
        """Every promise that the lake breaks now; none, if all is well."""
        found = []
        tables = {table for table, _ in self.submitted}
        for table in sorted(tables):
            if table not in lake:
                if table not in self.maybe_dropped | self.maybe_missing:
                    found.append(f"table {table} is lost")
                continue
            answer = with_payload(lake, table).sort_by("n")
            found += self.judge(table, answer)
        found += self.judge_rejects(lake)
        return found

    def judge_rejects(self, lake: ls.Lake) -> list[str]:
        """What is wrong with dead letters: of what was acknowledged each is there, and once."""
        if ("events", "bad-0") not in self.submitted:
            return []
        found = lake.sql("SELECT batch_row, event FROM rejected ORDER BY 1").fetchall()
        whole = [(10 + at, json.dumps(row)) for at, row in enumerate(MISFITS)]
        if found == whole or (not found and ("events", "bad-0") not in self.acknowledged):
            return []
        return [f"dead letters: {found}"]

    def judge(self, table: str, answer: pa.Table) -> list[str]:
        """What is wrong with the rows of a table, which are sorted by `n`."""
        batches = {b: numbers for (t, b), numbers in self.submitted.items() if t == table}
        ids = answer["id"].to_pylist()
        present = {int(id[1:]) for id in ids}
        found = []
        twice = [id for id, count in Counter(ids).items() if count > 1]
        if doubled := {int(id[1:]) for id in twice} - self.maybe_twice:
            found.append(f"{table}: doubled {sorted(doubled)}")
        acknowledged = {n for b, s in batches.items() if (table, b) in self.acknowledged for n in s}
        gone = self.maybe_pruned if table == "events" else set()
        if back := present & gone & self.pruned:
            found.append(f"{table}: came back {sorted(back)}")
        if gone & present and gone & acknowledged - present:
            found.append(
                f"{table}: pruned in part, without {sorted(gone & acknowledged - present)}"
            )
        erased = self.maybe_purged if table == "events" else set()
        if self.purged and (left := present & erased):
            found.append(f"{table}: purged, and there: {sorted(left)}")
        if lost := acknowledged - present - gone - erased:
            found.append(f"{table}: lost {sorted(lost)}")
        if phantom := present - set().union(*batches.values()):
            found.append(f"{table}: phantom {sorted(phantom)}")
        for batch, numbers in batches.items():
            others = set().union(*(s for b, s in batches.items() if b != batch))
            own = numbers - others - gone - erased
            if own & present and own - present:
                found.append(f"{table}: batch {batch} is torn, without {sorted(own - present)}")
        if len(ids) == len(present) and not answer.equals(rows(sorted(present))):
            found.append(f"{table}: rows are not as they were handed in")
        return found


def with_payload(lake: ls.Lake, table: str) -> pa.Table:
    """All events of a table, as they were handed in."""
    events = lake[table].to_arrow().to_pylist()
    attach(lake._queries, lake[table]._context, events)
    columns = [[event[name] for event in events] for name in SCHEMA.names]
    return pa.table(columns, schema=SCHEMA.arrow)


def place_of(folder: Path) -> dict[str, Any]:
    """Where the lake of a folder is, and its cold format; a file there may say something else."""
    place = {"root": str(folder / "lake"), "local": str(folder / "lake" / "_site")}
    place |= {"cold": "parquet", "storage_options": None}
    if (folder / "place").exists():
        place |= json.loads((folder / "place").read_text())
        cold.logwriter.CHECKPOINT_EVERY = 1  # so that each seal has every step
    return place


class Life:
    """One handle on a lake, with its ledger."""

    def __init__(self, folder: Path) -> None:
        self.place = place_of(folder)
        self.root = self.place["root"]
        self.site = Path(self.place["local"])
        self.ledger = Ledger(folder / "ledger")
        self.exported = folder / "events.parquet"
        self.handle: ls.Lake | None = None
        self.stumbles: list[str] = []

    @property
    def lake(self) -> ls.Lake:
        assert self.handle is not None
        return self.handle

    def check(self) -> None:
        """Every promise about rows."""
        if self.handle is not None:
            problems = self.ledger.problems(self.handle)
            assert not problems, problems

    def check_whole(self) -> None:
        """And whether every file and line is as it should be, which takes as long again."""
        self.check()
        if self.handle is not None:
            report = self.handle.verify()
            assert report.ok, f"verify: {report.problems}"

    def check_refused(self) -> None:
        """Nothing of the newest batch is there, if the last thing done was to hand it in."""
        key = next(reversed(self.ledger.submitted), None)
        if key is None or self.handle is None or key in self.ledger.acknowledged:
            return
        table, batch = key
        if batch.startswith("load"):  # what was loaded before the failure stays
            return
        known = set().union(
            *(n for (t, b), n in self.ledger.submitted.items() if t == table and b != batch)
        )
        own = self.ledger.submitted[key] - known
        assert not own & self.numbers(table), "a batch that was refused can be seen"

    def open(self) -> None:
        self.handle = self.opened()

    def opened(self, **options: object) -> ls.Lake:
        place = {name: self.place[name] for name in ("local", "storage_options")}
        settings = {"upkeep": "manual", "settings": SETTINGS}
        return ls.open(self.root, **(settings | place | options))

    def create(self, name: str) -> None:
        self.ledger.note("creating", name)
        self.lake.create_table(name, SCHEMA, cold=self.place["cold"], exist_ok=True)
        self.ledger.note("created", name)

    def append(self, table: str, batch: str, numbers: Iterable[int], level: str = "disk") -> None:
        """Hand in a batch whose name, such as `p-3`, is its producer and sequence number."""
        numbers = list(numbers)
        producer, _, seq = batch.partition("-")
        self.ledger.note("submit", table, batch, numbers)
        data: Any = rows(numbers)
        if producer == "bad":
            data = [*data.to_pylist(), *MISFITS]
        ack = self.lake[table].append(data, producer=producer, seq=int(seq), level=level)
        self.lake.wait(ack.position)
        self.ledger.note("acknowledge", table, batch)
        assert ack.rows + ack.duplicates == len(numbers)
        assert ack.rejected == len(data) - len(numbers)

    def load(self, table: str, numbers: Iterable[int]) -> None:
        """Load events in chunks of ten, each of which is a batch."""
        chunks.CHUNK_ROWS = 10
        numbers = list(numbers)
        batches = {f"load-{at}": numbers[at : at + 10] for at in range(0, len(numbers), 10)}
        for batch, some in batches.items():
            self.ledger.note("submit", table, batch, some)
        self.lake[table].load([rows(some) for some in batches.values()], load_id="load")
        for batch in batches:
            self.ledger.note("acknowledge", table, batch)

    def export(self) -> None:
        """Write everything to a file, which is whole whenever it is there."""
        self.lake["events"].export(self.exported, overwrite=self.exported.exists())
        self.check_exported()

    def check_exported(self) -> None:
        if self.exported.exists():
            ids = pq.read_table(self.exported, columns=["id"])["id"].to_pylist()
            assert sorted(ids) == [f"e{n:05d}" for n in range(60)]

    def flush(self) -> None:
        self.lake.flush()
        self.ledger.note("flushed", "")

    def seal(self) -> None:
        self.lake.seal()
        self.ledger.note("flushed", "")

    def evolve(self) -> None:
        self.lake["events"].evolve(EVOLVED)

    def prune(self) -> None:
        """Let the first day go: all that `prepare` has sealed, and more."""
        self.ledger.note("pruning", "events", numbers=FIRST_DAY)
        self.lake["events"].prune(before=START + timedelta(days=1), confirm=True)
        self.ledger.note("pruned", "events", numbers=FIRST_DAY)

    def undo(self) -> None:
        self.ledger.note("undoing", "events", numbers=FIRST_DAY)
        if not self.numbers("events") & set(FIRST_DAY):  # else an attempt that failed has done it
            self.lake["events"].undo()
        self.ledger.note("undone", "events", numbers=FIRST_DAY)

    def purge(self) -> None:
        """Erase a seventh of the events that were handed in up to now."""
        self.ledger.note("purging", "events", "", (n for n in range(100) if n % 7 == 3))
        done = self.lake["events"].purge({"note": "note 3"})
        if not done.complete:  # what an attempt that was cut short left was found on the way
            done = self.lake["events"].purge({"note": "note 3"})
        assert done.complete, done.remaining
        self.ledger.note("purged", "")
        self.ledger.note("flushed", "")

    def numbers(self, table: str) -> set[int]:
        ids = self.lake.sql(f"SELECT id FROM {table}").to_arrow()["id"].to_pylist()
        return {int(id[1:]) for id in ids}

    def drop(self, name: str) -> None:
        self.ledger.note("dropping", name)
        if name in self.lake:  # else an attempt that was reported as failed has done it
            self.lake.drop_table(name)

    def close(self) -> None:
        handle, self.handle = self.handle, None
        if handle is not None:
            handle.close()


Step = Callable[[Life], object]


def _append(batch: str, numbers: Iterable[int], level: str = "disk") -> Step:
    return lambda life: life.append("events", batch, numbers, level)


CHAPTERS: dict[str, list[Step]] = {
    "birth": [
        Life.open,
        lambda life: life.create("events"),
        _append("p-0", range(10)),
        Life.close,
    ],
    "append": [
        Life.open,
        _append("p-6", range(60, 70)),
        _append("p-7", range(65, 80), "os"),  # five are known
        _append("p-8", range(80, 85), "memory"),
        _append("p-8", range(80, 85)),  # sent again
        _append("q-0", range(5, 15)),  # all are sealed
        Life.close,
    ],
    "flush": [  # with a merge, because it is the third segment
        Life.open,
        _append("p-6", range(60, 80)),
        Life.flush,
        _append("p-7", range(75, 85)),
    ],
    "seal": [
        Life.open,
        _append("q-0", range(25, 35)),  # half sealed, half hot
        Life.seal,
        _append("p-6", range(60, 70)),
    ],
    "load": [  # of what is sealed, hot, and buffered, then of what is new
        Life.open,
        lambda life: life.load("events", LOADED),
        _append("p-6", range(85, 95)),
    ],
    "export": [
        Life.open,
        Life.export,
        _append("p-6", range(60, 70)),
    ],
    "vacuum": [
        Life.open,
        lambda life: life.lake.maintain(),
        _append("p-6", range(60, 70)),
    ],
    "prune": [
        Life.open,
        Life.seal,
        Life.prune,
        Life.undo,
        Life.prune,
        _append("p-6", range(60, 70)),
    ],
    "compact": [  # two files of the first day, and three of the second
        Life.open,
        Life.seal,
        _append("q-1", range(60, 70)),
        Life.seal,
        lambda life: life.lake["events"].compact(),
        lambda life: life.lake["events"].vacuum(dry_run=False),
        _append("p-6", range(70, 80)),
        _append("q-2", range(20, 30)),  # all are in a file that took the place of others
    ],
    "purge": [
        Life.open,
        _append("p-6", range(60, 70)),
        Life.purge,
    ],
    "reject": [  # of which two rows do not fit
        Life.open,
        lambda life: life.lake["events"].evolve(REJECTING),
        _append("bad-0", range(60, 70)),
        _append("p-7", range(65, 80)),
    ],
    "drop": [
        Life.open,
        lambda life: life.drop("extra"),
        lambda life: life.create("extra"),
        lambda life: life.append("extra", "x-1", range(300, 310)),
    ],
    "evolve": [
        Life.open,
        _append("p-6", range(60, 70)),
        Life.evolve,
        _append("p-7", range(65, 80)),
        Life.flush,
    ],
    "reopen": [
        Life.open,
        _append("p-6", range(60, 70)),
    ],
}
"""What is done to a lake: to a new one in `birth`, else to what `prepare` left."""


def play(folder: Path, chapter: str, mutant: str | None = None) -> None:
    """A chapter, told to no one: whoever set failpoints expects it to end early."""
    plant(mutant)
    life = Life(folder)
    for step in CHAPTERS[chapter]:
        step(life)


def stumble(folder: Path, chapter: str) -> Life:
    """A chapter in which a step may fail as the disk does, and then must work when repeated.

    The handle stays open: what it answers must be right after the failure, and after each step
    from then on.
    """
    life = Life(folder)
    for step in CHAPTERS[chapter]:
        try:
            step(life)
        except (ls.StorageError, OSError) as error:
            life.stumbles.append(repr(error))
            life.check_whole()
            if isinstance(error, ls.StorageError):
                life.check_refused()
            step(life)
        if life.stumbles:
            life.check()
    return life


def prepare(folder: Path) -> None:
    """A lake with something of everything, and a dead writer: this process."""
    life = Life(folder)
    life.open()
    life.create("events")
    life.append("events", "p-0", range(20))
    life.lake.flush()
    life.append("events", "p-1", range(20, 30))
    life.lake.seal()
    for name in ("extra", "gone"):
        life.create(name)
        life.append(name, "x-0", range(300, 305))
        life.lake.flush()
    life.lake["gone"].seal()
    life.drop("gone")
    life.append("events", "p-2", range(30, 40))
    life.lake.flush()
    life.append("events", "p-3", range(35, 50), level="os")
    life.lake.flush()
    life.append("events", "p-4", range(45, 55))
    life.append("extra", "x-1", range(304, 310))
    life.append("events", "p-5", range(55, 60), level="os")
    (next((life.site / "staging").iterdir()) / "half.parquet").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)


def check_rebuilt(folder: Path) -> None:
    """What must hold of a copy whose catalog is lost, and made again from the files."""
    life = Life(folder)
    for path in life.site.glob("catalog.sqlite*"):
        path.unlink()
    rebuild(life.root, local=life.site, storage_options=life.place["storage_options"])
    life.open()
    life.check_whole()
    life.flush()
    life.lake.maintain()
    life.check_whole()
    life.close()


def check(folder: Path) -> None:
    """Everything that must hold after a crash, for a process that knows nothing of it."""
    life = Life(folder)
    life.open()
    life.create("events")
    life.check_whole()
    life.check_exported()
    if any(batch.startswith("load") for _, batch in life.ledger.submitted):
        life.load("events", LOADED)  # as whoever was killed would
    for (table, batch), numbers in list(life.ledger.submitted.items()):
        if table == "events" and (table, batch) not in life.ledger.acknowledged:
            life.append(table, batch, sorted(numbers))  # as its sender would, who never heard
    if life.ledger.maybe_purged:  # as who wanted it would, who never heard
        life.purge()
    life.append("events", "r-0", range(200, 215))
    life.flush()
    life.check()
    life.append("events", "r-1", range(210, 220))
    life.seal()
    life.lake.maintain()
    life.check_whole()
    expected = life.numbers("events")
    folder = life.lake["events"]._context.entry.folder
    facts = life.lake.sql("SELECT count(*), sum(n), count(DISTINCT id) FROM events").fetchone()
    assert facts == (len(expected), sum(n * n for n in expected), len(expected))
    assert rolled_up(life.lake) == facts[:2]
    life.close()
    staged = [p for p in (life.site / "staging").rglob("*") if p.is_file()]
    assert staged == [], f"staged files are left: {staged}"
    if life.place["cold"] == "delta":
        check_engines(life, folder, expected)
    if life.place["storage_options"] is not None:
        return
    with duckdb.connect(f"{life.root}/lake.duckdb", read_only=True) as con:
        seen = con.sql("SELECT count(*), count(DISTINCT id) FROM events").fetchall()
        added = con.sql("SELECT sum(n), sum(sum_n) FROM events_rollup_hourly").fetchall()
    assert seen == [(len(expected), len(expected))]
    assert added == [facts[:2]]
    with life.opened(mode="r") as reader:
        assert life.ledger.problems(reader) == []


def rolled_up(lake: ls.Lake) -> tuple[object, ...]:
    """What the partials of all that is published add up to."""
    context = lake["events"]._context
    (one,), state = context.schema.document.rollups, context.state()
    with context.partials.load(one, state.hot, state.cold) as loaded:
        assert not loaded.missing
        with lake._site.engine.cursor() as cursor:
            query = f"SELECT sum(n), sum(sum_n) FROM {relation(loaded)}"
            return cursor.execute(query).fetchall()[0]


def check_engines(life: Life, folder: str, expected: set[int]) -> None:
    """All of it is sealed by now: another engine reads the same rows."""
    options = life.place["storage_options"]
    engine = {k: v for k, v in (options or {}).items() if k != "timeout"}
    engine |= {"AWS_ALLOW_HTTP": "true"} if options else {}
    table = DeltaTable(f"{life.root}/tables/{folder}/data", storage_options=engine or None)
    ids = table.to_pyarrow_table()["id"].to_pylist()
    assert sorted(ids) == sorted(f"e{n:05d}" for n in expected)
