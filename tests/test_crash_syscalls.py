"""Lives of a lake, interrupted at every system call that changes one of its files.

Killed as it enters the n-th call; or the n-th call fails, once with EIO or ENOSPC, or, as on a
disk that is full from then on, with all later ones that need room. After each, a fresh process
opens the lake, and the oracle judges it. Under errors the process itself must live on: each
operation succeeds or raises a lakestore error, and its own view of the rows stays right.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from support.forks import Zygote
from support.lives import LATER, SMALL, Script, chunked
from support.sampling import evenly
from support.strace import (
    CHANGING,
    SPACE,
    Point,
    calls_below,
    need_strace,
    run_traced,
    struck,
    tracing,
)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

CHUNKS = {SMALL: 8} | dict.fromkeys(LATER, 3)
KILLS, ERRORS = 3, 3
"""A chunk, unless with --soak all points are tried."""
MUTANTS = (
    "acknowledge before the write",
    "delete journals before the commit",
    "commit before the files are published",
)


@dataclass(frozen=True)
class Fault:
    point: Point
    kind: str  # kill, EIO, ENOSPC, full

    def options(self) -> list[str]:
        if self.kind == "kill":
            return self.point.kill()
        return self.point.fill_the_disk() if self.kind == "full" else self.point.fail(self.kind)

    def __str__(self) -> str:
        return f"{self.kind} at {self.point.name} {self.point.count}: {self.point.text}"


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    need_strace()
    with Zygote() as started:
        yield started


@pytest.fixture(scope="session")
def points(
    zygote: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Script], list[Point]]:
    """Every call of an undisturbed life that changes a file of the lake."""

    @cache
    def recorded(script: Script) -> list[Point]:
        return record(zygote, tmp_path_factory.mktemp("undisturbed"), script)

    return recorded


def record(zygote: Zygote, folder: Path, script: Script, mutant: str | None = None) -> list[Point]:
    child, code, trace = run_traced(
        zygote, script.live, folder / "lake", folder / "ledger", *script.arguments, mutant,
        scratch=folder / "run", options=tracing(CHANGING),
    )  # fmt: skip
    assert (code, child.said) == (0, "")
    found = calls_below(trace, folder / "lake")
    kinds = Counter(point.name for point in found)
    assert {"write", "writev", "pwrite64", "fsync", "fdatasync", "unlink", "openat"} <= set(kinds)
    assert len(found) > 300, kinds
    return found


def run(
    zygote: Zygote,
    folder: Path,
    script: Script,
    faults: Sequence[Fault],
    mutant: str | None = None,
) -> tuple[int, list[str]]:
    """Let each fault happen in a lake of its own: how many struck, and what they broke."""
    wrong, hit = [], 0
    lakes: dict[str, Fault] = {}
    for number, fault in enumerate(faults):
        home = folder / f"{number}"
        lake = home / "lake"
        child, code, trace = run_traced(
            zygote, script.live, lake, home / "ledger", *script.arguments, mutant,
            scratch=home, options=fault.options(),
        )  # fmt: skip
        hit += code == -9 if fault.kind == "kill" else struck(trace, fault.point, lake)
        if code not in ((-9, 0) if fault.kind == "kill" else (0,)):
            wrong.append(f"{fault}: exit code {code}\n{child.said}")
        lakes[str(lake)] = fault
    judged = folder / "judged"
    pairs = [[lake, str(Path(lake).parent / "ledger")] for lake in lakes]
    code = zygote.run(
        script.judge, pairs, "os", judged, *script.arguments,
        output=folder / "judge", timeout_s=300,
    )  # fmt: skip
    assert code == 0, (folder / "judge").read_text()
    broken = json.loads(judged.read_text())
    return hit, wrong + [f"{lakes[lake]}\n{why}" for lake, why in broken.items()]


@chunked(CHUNKS)
def test_killed_at_a_system_call(zygote, points, tmp_path, figure, soak, script, chunk, chunks):
    every = [Fault(point, "kill") for point in points(script)]
    chosen = (every if soak else evenly(every, KILLS * chunks))[chunk::chunks]
    hit, wrong = run(zygote, tmp_path, script, chosen)
    figure("killed at a system call", "points", len(chosen))
    figure("killed at a system call", "struck", hit)
    figure("killed at a system call", "broken", len(wrong))
    assert wrong == []
    assert hit >= len(chosen) - max(1, len(chosen) // 20)  # DuckDB's threads vary from run to run
    if chunk == 0:
        figure("killed at a system call", "points there are", len(every))


@chunked(CHUNKS)
def test_an_error_at_a_system_call(zygote, points, tmp_path, figure, soak, script, chunk, chunks):
    faults = [Fault(point, "EIO") for point in points(script)]
    faults += [Fault(p, "ENOSPC") for p in points(script) if p.name in (*SPACE, "openat")]
    faults += [Fault(p, "full") for p in points(script) if p.name in SPACE]
    chosen = (faults if soak else evenly(faults, ERRORS * chunks))[chunk::chunks]
    hit, wrong = run(zygote, tmp_path, script, chosen)
    figure("an error at a system call", "points", len(chosen))
    figure("an error at a system call", "struck", hit)
    figure("an error at a system call", "broken", len(wrong))
    assert wrong == []
    assert hit >= len(chosen) - max(1, len(chosen) // 20)  # DuckDB's threads vary from run to run
    if chunk == 0:
        figure("an error at a system call", "points there are", len(faults))


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_planted_bug_is_caught(zygote, tmp_path, figure, mutant):
    found = record(zygote, tmp_path / "undisturbed", SMALL, mutant)
    near = [point for point in found if point.name in ("writev", "link", "fsync")]
    assert is_caught(zygote, tmp_path, figure, SMALL, near, mutant)


@pytest.mark.parametrize("script", LATER, ids=str)
def test_a_planted_bug_of_later_life_is_caught(zygote, tmp_path, figure, script):
    """Killed as it goes on after it deleted a cold file that nothing has replaced yet."""
    mutant = "delete replaced files before the commit"
    found = record(zygote, tmp_path / "undisturbed", script, mutant)
    near = [
        after
        for point, after in pairwise(found)
        if point.name == "unlink" and "/data/day=" in point.text
    ]
    assert is_caught(zygote, tmp_path, figure, script, near, mutant)


def is_caught(
    zygote: Zygote,
    folder: Path,
    figure: Callable[..., None],
    script: Script,
    near: Sequence[Point],
    mutant: str,
) -> bool:
    """Whether a kill at one of these points shows the bug."""
    caught = any(
        run(zygote, folder / f"{number}", script, [Fault(point, "kill")], mutant)[1]
        for number, point in enumerate(near)
    )
    figure("killed at a system call", "mutants planted")
    figure("killed at a system call", "mutants caught", int(caught))
    return caught
