"""The whole lake against a plain list: any sequence of steps, two writers, crashes in between.

The model knows for each table which events are published and which each writer holds unflushed.
An event that is in both, because its second writer could not know of the first, may be seen
twice until that writer flushes, and never after. What was sealed at some version is remembered
now and then: whoever goes back sees exactly that, or is told that files of it are deleted.
"""

import itertools
import shutil
import tempfile
from collections import Counter
from datetime import timedelta
from pathlib import Path

import duckdb
import hypothesis.strategies as st
import numpy as np
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
from support.model import SHAPES, START, Event, Held, Model, Prune, Row, Then, at, row, rows, schema

import lakestore as ls
from lakestore import erasure, lineage, prune, undo
from lakestore.append import Appender
from lakestore.catalog.commit import Commit
from lakestore.cold.delta import DeltaCold
from lakestore.delta.past import as_of
from lakestore.lineage import _expression
from lakestore.load import fresh as loads
from lakestore.tail import JournalTails
from lakestore.travel import TableVersion

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

NAMES = ("one", "two")
SETTINGS = {
    "segments_max": 2,
    "segment_duckdb_rows": 8,
    "vacuum_grace_s": 0,
    "flush_age_s": 10**6,  # else a slow machine flushes in `maintain`, and the model does not
}
KEPT_S = 10**6

some_event = st.tuples(st.integers(0, 40), st.integers(0, 1))
events = st.lists(some_event, max_size=12, unique=True)
names = st.sampled_from(NAMES)
levels = st.sampled_from(["disk", "os", "memory"])
writers = st.sampled_from(["first", "second"])
scopes = st.sampled_from(["day", "table", "none"])
colds = st.sampled_from(["parquet", "delta"])
shapes = st.integers(0, SHAPES)
with_a_table = precondition(lambda self: bool(self.models))


class LakeMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="lakestore-model-"))
        self.roots = (self.folder / str(i) for i in itertools.count())
        self.root = next(self.roots)
        self.models: dict[str, Model] = {}
        self.lakes: dict[str, ls.Lake] = {}
        self.keeps = False
        self.has_only_looked = False  # in the last step

    # Opening, and what a writer knows then.

    def open(self, writer: str) -> None:
        graces = {"cold_grace_s": KEPT_S if self.keeps else 0}
        lake = ls.open(self.root, upkeep="manual", settings=SETTINGS | graces)
        self.take_over_dead(writer)
        for name, model in self.models.items():
            held = model.of(writer)
            held.known = model.keys([*model.hot(), *held.rows])
            assert name in lake
        self.lakes[writer] = lake

    def take_over_dead(self, writer: str) -> None:
        for model in self.models.values():
            dead = [w for w in model.held if w not in {*self.lakes, writer}]
            held = model.of(writer)
            for one in dead:
                left = model.held.pop(one).rows
                held.rows += left
                held.known |= model.keys(left)

    @initialize(
        scope=scopes,
        cold=colds,
        batch=st.lists(some_event, min_size=4, max_size=12, unique=True),
        keeps=st.booleans(),
        seals=st.booleans(),
    )
    def begin(self, scope: str, cold: str, batch: list[Event], keeps: bool, seals: bool) -> None:
        """What is replaced stays till the end, or until the next vacuum."""
        self.keeps = keeps
        self.open("first")
        self.create("one", scope, cold)
        self.hand_in("first", "one", batch, "disk", None)
        if seals:
            self.seal("first")

    # The steps.

    def there(self, writer: str, name: str) -> tuple[str, str]:
        """The writer and the table that are named, or others where there are none such."""
        return (
            writer if writer in self.lakes else "first",
            name if name in self.models else min(self.models),
        )

    @rule(
        name=names,
        scope=scopes,
        cold=colds,
    )
    def create(self, name: str, scope: str, cold: str) -> None:
        if name in self.models:
            with pytest.raises(ls.InvalidInputError, match="exists"):
                self.lakes["first"].create_table(name, schema(scope), cold=cold)
            return
        self.lakes["first"].create_table(name, schema(scope), cold=cold)
        self.models[name] = Model(scope, cold)

    @rule(name=names)
    def drop(self, name: str) -> None:
        if name not in self.models:
            with pytest.raises(ls.NotFoundError):
                self.lakes["first"].drop_table(name)
            return
        self.lakes["first"].drop_table(name)
        del self.models[name]

    @with_a_table
    @rule(batch=events, level=levels, writer=writers, name=names, shape=shapes)
    def append(self, batch: list[Event], level: str, writer: str, name: str, shape: int) -> None:
        self.hand_in(writer, name, batch, level, None, shape)

    @with_a_table
    @rule(batch=events, level=levels, writer=writers, name=names, step=st.integers(-1, 2))
    def append_with_seq(
        self, batch: list[Event], level: str, writer: str, name: str, step: int
    ) -> None:
        """Steps of 0 and -1 send a number again."""
        self.hand_in(writer, name, batch, level, step)

    @with_a_table
    @rule(
        writer=writers,
        name=names,
        before=st.sampled_from(["nothing", "flush", "seal", "seal and reopen"]),
        data=st.data(),
    )
    def append_again(self, writer: str, name: str, before: str, data: st.DataObject) -> None:
        """Events that are there already, sealed ones too."""
        writer, name = self.there(writer, name)
        if before != "nothing":
            getattr(self, before.split()[0])(writer)
        if before == "seal and reopen":  # a writer that opens knows nothing of cold files
            self.reopen(writer)
        if there := sorted(self.models[name].most()):
            batch = data.draw(st.lists(st.sampled_from(there), max_size=6, unique=True))
            self.hand_in(writer, name, batch, "disk", None)

    def hand_in(
        self,
        writer: str,
        name: str,
        batch: list[Event],
        level: str,
        step: int | None,
        shape: int = SHAPES,
    ) -> None:
        writer, name = self.there(writer, name)
        model = self.models[name]
        held = model.of(writer)
        shape = min(shape, model.shape)
        producer = seq = None
        if step is not None:
            producer, seq = "producer", max(0, model.seq + step)
            level = "os" if level == "memory" else level  # else the other writer cannot know it
        ack = self.lakes[writer][name].append(
            rows(batch, shape), producer=producer, seq=seq, level=level
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
        model.take(fresh, shape)
        if level == "memory":
            held.unwritten |= fresh

    def take(self, model: Model, held: Held, batch: list[Event], ack: ls.Ack) -> set[Event]:
        """Put a batch in the model of a table that drops duplicates; returns what may be new."""
        there = model.keys(model.most())
        mine = model.keys([*model.published, *held.rows]) & held.known
        new, unsure = set(), set()
        for event in batch:
            key = model.key(event)
            if key in mine:
                continue
            (unsure if key in there else new).add(event)
            mine.add(key)
            held.known.add(key)
        assert len(new) <= ack.rows <= len(new) + len(unsure)
        for event in new | unsure:
            held.rows[event] += 1
        return new | unsure

    @rule(writer=writers)
    def flush(self, writer: str) -> None:
        if writer in self.lakes:
            self.lakes[writer].flush()
            for model in self.models.values():
                model.flush(writer)
                self.settle(model)

    @rule(writer=writers)
    def seal(self, writer: str) -> None:
        if writer in self.lakes:
            self.lakes[writer].seal()
            for model in self.models.values():
                model.flush(writer)
                self.settle(model)
                model.seal()

    def settle(self, model: Model) -> None:
        """In scope `table` one of several events of an id was kept; the lake says which."""
        if model.scope != "table":
            return
        name = next(name for name, m in self.models.items() if m is model)
        kept = self.published(name)
        assert not [event for event, count in kept.items() if count > 1]
        assert model.keys(kept) == model.keys(model.published)
        model.published = kept

    @rule()
    def maintain(self) -> None:
        report = self.lakes["first"].maintain()
        assert report.problems == []
        self.take_over_dead("first")
        for name, model in self.models.items():
            self.deleted(name)
            if report.compacted:
                model.replace()

    @rule(name=names)
    def vacuum(self, name: str) -> None:
        if name in self.models:
            self.lakes["first"][name].vacuum(dry_run=False)
            self.deleted(name)

    def deleted(self, name: str) -> None:
        if not self.keeps:
            self.models[name].delete()

    @with_a_table
    @rule(
        writer=writers,
        name=names,
        seals=st.booleans(),
        vacuums=st.booleans(),
    )
    def compact(self, writer: str, name: str, seals: bool, vacuums: bool) -> None:
        """What there is, and the same rows in other files, are one to the model."""
        writer, name = self.there(writer, name)
        if seals:
            self.seal(writer)
        if self.lakes[writer][name].compact().files_before:
            self.models[name].replace()
        if vacuums:
            self.vacuum(name)

    @with_a_table
    @rule(
        writer=writers,
        name=names,
        batch=events,
        load_id=st.sampled_from([None, "a", "b"]),
        shape=shapes,
    )
    def load(
        self, writer: str, name: str, batch: list[Event], load_id: str | None, shape: int
    ) -> None:
        """A batch that was loaded under its name is passed over, whatever became of its rows."""
        writer, name = self.there(writer, name)
        for other in set(self.lakes) - {writer}:
            if any(model.of(other).unwritten for model in self.models.values()):
                self.flush(other)  # else nobody can know them
        model = self.models[name]
        known = model.loads.get(load_id or "")
        batch, shape = known or batch, min(shape, model.shape)
        done = self.lakes[writer][name].load(rows(batch, shape), load_id=load_id)
        if known or not batch:
            assert (done.rows, done.skipped) == (0, len(batch))
            return
        there, fresh = model.keys(model.most()) if model.scope != "none" else set(), []
        for event in batch:
            if model.key(event) not in there:
                fresh.append(event)
            if model.scope != "none":
                there.add(model.key(event))
        assert (done.rows, done.duplicates) == (len(fresh), len(batch) - len(fresh))
        model.take(fresh, shape)
        model.published.update(fresh)
        model.seal()
        if fresh and load_id is not None:
            model.loads[load_id] = batch

    @with_a_table
    @rule(writer=writers, name=names, kind=st.sampled_from(["add", "widen"]))
    def evolve(self, writer: str, name: str, kind: str) -> None:
        writer, name = self.there(writer, name)
        model, table = self.models[name], self.lakes[writer][name]
        if kind == "add" and model.shape < SHAPES:
            table.evolve(add={f"c{model.shape + 1}": "BIGINT"})
            model.shape += 1
        elif kind == "widen" and model.cold == "delta":
            with pytest.raises(ls.SchemaError, match="n"):
                table.evolve(widen={"n": "BIGINT"})
        elif kind == "widen":
            assert table.evolve(widen={"n": "BIGINT"}).is_nothing == model.widened
            model.widened = True

    @with_a_table
    @rule(
        writer=writers,
        name=names,
        days=st.sampled_from([1, 2, 3, 11, 12, 13]),
        seals=st.booleans(),
        regrets=st.booleans(),
        data=st.data(),
    )
    def prune(
        self, writer: str, name: str, days: int, seals: bool, regrets: bool, data: st.DataObject
    ) -> None:
        """What is sealed of those days goes; and what is hot of them, where a segment has no more.

        For that, all that is hot is sealed.
        """
        writer, name = self.there(writer, name)
        model, table = self.models[name], self.lakes[writer][name]
        if seals:
            self.seal(writer)
        elif model.scope == "table":
            self.flush(writer)  # else nobody can know of which day an event is
        cutoff = START + timedelta(days=days)
        done = table.prune(before=cutoff, confirm=True)
        if done.segments:
            model.flush(writer)
            model.seal()
        gone = model.leave(lambda event: at(event) < cutoff)
        assert done.rows == gone.total()
        if gone:
            model.prunes.append(Prune(table.history(1)[0].version, gone))
        if regrets:
            self.undo(writer, name, data)

    @with_a_table
    @rule(writer=writers, name=names, data=st.data())
    def undo(self, writer: str, name: str, data: st.DataObject) -> None:
        """Of a prune, by default the newest one that was not taken back."""
        writer, name = self.there(writer, name)
        model, table = self.models[name], self.lakes[writer][name]
        known = {prune.version: prune for prune in model.prunes}
        version = data.draw(st.sampled_from([None, None, *known]))
        left = [p for p in model.prunes if p.state in ("there", "purged")]
        chosen = known[version] if version is not None else left[-1] if left else None
        try:
            done = table.undo(version)
        except ls.NotFoundError:
            assert chosen is None or chosen.state != "there"
            return
        except ls.ConflictError:
            assert chosen is not None
            assert model.scope != "none"
            if chosen.state == "there":
                assert model.keys(chosen.rows) & model.keys(model.published)
            return
        assert chosen is not None
        if chosen.state == "there":
            assert done.version == chosen.version
        back = known[done.version]
        assert (back.state, done.rows) == ("there", back.rows.total())
        assert model.scope == "none" or not model.keys(back.rows) & model.keys(model.published)
        model.come_back(back)

    @with_a_table
    @rule(writer=writers, name=names, width=st.integers(0, 5), data=st.data())
    def purge(self, writer: str, name: str, width: int, data: st.DataObject) -> None:
        writer, name = self.there(writer, name)
        model, table = self.models[name], self.lakes[writer][name]
        numbers = sorted({number for number, _ in model.most()}) or [0]
        low = data.draw(st.sampled_from(numbers))
        for other in set(self.lakes) - {writer}:
            self.flush(other)  # else it is waited for
        where = {"id": [f"e{number}" for number in range(low, low + width + 1)]}
        done = table.purge(where if width < 3 else {"n": ((">=", low), ("<=", low + width))})
        self.take_over_dead(writer)
        model.flush(writer)  # where there was nothing to be erased of it, the seal below does it
        model.seal()
        gone = model.purge(lambda event: low <= event[0] <= low + width)
        assert done.rows == (len(model.keys(gone)) if model.scope == "table" else gone.total())
        self.deleted(name)
        if set(self.lakes) == {writer}:  # else journals may be another's to delete
            if not done.complete:  # what a crash had left was found on the way
                done = table.purge(where)
            assert done.complete, done.remaining
        self.seal(writer)

    @with_a_table
    @rule(name=names)
    def go_back(self, name: str) -> None:
        """To all versions that are remembered; then remember the newest."""
        _, name = self.there("first", name)
        self.has_only_looked = True
        model, table = self.models[name], self.lakes["first"][name]
        told = table.history()
        readable = {version.version: version.readable for version in told}
        for then in model.versions:
            try:
                found = self.seen(table.at(then.version), model)
            except ls.NotFoundError:
                assert then.deleted or then.purged
                assert not readable.get(then.version, False)
            else:
                assert found == then.rows
                assert not then.purged
                assert readable[then.version]
        now = self.seen(table.at(told[0].version), model)
        assert self.events(now) == model.sealed
        model.versions.append(Then(told[0].version, now))

    @with_a_table
    @rule(writer=writers, name=names)
    def hold_a_version(self, writer: str, name: str) -> None:
        """While its files are replaced and deleted, as far as its holder lets them."""
        writer, name = self.there(writer, name)
        model, lake = self.models[name], self.lakes[writer]
        old = lake[name].at(lake[name].history(1)[0].version)
        before = self.seen(old, model)
        assert self.events(before) == model.sealed
        self.compact(writer, name, seals=True, vacuums=False)
        lake[name].vacuum(dry_run=False)
        assert self.seen(old, model) == before
        query = f'SELECT count(*) FROM old ANTI JOIN {name} USING (id, "at", n)'
        assert lake.sql(query).fetchall() == [(0,)]
        del old
        self.vacuum(name)

    @precondition(lambda self: "second" not in self.lakes)
    @rule()
    def open_a_second_writer(self) -> None:
        self.open("second")

    @rule(writer=writers)
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
            there = self.events_of(self.lakes["first"], name)
            for event in lost[name]:
                held.rows[event] = max(0, there[event] - model.published[event])
            held.rows = +held.rows
            held.known = model.keys([*held.rows, *model.hot()])

    def close_all(self) -> None:
        for lake in self.lakes.values():
            lake.close()
        self.lakes.clear()

    # What must hold after each step.

    def seen(self, shown: ls.Table | TableVersion, model: Model) -> Counter:
        """The rows that are shown, each as it was handed in."""
        return self.rows(shown.to_arrow().to_pylist(), model)

    def rows(self, found: list[dict], model: Model) -> Counter:
        made: Counter[Row] = Counter(row(one, model.shape) for one in found)
        assert [(e, shape) for e, shape in made if shape not in model.shapes.get(e, ())] == []
        return made

    @staticmethod
    def events(rows: Counter) -> Counter:
        found: Counter[Event] = Counter()
        for (event, _), count in rows.items():
            found[event] += count
        return found

    def events_of(self, lake: ls.Lake, name: str) -> Counter:
        return self.events(self.seen(lake[name], self.models[name]))

    def published(self, name: str) -> Counter:
        """What a plain DuckDB sees."""
        with duckdb.connect(str(self.root / "lake.duckdb"), read_only=True) as con:
            con.execute("SET TimeZone = 'UTC'")
            found = con.sql(f"FROM {name}").to_arrow_table().to_pylist()
        return self.events(self.rows(found, self.models[name]))

    @invariant()
    def every_answer_is_right(self) -> None:
        for writer, lake in self.lakes.items():
            assert lake.tables() == sorted(self.models)
            for name, model in self.models.items():
                self.judge(model, writer, self.events_of(lake, name))
        if "first" in self.lakes and not self.has_only_looked:
            report = self.lakes["first"].verify()
            assert report.ok, report.problems
        self.has_only_looked = False

    def judge(self, model: Model, writer: str, count: Counter) -> None:
        """A writer sees all of its own, and of others what they handed to the kernel."""
        most = model.most()
        foreign = {e for w, held in model.held.items() if w != writer for e in held.unwritten}
        assert count <= most, f"too many: {count - most}"
        keys = model.keys(count)
        required = model.keys(e for e in most if e not in foreign or model.published[e])
        assert required <= keys, f"lost: {required - keys}"
        if model.scope == "none":
            others = sum((h.rows for w, h in model.held.items() if w != writer), Counter())
            sure = most if not foreign else most - others
            assert sure <= count

    @with_a_table
    @rule(name=names, low=st.integers(0, 40), width=st.integers(0, 20), day=st.integers(0, 13))
    def query(self, name: str, low: int, width: int, day: int) -> None:
        _, name = self.there("first", name)
        self.has_only_looked = True
        lake = self.lakes["first"]
        seen = list(self.events_of(lake, name).elements())
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

    @with_a_table
    @rule(name=names)
    def a_reader_and_a_plain_duckdb_look(self, name: str) -> None:
        _, name = self.there("first", name)
        self.has_only_looked = True
        model = self.models[name]
        with ls.open(self.root, mode="r") as reader:
            self.judge(model, "", self.events_of(reader, name))
        assert self.published(name) == model.published

    def teardown(self) -> None:
        try:
            self.close_all()
            self.open("first")
            self.flush("first")
            for name, model in self.models.items():
                assert self.events_of(self.lakes["first"], name) == model.published
                self.go_back(name)
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
    examples, steps = (400, 50) if soak else (13, 20)
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


class Given:
    """Draws what it was given."""

    def __init__(self, value: object) -> None:
        self._value = value

    def draw(self, _: object) -> object:
        return self._value


def by_hand() -> None:
    """A few of the steps, in a fixed order."""
    machine = LakeMachine()
    try:
        machine.begin("day", "delta", [(n, 0) for n in range(12)], keeps=True, seals=True)
        machine.go_back("one")
        machine.prune("first", "one", days=1, seals=False, regrets=False, data=None)
        machine.every_answer_is_right()
        machine.append([(20, 1), (21, 1)], "disk", "first", "one", 0)
        machine.load("first", "one", [(20, 1), (30, 0)], None, 0)
        machine.seal("first")
        machine.every_answer_is_right()
        machine.go_back("one")
        machine.evolve("first", "one", "add")
        machine.append([(22, 1)], "disk", "first", "one", 1)
        machine.every_answer_is_right()
        machine.append([(0, 0)], "disk", "first", "one", 1)  # which was pruned
        machine.flush("first")
        machine.undo("first", "one", data=Given(None))
        machine.every_answer_is_right()
        machine.seal("first")
        machine.undo("first", "one", data=Given(None))
        machine.every_answer_is_right()
        machine.purge("first", "one", width=1, data=Given(20))
        machine.every_answer_is_right()
    finally:
        machine.teardown()


def test_steps_by_hand():
    by_hand()


LATER_MUTANTS = {
    "a version is what there is now": (
        DeltaCold,
        "as_of",
        lambda cold, wanted: as_of(cold._log, cold._log.refresh().version),
    ),
    "a prune stops at nothing": (prune, "_has_expired", lambda *_: True),
    "a load does not look at what is buffered": (
        loads,
        "_held",
        lambda fresh, *_: np.zeros(fresh.rows.num_rows, dtype=np.bool_),
    ),
    "an undo does not look at what is hot": (undo, "_check_hot", lambda *_: None),
    "an undo does not look at what is sealed": (undo, "_Examination", lambda *_: lambda _: None),
    "a purge leaves what is sealed": (erasure, "choose", lambda *_: None),
    "a column that is added is full in old files": (
        lineage,
        "_expression",
        lambda column, origin: _expression(column, origin).replace("NULL", "7"),
    ),
}


@pytest.mark.parametrize("mutant", LATER_MUTANTS)
def test_a_planted_bug_of_a_newer_verb_is_caught(monkeypatch, figure, mutant):
    monkeypatch.setattr(*LATER_MUTANTS[mutant])
    figure("state machine", "mutants planted")
    with pytest.raises((AssertionError, ls.LakestoreError)):
        by_hand()
    figure("state machine", "mutants caught")
