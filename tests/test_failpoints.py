"""Crash, and raise as a failing disk would, between any two effects: nothing is lost or doubled.

Each case plays one chapter of `support/lifecycle.py` on a lake that has something of everything.
A crash is a real one, of a real process; another process then judges what is left against the
ledger. A raise leaves the lake open, and the same handle must go on.
"""

import ast
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from uuid import uuid4

import pytest
from support import lifecycle
from support.store import Store
from support.zygote import Zygote

import lakestore as ls
from lakestore import failpoint
from lakestore.cold import logwriter
from lakestore.load import chunks
from lakestore.storage.s3 import S3Storage

pytestmark = pytest.mark.faults

VERBS = {
    "birth": "create publish catalog",
    "append": "append journal",
    "flush": "flush merge segment rollup publish catalog replace views",
    "seal": "seal payload rollup publish catalog",
    "load": "load seal",
    "export": "export",
    "purge": "purge record",
    "vacuum": "vacuum catalog",
    "prune": "prune undo swap record",
    "compact": "compact swap record vacuum publish catalog",
    "drop": "drop create catalog",
    "reject": "reject",
    "evolve": "evolve publish catalog",
    "reopen": "open recover replace views",
}
"""Which steps are tried in which chapter."""

FSYNCS = {
    "journal.2", "journal.3", "journal.6", "payload.1", "publish.1", "publish.3",
    "replace.1", "replace.2", "segment.1", "segment.3", "vacuum.2",
}  # fmt: skip
"""Points before an fsync, which may fail with EIO."""

DELTA_VERBS = {
    "birth": "create delta",
    "seal": "seal delta publish",
    "load": "load",
    "evolve": "evolve delta",
    "prune": "prune undo swap record",
    "compact": "compact swap record delta",
    "purge": "purge swap record",
    "drop": "drop",
    "reject": "reject",
}
S3_VERBS = {
    "birth": "s3",
    "seal": "s3 delta payload",
    "load": "load",
    "evolve": "evolve s3",
    "prune": "undo",
    "purge": "purge",
    "compact": "s3 compact swap record vacuum",
    "reject": "reject",
}
"""The same of a lake whose tables are Delta, on this disk and in a store: what differs."""
ABSENT = {
    ("parquet", "prune"): {"swap.2"},
    ("parquet", "compact"): {"swap.2"},
    ("delta", "birth"): {"delta.3", "delta.4"},
    ("delta", "seal"): {"seal.6"},
    ("delta", "evolve"): {"delta.3", "delta.4"},
    ("s3", "birth"): {"s3.2"},
}
"""Steps that a chapter has no use for."""
CASES = [
    (kind, chapter, f"{verb}.{step}")
    for kind, chapters in (("parquet", VERBS), ("delta", DELTA_VERBS), ("s3", S3_VERBS))
    for chapter, verbs in chapters.items()
    for verb in verbs.split()
    for step in range(1, failpoint.STEPS[verb] + 1)
    if f"{verb}.{step}" not in ABSENT.get((kind, chapter), set())
]


AROUND_COMMITS = {
    "load.8", "load.9", "evolve.2", "evolve.3", "compact.4", "compact.5", "purge.6", "publish.3",
}  # fmt: skip
FIRST = {point: (kind, chapter, point) for kind, chapter, point in reversed(CASES)}


def _is_repeated(kind: str, chapter: str, point: str) -> bool:
    """Whether a step is tried in every run elsewhere, and here only with --soak.

    Each is tried once, in the first chapter that has it. A Delta table differs around its commit,
    and a store in what it seals.
    """
    if FIRST[point] == (kind, chapter, point):
        return False
    verb = point.split(".")[0]
    if kind == "delta":
        differs = verb in ("delta", "swap", "record", "undo", "reject")
        return not differs and point not in AROUND_COMMITS
    return kind != "s3" or chapter != "seal"


def _fails_alike(kind: str, chapter: str, point: str) -> bool:
    """Whether a failure there, which a handle outlives, is tried only with --soak.

    In each run fail the fsyncs, and the first and the last step of each verb; of the other cold
    format and of a store, where they write most.
    """
    verb, step = point.split(".")
    is_end = step in ("1", str(failpoint.STEPS[verb])) or point in FSYNCS
    return not is_end or (kind != "parquet" and chapter not in ("birth", "seal"))


def _marked(cases: list[tuple[str, str, str]], left_out: Callable[..., bool]) -> list[object]:
    soak = pytest.mark.soak
    return [pytest.param(*case, marks=soak if left_out(*case) else ()) for case in cases]


