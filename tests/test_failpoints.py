"""Crash, and raise as a failing disk would, between any two effects: nothing is lost or doubled.

Each case plays one chapter of `support/lifecycle.py` on a lake that has something of everything.
A crash is a real one, of a real process; another process then judges what is left against the
ledger. A raise leaves the lake open, and the same handle must go on.
"""

import ast
import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from support import lifecycle
from support.zygote import Zygote

import lakestore as ls
from lakestore import failpoint

pytestmark = pytest.mark.faults

VERBS = {
    "birth": "create publish catalog",
    "append": "append journal",
    "flush": "flush merge segment publish catalog replace views",
    "seal": "seal publish catalog",
    "vacuum": "vacuum catalog",
    "drop": "drop create catalog",
    "reopen": "open recover replace views",
}
"""Which steps are tried in which chapter."""

FSYNCS = {
    "journal.2", "journal.3", "journal.6", "publish.1", "publish.3", "replace.1", "replace.2",
    "segment.1", "segment.3", "vacuum.2",
}  # fmt: skip
"""Points before an fsync, which may fail with EIO."""

CASES = [
    (chapter, f"{verb}.{step}")
    for chapter, verbs in VERBS.items()
    for verb in verbs.split()
    for step in range(1, failpoint.STEPS[verb] + 1)
]


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    process = Zygote()
    yield process
    process.close()


