"""Bad weather at every request of a lake: no row is lost or doubled.

Of an open, a seal, a compaction, a query and a vacuum. Each cell is one fault at one kind of
request. While it lasts, calls may fail with an error of lakestore's, and appends may not; once it
is over, everything that was acknowledged is there once.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import SCHEMA, FixedClock, events
from deltalake import DeltaTable
from support.faultproxy import Rule, Weather, proxied
from support.sites import before_the_next_commit
from support.store import Store

import lakestore as ls
from lakestore.cold.delta import DeltaCold
from lakestore.delta.log import DeltaLog
from lakestore.storage.s3 import S3Storage

pytestmark = pytest.mark.faults

KINDS = {
    "delta": [
        "PUT probe", "GET probe", "POST delete", "GET lake file", "HEAD lake file", "GET list",
        "HEAD tombstone", "GET log version", "GET last checkpoint",
        "GET checkpoint", "PUT data", "PUT log version", "PUT checkpoint", "PUT last checkpoint",
        "PUT views", "GET data", "PUT record", "HEAD data",
    ],
    "parquet": ["HEAD lake file", "GET list", "POST delete", "PUT data", "PUT views", "GET data",
                "PUT record"],
}  # fmt: skip
"""Every kind of request that the scenario makes; `test_every_request_is_tried` holds them equal."""
LASTING = ("503", "never answers", "reset before", "expired")
ONCE = ("500", "429", "reset after", "slow")
READING = ("truncated", "flipped")
CREATING = ("spurious 409", "spurious 412")
OPTIONS = {"timeout": "0.4", "max_retries": "2"}
Stage = tuple[Store, Weather]


CENTRAL = {
    "delta": ["GET list", "GET log version", "PUT log version", "PUT data", "PUT record"],
    "parquet": ["PUT data"],
}
"""Kinds at which every fault is tried in every run; at the others a few, and with --soak all."""
FEW = ("503", "reset after", "flipped", "spurious 412")


def cells() -> list[object]:
    found = []
    for cold, kinds in KINDS.items():
        for kind in kinds:
            faults = [(fault, 100) for fault in LASTING] + [(fault, 1) for fault in ONCE]
            faults += [(fault, 1) for fault in READING if kind.startswith("GET")]
            faults += [(fault, 1) for fault in CREATING if kind.startswith("PUT")]
            faults += [("stale list", 100)] if kind == "GET list" else []
            for fault, times in faults:
                often = kind in CENTRAL[cold] or fault in FEW
                marks = [] if often else [pytest.mark.soak]
                found.append(pytest.param(cold, kind, fault, times, marks=marks))
    return found


@pytest.fixture(scope="module")
def stage(store: Store) -> Iterator[Stage]:
    with proxied(store) as staged:
        yield staged


class Life:
    """A lake with something of everything, then a storm, then good weather."""

    def __init__(self, root: str, local: Path, store: Store, through: Store, cold: str) -> None:
        self.root, self.local, self.cold = root, local, cold
        self.store, self.through = store, through
        self.clock = FixedClock()
        self.submitted = 0
        self.failures: list[str] = []

    def open(self, store: Store, **options: str) -> ls.Lake:
        return ls.open(
            self.root, local=self.local, upkeep="manual", clock=self.clock,
            storage_options=store.options | options,
            settings={
                "commit_timeout_s": 1.5, "cache_bytes": 0, "vacuum_grace_s": 0, "cold_grace_s": 0,
            },
        )  # fmt: skip

    def prepare(self) -> None:
        with self.open(self.store) as lake:
            for name in ("events", "gone"):
                table = lake.create_table(name, SCHEMA, cold=self.cold)
                table.append(events(0, 20))
                table.seal()
            lake.drop_table("gone")
            lake["events"].append(events(20, 40))
            lake["events"].flush()
        shutil.rmtree(self.local / "files", ignore_errors=True)  # so that a query has to ask
        self.clock.move(10_000)
        self.submitted = 40

    def storm(self) -> None:
        try:
            lake = self.open(self.through, **OPTIONS)
        except ls.LakestoreError as error:
            self.failures.append(repr(error))
            return
        table = lake["events"]
        assert table.append(events(40, 60)).rows == 20  # whatever the store does
        self.submitted = 60
        query = "SELECT count(*), count(DISTINCT id), sum(n) FROM events"
        ask = lambda: lake.sql(query).fetchall()  # noqa: E731
        for call in (table.seal, ask, table.compact, ask, lake.maintain, ask, lake.close):
            try:
                answer = call()
            except ls.LakestoreError as error:
                self.failures.append(repr(error))
                continue
            if isinstance(answer, list):
                assert answer == [(60, 60, self.total())]
        lake._site.catalog.close()

    def total(self) -> int:
        return sum(n for n in range(self.submitted) if n % 11)

    def problems(self) -> list[str]:
        """What is broken, once the weather is good again."""
        found = []
        with self.open(self.store) as lake:
            if self.submitted == 40:
                lake["events"].append(events(40, 60))
                self.submitted = 60
            lake.seal()
            query = "SELECT count(*), count(DISTINCT id), sum(n)::BIGINT FROM events"
            answer = lake.sql(query).fetchall()
            if answer != [(60, 60, self.total())]:
                found.append(f"rows: {answer}")
            report = lake.verify()
            found += [] if report.ok else [str(report)]
            table = lake["events"]
            table.compact()
            table.vacuum(dry_run=False)
            days = [file.day for file in table._context.state(newest=True).cold]
            found += [] if len(days) == len(set(days)) == 3 else [f"files of {days}"]
            if lake.sql(query).fetchall() != [(60, 60, self.total())]:
                found.append("other rows after a compaction")
            report = lake.verify()
            found += [] if report.ok else [str(report)]
        if self.cold == "delta":
            url = f"{self.root}/tables/events/data"
            rows = DeltaTable(url, storage_options=self.store.for_engines).to_pyarrow_table()
            if (rows.num_rows, len(set(rows["id"].to_pylist()))) != (60, 60):
                found.append(f"deltalake reads {rows.num_rows}")
        return found


@pytest.fixture
def life(stage: Stage, store: Store, prefix: str, tmp_path: Path) -> Iterator[Callable[..., Life]]:
    through, weather = stage

    def begin(cold: str) -> Life:
        one = Life(prefix, tmp_path / "site", store, through, cold)
        one.prepare()
        weather.log.clear()
        weather.listings.clear()
        return one

    yield begin
    weather.clear()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint at every version."""
    monkeypatch.setattr("lakestore.cold.logwriter.CHECKPOINT_EVERY", 1)