CRASHES = _marked(CASES, _is_repeated)
RAISES = _marked(CASES, lambda *case: _is_repeated(*case) or _fails_alike(*case))


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    process = Zygote()
    yield process
    process.close()


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a life that is played in this process sets goes back when its test ends."""
    monkeypatch.setattr(logwriter, "CHECKPOINT_EVERY", logwriter.CHECKPOINT_EVERY)
    monkeypatch.setattr(chunks, "CHUNK_ROWS", chunks.CHUNK_ROWS)


class Templates:
    """A lake of each kind with something of everything, made when it is first asked for."""

    def __init__(self, zygote: Zygote, store: Callable[[], Store], folder: Path) -> None:
        self._zygote = zygote
        self._store = store
        self._folder = folder
        self._made: dict[str, Path] = {}

    def of(self, kind: str) -> Path:
        if kind not in self._made:
            folder = self._folder / kind
            folder.mkdir()
            self.settle(kind, folder)
            assert self._zygote.run("prepare", folder) == (-signal.SIGKILL, "")
            self._made[kind] = folder
        return self._made[kind]

    def settle(self, kind: str, folder: Path) -> None:
        """Say in a folder of what kind its lake is, and where."""
        place: dict[str, object] = {"cold": "delta"}
        if kind == "s3":
            place["root"] = f"s3://{self._store().bucket}/{uuid4().hex}"
            place |= {"local": str(folder / "site"), "storage_options": self._store().options}
        if kind != "parquet":
            (folder / "place").write_text(json.dumps(place))

    def copy(self, kind: str, folder: Path, template: Path | None = None) -> None:
        """A lake as another is, or as the template."""
        template = template or self.of(kind)
        shutil.copytree(template, folder)
        if kind == "s3":
            self.settle(kind, folder)
            old, new = (
                S3Storage(json.loads((f / "place").read_text())["root"], self._store().options)
                for f in (template, folder)
            )
            for key in old.list(""):
                new.put(key, old.read(key), create=True)


@pytest.fixture(scope="module")
def template(
    zygote: Zygote, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Templates:
    folder = tmp_path_factory.mktemp("template")
    return Templates(zygote, lambda: request.getfixturevalue("store"), folder)


class Stage:
    """Where chapters are played: a fresh copy of the lake for each."""

    def __init__(self, zygote: Zygote, templates: Templates, folder: Path) -> None:
        self.zygote = zygote
        self._templates = templates
        self._folder = folder
        self._numbers = itertools.count()

    def lake_for(self, chapter: str, kind: str = "parquet") -> Path:
        folder = self._folder / str(next(self._numbers))
        if chapter == "birth":
            folder.mkdir()
            self._templates.settle(kind, folder)
        else:
            self._templates.copy(kind, folder)
        return folder

    def copy_of(self, lake: Path, kind: str) -> Path:
        folder = self._folder / str(next(self._numbers))
        self._templates.copy(kind, folder, lake)
        return folder

    def must_die(self, verb: str, *arguments: object, failpoints: str) -> None:
        code, error = self.zygote.run(verb, *arguments, failpoints=failpoints)
        assert code == -signal.SIGKILL, error or f"{failpoints}: nothing happened"


@pytest.fixture
def stage(zygote: Zygote, template: Templates, tmp_path: Path) -> Stage:
    return Stage(zygote, template, tmp_path)


@pytest.fixture(scope="module")
def hits(
    zygote: Zygote,
    template: Templates,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Callable[[str, str, str], list[int]]:
    """When a chapter reaches a point: the first time, and with --soak the last."""
    soak = request.config.getoption("--soak")
    stage = Stage(zygote, template, tmp_path_factory.mktemp("counted"))

    @cache
    def count(kind: str, chapter: str) -> Counter[str]:
        with failpoint.counting() as reached:
            lifecycle.stumble(stage.lake_for(chapter, kind), chapter).close()
        return reached

    def of(kind: str, chapter: str, point: str) -> list[int]:
        reached = count(kind, chapter)[point]
        assert reached, f"{chapter} never reaches {point}"
        return sorted({1, reached}) if soak else [1]

    return of


def test_every_point_is_in_the_code_and_in_a_case():
    found = []
    for path in Path(ls.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "reach":
                assert isinstance(node.args[0], ast.Constant)
                found.append(node.args[0].value)
    twice = ["swap.1"]  # each cold format commits in its own way
    assert sorted(found) == sorted([*failpoint.POINTS, *twice])
    assert {point for _, _, point in CASES} == set(failpoint.POINTS)
    assert set(failpoint.POINTS) >= FSYNCS


@pytest.mark.parametrize(("kind", "chapter", "point"), CRASHES)
def test_a_crash_loses_and_doubles_nothing(stage, hits, figure, kind, chapter, point):
    for hit in hits(kind, chapter, point):
        folder = stage.lake_for(chapter, kind)
        stage.must_die("play", folder, chapter, failpoints=f"{point}=crash@{hit}")
        if chapter == "compact":
            lifecycle.check_rebuilt(stage.copy_of(folder, kind))
        lifecycle.check(folder)
        figure("failpoints", "crashes")


@pytest.mark.parametrize(("kind", "chapter", "point"), RAISES)
def test_an_open_lake_goes_on_after_a_failing_disk(stage, hits, figure, kind, chapter, point):
    for hit, error in itertools.product(
        hits(kind, chapter, point), ["EIO"] if point in FSYNCS else ["ENOSPC"]
    ):
        folder = stage.lake_for(chapter, kind)
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
        life.check_whole()
        life.close()
        figure("failpoints", "errors raised")


OPENING = [point for point in failpoint.POINTS if point.split(".")[0] in ("open", "recover")]


@pytest.mark.parametrize("point", [*OPENING, "views.2", "replace.2"])
def test_a_second_crash_during_recovery(stage, figure, point):
    """After each of two first ones, which leave published files that nothing names."""
    for first in ("flush.6", "seal.6"):
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
    kind, chapter, first_point = first
    for hit in hits(kind, chapter, first_point):
        folder = stage.lake_for(chapter, kind)
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
