"""Bad weather at every request of a lake: no row is lost, doubled, or back.

Of an open, a seal, a compaction, a query and a vacuum; of a change of the schema, a load, a purge,
prunes and an undo. Each cell is one fault at one kind of request. While it lasts, calls may fail
with an error of lakestore's, and appends may not; once it is over, everything is there once that
was acknowledged, nothing is that was erased, and what failed can be done.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import SCHEMA, events
from support.faultproxy import Rule, Weather, proxied
from support.sites import before_the_next_commit
from support.store import Store
from support.storms import LIVES, Life

import lakestore as ls
from lakestore.cold.delta import DeltaCold
from lakestore.delta.log import DeltaLog
from lakestore.storage.s3 import S3Storage

pytestmark = pytest.mark.faults

_STORE = [
    "PUT probe", "GET probe", "POST delete", "GET lake file", "HEAD lake file", "GET list",
    "PUT data", "PUT views", "GET data", "PUT record", "HEAD data",
]  # fmt: skip
_LOG = [
    "GET log version", "GET last checkpoint", "GET checkpoint", "PUT log version", "PUT checkpoint",
    "PUT last checkpoint", "HEAD tombstone",
]  # fmt: skip
_LATER = ["PUT schema", "PUT empty file", "GET record"]
KINDS = {
    ("small", "delta"): [*_STORE, *_LOG],
    ("small", "parquet"): [*_STORE, "HEAD tombstone"],
    ("later", "delta"): [*_STORE, *_LOG, *_LATER, "HEAD checkpoint", "HEAD log version"],
    ("later", "parquet"): [*_STORE, *_LATER],
}
"""Every kind of request that a life makes; `test_every_request_is_tried` holds them equal."""
LASTING = ("503", "never answers", "reset before", "expired")
ONCE = ("500", "429", "reset after", "slow")
READING = ("truncated", "flipped")
CREATING = ("spurious 409", "spurious 412")
Stage = tuple[Store, Weather]

CENTRAL = {
    ("small", "delta"): [
        "GET list",
        "GET log version",
        "PUT log version",
        "PUT data",
        "PUT record",
    ],
    ("small", "parquet"): ["PUT data"],
}
"""Kinds at which every fault is tried in every run; at the others a few, and with --soak all."""
_AT_STAKE = (
    "PUT log version", "PUT data", "PUT record", "PUT schema", "POST delete", "GET data",
    "GET record",
)  # fmt: skip
FEW = ("503", "reset after")


def is_usual(life: str, cold: str, kind: str, fault: str) -> bool:
    """Whether a cell is tried in every run."""
    if life == "later":  # ten seconds each
        return kind in _AT_STAKE and fault == ("reset after" if kind.startswith("P") else "503")
    return kind in CENTRAL[life, cold] or fault in FEW


def cells() -> list[object]:
    found = []
    for (life, cold), kinds in KINDS.items():
        for kind in kinds:
            faults = [(fault, 100) for fault in LASTING] + [(fault, 1) for fault in ONCE]
            faults += [(fault, 1) for fault in READING if kind.startswith("GET")]
            faults += [(fault, 1) for fault in CREATING if kind.startswith("PUT")]
            faults += [("stale list", 100)] if kind == "GET list" else []
            for fault, times in faults:
                marks = [] if is_usual(life, cold, kind, fault) else [pytest.mark.soak]
                found.append(pytest.param(life, cold, kind, fault, times, marks=marks))
    return found


@pytest.fixture(scope="module")
def stage(store: Store) -> Iterator[Stage]:
    with proxied(store) as staged:
        yield staged


@pytest.fixture
def life(stage: Stage, store: Store, prefix: str, tmp_path: Path) -> Iterator[Callable[..., Life]]:
    through, weather = stage

    def begin(name: str, cold: str) -> Life:
        one = LIVES[name](prefix, tmp_path / "site", store, through, cold)
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


@pytest.mark.parametrize(("name", "cold", "kind", "fault", "times"), cells())
def test_bad_weather(life, stage, figure, name, cold, kind, fault, times):
    _, weather = stage
    one = life(name, cold)
    rule = Rule(fault, kind, times)
    weather.rules.append(rule)
    _live_through(one, weather)
    assert rule.met, f"no request was {kind}"
    figure("bad weather", "cells")
    figure("bad weather", "calls failed", len(one.failures))


@pytest.mark.parametrize(("name", "cold"), KINDS)
def test_every_request_is_tried(life, stage, name, cold):
    _, weather = stage
    one = life(name, cold)
    one.storm()
    assert one.failures == []
    assert {seen.kind for seen in weather.log} == set(KINDS[name, cold])


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


def _live_through(one: Life, weather: Weather) -> None:
    one.storm()
    weather.clear()
    assert one.problems() == []


@pytest.mark.parametrize("name", LIVES)
def test_a_planted_bug_is_caught(life, stage, figure, monkeypatch, name):
    _, weather = stage
    one = life(name, "delta")
    weather.rules.append(Rule("reset after", "PUT log version", 1))
    figure("bad weather", "mutants planted")
    with monkeypatch.context() as patch, suppress(ls.CorruptionError):
        _no_looking(patch)
        with pytest.raises(AssertionError):  # of a query in the storm, or of what came of it
            _live_through(one, weather)
    weather.clear()
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
