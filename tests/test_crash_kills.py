"""kill -9 at random moments, while two writers, a reader and a maintainer share one table.

Whoever is killed is started again at once, and takes over what the dead have left while the others
go on. The reader judges every snapshot it sees; every few kills all processes are killed, and the
oracle judges what a fresh one finds.
"""

import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.forks import Child, Zygote

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3000)]

SEEDS = (1, 2)
KILLS = 50
KILLS_OF_A_SOAK = 5_000
KILLS_BETWEEN_CHECKS = 25
MUTANTS = ("acknowledge before the write", "delete journals before the commit")


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    with Zygote() as started:
        yield started


class Crowd:
    """The processes, and how to start each again."""

    def __init__(self, zygote: Zygote, folder: Path, seed: int, mutant: str | None = None) -> None:
        self.root, self.ledger = folder / "lake", folder / "ledger"
        self.kills = 0
        self._zygote = zygote
        self._folder = folder
        self._chance = random.Random(seed)
        self._mutant = mutant
        self._starts = 0
        self._living: dict[str, Child] = {}
        self.ledger.mkdir(parents=True)
        self.run("found", lambda output: self._start("support.many_lives:found", output, self.root))

    def run(self, name: str, start: Callable[[Path], Child]) -> str:
        """Start a process and wait for its end; what it printed, or nothing when all went well."""
        child = start(self._folder / f"{name}-{self._starts}")
        return "" if child.wait(120) == 0 else child.said or "failed without a word"

    def start(self, name: str) -> None:
        self._starts += 1
        output = self._folder / f"{name}-{self._starts}"
        if name == "reader":
            arguments = ("support.many_lives:read", output, self.root, self.ledger)
        elif name == "maintainer":
            arguments = ("support.many_lives:maintain", output, self.root, self._starts)
        else:
            arguments = ("support.many_lives:write", output, self.root, self.ledger, name)
            arguments += (self._starts,)
        mutant = () if name == "reader" else (self._mutant,)
        self._living[name] = self._start(*arguments, *mutant)

    def start_all(self) -> None:
        for name in ("ann", "bob", "reader", "maintainer"):
            self.start(name)

    def kill_one(self) -> list[str]:
        """Kill a process at a random moment, and start it again; what it had to say before."""
        name = self._chance.choice(sorted(self._living))
        time.sleep(self._chance.uniform(0.02, 0.5))  # the moment is what is being tried
        wrong = self._kill(name)
        self.start(name)
        return wrong

    def kill_all(self) -> list[str]:
        return [why for name in sorted(self._living) for why in self._kill(name)]

    def judge(self) -> list[str]:
        said = self.run(
            "judge",
            lambda output: self._start("support.many_lives:judge", output, self.root, self.ledger),
        )
        return [said] if said else []

    def _kill(self, name: str) -> list[str]:
        child = self._living.pop(name)
        child.kill()
        code = child.wait()
        self.kills += code == -9
        return [] if code == -9 else [f"{name} ended by itself, {code}: {child.said}"]

    def _start(self, function: str, output: Path, *arguments: object) -> Child:
        return self._zygote.start(function, *arguments, output=output)


def storm(crowd: Crowd, kills: int) -> list[str]:
    """So many kills; what went wrong, at the first check that found something."""
    wrong: list[str] = []
    while crowd.kills < kills and not wrong:
        crowd.start_all()
        until = min(kills, crowd.kills + KILLS_BETWEEN_CHECKS)
        while crowd.kills < until - len(crowd._living) and not wrong:
            wrong += crowd.kill_one()
        wrong += crowd.kill_all()
        wrong += crowd.judge()
    return wrong


@pytest.mark.parametrize("seed", SEEDS)
def test_random_kills(zygote, tmp_path, figure, soak, seed):
    crowd = Crowd(zygote, tmp_path, seed)
    wrong = storm(crowd, KILLS_OF_A_SOAK if soak else KILLS)
    assert wrong == []
    judged = json.loads((crowd.ledger / "judged.json").read_text())
    figure("kill -9 at random", "kills", crowd.kills)
    figure("kill -9 at random", "rows acknowledged", judged["acknowledged"])
    figure("kill -9 at random", "broken", len(wrong))
    assert crowd.kills >= KILLS
    assert judged["visible"] >= judged["acknowledged"] > 0


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_planted_bug_is_caught(zygote, tmp_path, figure, mutant):
    wrong = storm(Crowd(zygote, tmp_path, 3, mutant), 100)
    figure("kill -9 at random", "mutants planted")
    lost = [why for why in wrong if "lost" in why]
    figure("kill -9 at random", "mutants caught", min(1, len(lost)))
    assert lost, wrong
