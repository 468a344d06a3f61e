"""The whole lake against a plain list: any sequence of steps, two writers, crashes in between.

The model knows for each table which events are published and which each writer holds unflushed.
An event that is in both, because its second writer could not know of the first, may be seen
twice until that writer flushes, and never after.
"""

import itertools
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import lakestore as ls
from lakestore.append import Appender
from lakestore.catalog.commit import Commit
from lakestore.tail import JournalTails

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

START = datetime(2025, 1, 1, tzinfo=UTC)
NAMES = ("one", "two")
SETTINGS = {
    "segments_max": 2,
    "segment_duckdb_rows": 8,
    "vacuum_grace_s": 0,
    "cold_grace_s": 0,
    "flush_age_s": 10**6,  # else a slow machine flushes in `maintain`, and the model does not
}
Event = tuple[int, int]  # its number, and a day: the same id on another day


def schema(scope: str) -> ls.TableSchema:
    return ls.TableSchema.from_toml(
        f"""
        event_id = "id"
        event_time = "at"
        dedup = "{scope}"
        [columns]
        id = "VARCHAR not null"
        at = "TIMESTAMPTZ not null"
        n = "BIGINT"
        """
    )


def at(event: Event) -> datetime:
    number, day = event
    return START + timedelta(days=number % 3 + 10 * day, minutes=number)


def rows(events: list[Event], arrow: pa.Schema) -> pa.Table:
    return pa.table(
        {
            "id": [f"e{number}" for number, _ in events],
            "at": [at(event) for event in events],
            "n": [number for number, _ in events],
        },
        schema=arrow,
    )


@dataclass
class Held:
    """What one writer has of a table, beside what is published."""

    rows: Counter = field(default_factory=Counter)  # unflushed
    known: set = field(default_factory=set)  # must be told from new ones when handed in
    unwritten: set = field(default_factory=set)  # of `rows`: level `memory`, a crash may take them


@dataclass
class Model:
    """One table."""

    scope: str
    schema: ls.TableSchema
    published: Counter = field(default_factory=Counter)
    sealed: set = field(default_factory=set)
    held: dict[str, Held] = field(default_factory=dict)  # by writer
    seq: int = -1  # the newest of the one producer, which sends now to one writer, now to another

    def key(self, event: Event) -> object:
        return event[0] if self.scope == "table" else event

    def of(self, writer: str) -> Held:
        return self.held.setdefault(writer, Held())

    def most(self) -> Counter:
        """How often each event may be seen, at most."""
        return sum((held.rows for held in self.held.values()), Counter(self.published))

    def flush(self, writer: str) -> None:
        rows = self.of(writer).rows
        if self.scope == "none":
            self.published += rows
        else:
            self.published |= Counter(dict.fromkeys(rows, 1))
        self.of(writer).rows = Counter()
        self.of(writer).unwritten = set()


events = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 1)), min_size=0, max_size=12, unique=True
)
names = st.sampled_from(NAMES)
levels = st.sampled_from(["disk", "os", "memory"])


class LakeMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="lakestore-model-"))
        self.roots = (self.folder / str(i) for i in itertools.count())
        self.root = next(self.roots)
        self.models: dict[str, Model] = {}
        self.lakes: dict[str, ls.Lake] = {}

    # Opening, and what a writer knows then.

    def open(self, writer: str) -> None:
        lake = ls.open(self.root, upkeep="manual", settings=SETTINGS)
        self.take_over_dead(writer)
        for name, model in self.models.items():
            held = model.of(writer)
            hot = {event for event in model.published if event not in model.sealed}
            held.known = {model.key(event) for event in hot | set(held.rows)}
            assert name in lake
        self.lakes[writer] = lake

    def take_over_dead(self, writer: str) -> None:
        for model in self.models.values():
            dead = [w for w in model.held if w not in {*self.lakes, writer}]
            held = model.of(writer)
            for one in dead:
                left = model.held.pop(one).rows
                held.rows += left
                held.known |= {model.key(event) for event in left}

    @initialize(scope=st.sampled_from(["day", "table", "none"]), batch=events)
    def begin(self, scope: str, batch: list[Event]) -> None:
        self.open("first")
        self.create("one", scope)
        self.hand_in("first", "one", batch, "disk", None)

    # The steps.

    @rule(
        name=names,
        scope=st.sampled_from(["day", "table", "none"]),
        cold=st.sampled_from(["parquet", "delta"]),
    )
    def create(self, name: str, scope: str, cold: str = "parquet") -> None:
        if name in self.models:
            with pytest.raises(ls.InvalidInputError, match="exists"):
                self.lakes["first"].create_table(name, schema(scope), cold=cold)
            return
        self.lakes["first"].create_table(name, schema(scope), cold=cold)
        self.models[name] = Model(scope, schema(scope))

    @rule(name=names)
    def drop(self, name: str) -> None:
        if name not in self.models:
            with pytest.raises(ls.NotFoundError):
                self.lakes["first"].drop_table(name)
            return
        self.lakes["first"].drop_table(name)
        del self.models[name]

    @rule(batch=events, level=levels, writer=st.sampled_from(["first", "second"]), name=names)
    def append(self, batch: list[Event], level: str, writer: str, name: str) -> None:
        self.hand_in(writer, name, batch, level, None)

    @rule(
        batch=events,
        level=levels,
        writer=st.sampled_from(["first", "second"]),
        name=names,
        step=st.integers(-1, 2),
    )
    def append_with_seq(
        self, batch: list[Event], level: str, writer: str, name: str, step: int
    ) -> None:
        """Steps of 0 and -1 send a number again."""
        self.hand_in(writer, name, batch, level, step)

    @rule(
        writer=st.sampled_from(["first", "second"]),
        name=names,
        before=st.sampled_from(["nothing", "flush", "seal", "seal and reopen"]),
        data=st.data(),
    )
    def append_again(self, writer: str, name: str, before: str, data: st.DataObject) -> None:
        """Events that are there already, sealed ones too."""
        if before != "nothing":
            getattr(self, before.split()[0])(writer)
        if before == "seal and reopen":  # a writer that opens knows nothing of cold files
            self.reopen(writer)
        if name in self.models and (there := sorted(self.models[name].most())):
            batch = data.draw(st.lists(st.sampled_from(there), max_size=6, unique=True))
            self.hand_in(writer, name, batch, "disk", None)

    def hand_in(
        self, writer: str, name: str, batch: list[Event], level: str, step: int | None
    ) -> None:
        if writer not in self.lakes or name not in self.models:
            return
        model = self.models[name]
        held = model.of(writer)
        producer = seq = None
        if step is not None:
            producer, seq = "producer", max(0, model.seq + step)
            level = "os" if level == "memory" else level  # else the other writer cannot know it
        ack = self.lakes[writer][name].append(
            rows(batch, model.schema.arrow), producer=producer, seq=seq, level=level
        )
        assert ack.rows + ack.duplicates == len(batch)
        if not batch:
            return
        if seq is not None:
            if seq <= model.seq:
                assert ack.rows == 0
                return
            model.seq = seq
        if level != "memory":
            held.unwritten.clear()
        if model.scope == "none":
            held.rows.update(batch)
            assert ack.rows == len(batch)
            fresh = set(batch)
        else:
            fresh = self.take(model, held, batch, ack)
        if level == "memory":
            held.unwritten |= fresh

    def take(self, model: Model, held: Held, batch: list[Event], ack: ls.Ack) -> set[Event]:
        """Put a batch in the model of a table that drops duplicates; returns what may be new."""
        there = {model.key(event) for event in model.most()}
        new, unsure = set(), set()
        for event in batch:
            key = model.key(event)
            if key in held.known:
                continue
            (unsure if key in there else new).add(event)
            held.known.add(key)
        assert len(new) <= ack.rows <= len(new) + len(unsure)
        for event in new | unsure:
            held.rows[event] += 1
        return new | unsure

    @rule(writer=st.sampled_from(["first", "second"]))
    def flush(self, writer: str) -> None:
        if writer in self.lakes:
            self.lakes[writer].flush()
            for model in self.models.values():
                model.flush(writer)
                self.settle(model)

    @rule(writer=st.sampled_from(["first", "second"]))
    def seal(self, writer: str) -> None:
        if writer in self.lakes:
            self.lakes[writer].seal()
            for model in self.models.values():
                model.flush(writer)
                self.settle(model)
                model.sealed = set(model.published)

    def settle(self, model: Model) -> None:
        """In scope `table` one of several events of an id was kept; the lake says which."""
        if model.scope != "table":
            return
        name = next(name for name, m in self.models.items() if m is model)
        kept = Counter(self.published(name))
        assert not [event for event, count in kept.items() if count > 1]
        assert {model.key(e) for e in kept} == {model.key(e) for e in model.published}
        model.published = kept

    @rule()
    def maintain(self) -> None:
        report = self.lakes["first"].maintain()
        assert report.problems == []
        self.take_over_dead("first")

    @rule(name=names)
    def vacuum(self, name: str) -> None:
        if name in self.models:
            self.lakes["first"][name].vacuum(dry_run=False)

    @rule(
        writer=st.sampled_from(["first", "second"]),
        name=names,
        seals=st.booleans(),
        vacuums=st.booleans(),
    )
    def compact(self, writer: str, name: str, seals: bool, vacuums: bool) -> None:
        """What there is, and the same rows in other files, are one to the model."""
        if seals:
            self.seal(writer)
        if writer in self.lakes and name in self.models:
            self.lakes[writer][name].compact()
            if vacuums:
                self.vacuum(name)

    @precondition(lambda self: "second" not in self.lakes)
    @rule()
    def open_a_second_writer(self) -> None:
        self.open("second")

    @rule(writer=st.sampled_from(["first", "second"]))
    def reopen(self, writer: str) -> None:
        if writer in self.lakes:
            self.lakes.pop(writer).close()
            for model in self.models.values():
                model.of(writer).unwritten.clear()
            if writer == "first":
                self.open("first")

    @rule()
    def crash(self) -> None:
        """What a SIGKILL of both writers leaves: the folder as it is now."""
        copy = next(self.roots)
        shutil.copytree(self.root, copy)
        self.close_all()
        shutil.rmtree(self.root)
        self.root = copy
        lost = {
            name: set().union(*(held.unwritten for held in model.held.values()))
            for name, model in self.models.items()
        }
        self.open("first")
        for name, model in self.models.items():
            held = model.of("first")
            there = Counter(self.events_of(self.lakes["first"], name))
            for event in lost[name]:
                held.rows[event] = max(0, there[event] - model.published[event])
            held.rows = +held.rows
            held.known = {model.key(e) for e in held.rows} | {
                model.key(e) for e in model.published if e not in model.sealed
            }

    def close_all(self) -> None:
        for lake in self.lakes.values():
            lake.close()
        self.lakes.clear()

    # What must hold after each step.

    def events_of(self, lake: ls.Lake, name: str) -> list[Event]:
        return [self.event(row) for row in lake[name].to_arrow().to_pylist()]

    def event(self, row: dict) -> Event:
        number = row["n"]
        assert row["id"] == f"e{number}"
        day = int(row["at"] != at((number, 0)))
        assert row["at"] == at((number, day))
        return number, day

    def published(self, name: str) -> list[Event]:
        """What a plain DuckDB sees."""
        with duckdb.connect(str(self.root / "lake.duckdb"), read_only=True) as con:
            con.execute("SET TimeZone = 'UTC'")
            found = con.sql(f"FROM {name}").to_arrow_table().to_pylist()
        return [self.event(row) for row in found]

    @invariant()
    def every_answer_is_right(self) -> None:
        for writer, lake in self.lakes.items():
            assert lake.tables() == sorted(self.models)
            for name, model in self.models.items():
                self.judge(model, writer, self.events_of(lake, name))
        if "first" in self.lakes:
            report = self.lakes["first"].verify()
            assert report.ok, report.problems

    def judge(self, model: Model, writer: str, seen: list[Event]) -> None:
        """A writer sees all of its own, and of others what they handed to the kernel."""
        most, count = model.most(), Counter(seen)
        foreign = {e for w, held in model.held.items() if w != writer for e in held.unwritten}
        assert count <= most, f"too many: {count - most}"
        keys = {model.key(e) for e in seen}
        required = {model.key(e) for e in most if e not in foreign or model.published[e]}
        assert required <= keys, f"lost: {required - keys}"
        if model.scope == "none":
            others = sum((h.rows for w, h in model.held.items() if w != writer), Counter())
            sure = most if not foreign else most - others
            assert sure <= count

    @rule(name=names, low=st.integers(0, 40), width=st.integers(0, 20), day=st.integers(0, 13))
    def query(self, name: str, low: int, width: int, day: int) -> None:
        if name not in self.models:
            return
        lake = self.lakes["first"]
        seen = self.events_of(lake, name)
        some = [n for n, _ in seen if low <= n <= low + width]
        answer = lake.sql(
            f"SELECT count(*), sum(n), min(n), max(n) FROM {name} WHERE n BETWEEN ? AND ?",
            [low, low + width],
        ).fetchone()
        nothing = (0, None, None, None)
        assert answer == ((len(some), sum(some), min(some), max(some)) if some else nothing)
        start, end = START + timedelta(days=day), START + timedelta(days=day + 1)
        found = lake[name].to_arrow(start=start, end=end)
        assert sorted(found["n"].to_pylist()) == sorted(e[0] for e in seen if start <= at(e) < end)
        found = lake[name].to_arrow(where={"id": f"e{low}"})
        assert found.num_rows == sum(n == low for n, _ in seen)
        assert lake[name].scan().select("n").collect().height == len(seen)

    @rule(name=names)
    def a_reader_and_a_plain_duckdb_look(self, name: str) -> None:
        if name not in self.models:
            return
        model = self.models[name]
        with ls.open(self.root, mode="r") as reader:
            self.judge(model, "", self.events_of(reader, name))
        assert Counter(self.published(name)) == model.published

    def teardown(self) -> None:
        try:
            self.close_all()
            self.open("first")
            self.flush("first")
            for name, model in self.models.items():
                assert Counter(self.events_of(self.lakes["first"], name)) == model.published
        finally:
            self.close_all()
            shutil.rmtree(self.folder)


def run(examples: int, steps: int, phases: tuple[Phase, ...] = tuple(Phase)) -> None:
    run_state_machine_as_test(
        LakeMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            phases=phases,
            derandomize=True,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


def test_the_lake_is_a_list(soak, figure):
    examples, steps = (400, 50) if soak else (16, 20)
    run(examples, steps)
    figure("state machine", "examples", examples)
    figure("state machine", "steps in each", steps)


MUTANTS = {
    "an append keeps duplicates": (
        Appender,
        "_drop_duplicates",
        lambda _, batches: (batches, np.empty(0, dtype=np.uint64)),
    ),
    "a flush leaves its journals": (Commit, "add_flushed", lambda *_: None),
    "others' journals are not read": (JournalTails, "pin", lambda *_: ()),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_planted_bug_is_caught(monkeypatch, figure, mutant):
    monkeypatch.setattr(*MUTANTS[mutant])
    figure("state machine", "mutants planted")
    with pytest.raises((AssertionError, ls.LakestoreError)):
        run(100, 20, (Phase.generate,))
    figure("state machine", "mutants caught")