@pytest.mark.parametrize(("cold", "kind", "fault", "times"), cells())
def test_bad_weather(life, stage, figure, cold, kind, fault, times):
    _, weather = stage
    one = life(cold)
    rule = Rule(fault, kind, times)
    weather.rules.append(rule)
    one.storm()
    weather.clear()
    assert rule.met, f"no request was {kind}"
    assert one.problems() == []
    figure("bad weather", "cells")
    figure("bad weather", "calls failed", len(one.failures))


@pytest.mark.parametrize("cold", KINDS)
def test_every_request_is_tried(life, stage, cold):
    _, weather = stage
    one = life(cold)
    one.storm()
    assert one.failures == []
    met = {seen.kind for seen in weather.log}
    assert set(KINDS[cold]) <= met
    if cold == "delta":
        assert met == set(KINDS[cold])


def _no_looking(patch: pytest.MonkeyPatch) -> None:
    """A version that exists is another's, and what is sealed is not asked."""
    patch.setattr(
        DeltaLog, "commit", lambda log, version, data, _: log._put_new(log.key(version), data)
    )
    patch.setattr(DeltaCold, "_through", lambda cold, state: cold._catalog.states([cold._table.id])[
        cold._table.id].sealed_through)  # fmt: skip


def _overwriting(patch: pytest.MonkeyPatch) -> None:
    """Versions are put without a condition."""
    put = S3Storage.put
    patch.setattr(
        S3Storage, "put", lambda store, key, data, create: put(store, key, data, create=False)
    )


@pytest.mark.parametrize(("plant", "kind", "fault"), [
    (_no_looking, "PUT log version", "reset after"),
])  # fmt: skip
def test_a_planted_bug_is_caught(life, stage, figure, monkeypatch, plant, kind, fault):
    _, weather = stage
    one = life("delta")
    weather.rules.append(Rule(fault, kind, 1))
    with monkeypatch.context() as patch:
        plant(patch)
        one.storm()
    weather.clear()
    figure("bad weather", "mutants planted")
    with suppress(ls.CorruptionError):
        assert one.problems() != []
    figure("bad weather", "mutants caught")


def test_unconditional_puts_are_caught(stage, store, prefix, tmp_path, monkeypatch, figure):
    """Two sites that seal at once: without the condition one commit is lost."""
    figure("bad weather", "mutants planted")
    one = Life(prefix, tmp_path / "one", store, store, "delta")
    two = Life(prefix, tmp_path / "two", store, store, "delta")
    with one.open(store) as first:
        first.create_table("events", SCHEMA, cold="delta").append(events(0, 10))
        with two.open(store) as second, monkeypatch.context() as patch:
            second["events"].append(events(10, 20))
            _overwriting(patch)
            before_the_next_commit(patch, first.seal)
            second.seal()
            rows = second.sql("SELECT count(*) FROM events").fetchall()
    assert rows != [(20,)]
    figure("bad weather", "mutants caught")