@pytest.fixture(scope="module")
def template(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    assert zygote.run("prepare", folder) == (-signal.SIGKILL, "")
    return folder


class Stage:
    """Where chapters are played: a fresh copy of the lake for each."""

    def __init__(self, zygote: Zygote, template: Path, folder: Path) -> None:
        self.zygote = zygote
        self._template = template
        self._folder = folder
        self._numbers = itertools.count()

    def lake_for(self, chapter: str) -> Path:
        folder = self._folder / str(next(self._numbers))
        if chapter == "birth":
            folder.mkdir()
        else:
            shutil.copytree(self._template, folder)
        return folder

    def must_die(self, verb: str, *arguments: object, failpoints: str) -> None:
        code, error = self.zygote.run(verb, *arguments, failpoints=failpoints)
        assert code == -signal.SIGKILL, error or f"{failpoints}: nothing happened"


@pytest.fixture
def stage(zygote: Zygote, template: Path, tmp_path: Path) -> Stage:
    return Stage(zygote, template, tmp_path)


@pytest.fixture(scope="module")
def hits(
    zygote: Zygote,
    template: Path,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Callable[[str, str], list[int]]:
    """When a chapter reaches a point: the first time, and the last where the two differ much."""
    both = ("publish", "catalog", "vacuum")
    soak = request.config.getoption("--soak")
    stage = Stage(zygote, template, tmp_path_factory.mktemp("counted"))

    @cache
    def count(chapter: str) -> Counter[str]:
        with failpoint.counting() as reached:
            lifecycle.stumble(stage.lake_for(chapter), chapter).close()
        return reached

    def of(chapter: str, point: str) -> list[int]:
        reached = count(chapter)[point]
        assert reached, f"{chapter} never reaches {point}"
        return sorted({1, reached}) if soak or point.split(".")[0] in both else [1]

    return of


def test_every_point_is_in_the_code_and_in_a_case():
    found = []
    for path in Path(ls.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "reach":
                assert isinstance(node.args[0], ast.Constant)
                found.append(node.args[0].value)
    assert sorted(found) == sorted(failpoint.POINTS)
    assert {point for _, point in CASES} == set(failpoint.POINTS)
    assert set(failpoint.POINTS) >= FSYNCS


@pytest.mark.parametrize(("chapter", "point"), CASES)
def test_a_crash_loses_and_doubles_nothing(stage, hits, figure, chapter, point):
    for hit in hits(chapter, point):
        folder = stage.lake_for(chapter)
        stage.must_die("play", folder, chapter, failpoints=f"{point}=crash@{hit}")
        lifecycle.check(folder)
        figure("failpoints", "crashes")


@pytest.mark.parametrize(("chapter", "point"), CASES)
def test_an_open_lake_goes_on_after_a_failing_disk(stage, hits, figure, chapter, point):
    for hit, error in itertools.product(
        hits(chapter, point), ["EIO"] if point in FSYNCS else ["ENOSPC"]
    ):
        folder = stage.lake_for(chapter)
        with failpoint.at(point, error, hit=hit) as trap:
            life = lifecycle.stumble(folder, chapter)
        assert trap.seen >= hit
        if life.handle is None:
            life.open()
        life.append("events", "r-0", range(200, 215))
        life.flush()
        life.seal()
        life.lake.maintain()
        life.check()
        life.close()
        life.open()
        life.check()
        life.close()
        figure("failpoints", "errors raised")


FIRST = ["flush.6", "seal.6"]
OPENING = [point for point in failpoint.POINTS if point.split(".")[0] in ("open", "recover")]


@pytest.mark.parametrize("point", [*OPENING, "views.2", "replace.2"])
def test_a_second_crash_during_recovery(stage, figure, point):
    """After each of two first ones, which leave published files that nothing names."""
    for first in FIRST:
        chapter = first.split(".")[0]
        folder = stage.lake_for(chapter)
        stage.must_die("play", folder, chapter, failpoints=f"{first}=crash")
        stage.must_die("play", folder, "reopen", failpoints=f"{point}=crash")
        lifecycle.check(folder)
        figure("failpoints", "second crashes")


PLANTED = [
    ("delete journals before the commit", "flush", "flush.6"),
    ("commit before the files are published", "flush", "publish.1"),
    ("delete journals when they are taken over", "reopen", "open.8"),
]


@pytest.mark.parametrize(("mutant", "chapter", "point"), PLANTED)
def test_a_planted_bug_is_caught(stage, figure, mutant, chapter, point):
    folder = stage.lake_for(chapter)
    stage.must_die("play", folder, chapter, mutant, failpoints=f"{point}=crash")
    figure("failpoints", "mutants planted")
    with pytest.raises((AssertionError, ls.CorruptionError), match=r"lost|missing|cannot be read"):
        lifecycle.check(folder)
    figure("failpoints", "mutants caught")


@pytest.mark.soak
@pytest.mark.parametrize("point", [*OPENING, "views.2", "replace.2"])
@pytest.mark.parametrize("first", CASES)
def test_all_pairs_of_crashes(stage, hits, first, point):
    chapter, first_point = first
    for hit in hits(chapter, first_point):
        folder = stage.lake_for(chapter)
        stage.must_die("play", folder, chapter, failpoints=f"{first_point}=crash@{hit}")
        code, error = stage.zygote.run("play", folder, "reopen", failpoints=f"{point}=crash")
        assert code in (0, -signal.SIGKILL), error  # there may be nothing to recover
        lifecycle.check(folder)


def test_points_are_set_by_the_environment(tmp_path):
    script = "import sys, lakestore as ls; ls.open(sys.argv[1], upkeep='manual').close()"

    def run(failpoints: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "LAKESTORE_FAILPOINTS": failpoints,
        }
        return subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "lake")],
            env=environment,
            capture_output=True,
            text=True,
        )

    assert run("publish.1=EIO@9;open.3=crash").returncode == -signal.SIGKILL
    failed = run("open.5=ENOSPC@1")
    assert failed.returncode == 1
    assert "No space left on device (failpoint open.5)" in failed.stderr
    for wrong in ("open.99=crash", "open.3=crush"):
        with pytest.raises(ValueError, match="no such failpoint, or no such action"):
            failpoint.configure(wrong)


def test_points_call_back_and_count():
    called = []
    with (
        failpoint.counting() as reached,
        failpoint.at("flush.1", lambda: called.append("second"), hit=2),
        failpoint.at("flush.1", lambda: called.append("each"), hit=None),
    ):
        for _ in range(3):
            failpoint.reach("flush.1")
    assert called == ["each", "second", "each", "each"] or called == [
        "each", "each", "second", "each",
    ]  # fmt: skip
    assert reached == {"flush.1": 3}
    failpoint.reach("flush.1")
    assert reached == {"flush.1": 3}
    with pytest.raises(ValueError, match="no such failpoint"), failpoint.at("flush.99", "crash"):
        pass
    with pytest.raises(OSError, match="failpoint") as caught, failpoint.at("seal.1", "EIO"):
        failpoint.reach("seal.1")
    assert caught.value.errno == errno.EIO
