"""A power loss at any moment of a lake's life loses nothing acknowledged at level `disk`.

A life is recorded system call by system call, with the data; then every state that the disk may
be in after a power loss is made, as an ordinary file system (ext4) and as a strict one (POSIX)
allow, opened and judged. deltalake, recorded in the same way, fails.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
from support import powerloss, recording
from support.forks import Zygote
from support.lives import DELTALAKE, LATER, SMALL, Script, chunked
from support.powerloss import State
from support.recording import Recording
from support.sampling import evenly
from support.strace import need_strace, run_traced

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

MODELS = {"ordinary": False, "strict": True}
CHUNKS = {SMALL: 5} | dict.fromkeys(LATER, 2)
STATES = 6
"""A chunk, unless with --soak all states are tried."""
MUTANTS = {
    "skip the fsync of folders": "strict",
    "skip the fsync of files": "ordinary",
    "skip the fdatasync of the journal": "ordinary",
}


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    need_strace()
    with Zygote() as started:
        yield started


@pytest.fixture(scope="session")
def states(
    zygote: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Script, str], tuple[Recording, list[State]]]:
    """What was recorded of a life, and every state that a model allows."""

    @cache
    def recorded(script: Script) -> Recording:
        return record(zygote, tmp_path_factory.mktemp("recorded"), script)

    @cache
    def explored(script: Script, model: str) -> tuple[Recording, list[State]]:
        made = recorded(script)
        return made, powerloss.explore(made, strict=MODELS[model])

    return explored


def record(zygote: Zygote, folder: Path, script: Script, mutant: str | None = None) -> Recording:
    """What one run of a life does; played back, it must give the files that the run left."""
    lake, ledger = folder / "lake", folder / "ledger"
    arguments = (*script.arguments, *([mutant] if mutant else []))
    child, code, trace = run_traced(
        zygote, script.live, lake, ledger, *arguments, scratch=folder / "run",
        options=recording.OPTIONS, timeout_s=200,
    )  # fmt: skip
    assert code == 0, child.said
    made = recording.read(trace, lake, ledger)
    assert made.check() > 5
    assert any(op.kind == "ledger" and b'"ack"' in op.data for op in made.ops)
    return made


def judge(
    zygote: Zygote, folder: Path, states: Sequence[State], old: str, script: Script
) -> list[str]:
    """What each state breaks, opened by a fresh process."""
    pairs: dict[str, State] = {}
    for number, state in enumerate(states):
        lake = folder / f"{number}" / "lake"
        state.write(old, lake, lake.parent / "ledger")
        pairs[str(lake)] = state
    report, output = folder / "report", folder / "output"
    asked = [[lake, str(Path(lake).parent / "ledger")] for lake in pairs]
    code = zygote.run(
        script.judge, asked, "disk", report, *script.arguments, output=output, timeout_s=800
    )
    assert code == 0, output.read_text()
    broken = json.loads(report.read_text())
    return [f"{pairs[lake].label}\n{why}" for lake, why in broken.items()]


@chunked(CHUNKS)
@pytest.mark.parametrize("model", MODELS)
def test_a_power_loss(zygote, states, tmp_path, figure, soak, model, script, chunk, chunks):
    made, every = states(script, model)
    chosen = every if soak else evenly(every, STATES * chunks)
    mine = chosen[chunk::chunks]
    wrong = judge(zygote, tmp_path, mine, made.folder, script)
    name = f"power loss, {model} file system"
    figure(name, "states", len(mine))
    figure(name, "broken", len(wrong))
    if chunk == 0:
        figure(name, "states there are", len(every))
    assert wrong == []


@pytest.mark.parametrize("model", MODELS)
def test_deltalake_does_not_pass(zygote, tmp_path, figure, model):
    """The checker bites: deltalake acknowledges before the disk has the rows."""
    made = record(zygote, tmp_path / "recorded", DELTALAKE)
    every = evenly(powerloss.explore(made, strict=MODELS[model]), 20)
    wrong = judge(zygote, tmp_path / "judged", every, made.folder, DELTALAKE)
    figure(f"power loss, {model} file system", "states of deltalake", len(every))
    figure(f"power loss, {model} file system", "of them broken", len(wrong))
    assert len(wrong) > len(every) / 10


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_planted_bug_is_caught(zygote, tmp_path, figure, mutant):
    made = record(zygote, tmp_path / "recorded", SMALL, mutant)
    every = evenly(powerloss.explore(made, strict=MODELS[MUTANTS[mutant]]), 240)
    caught = 0
    for number in range(12):
        some = every[number::12]
        caught += len(judge(zygote, tmp_path / f"{number}", some, made.folder, SMALL))
        if caught:
            break
    figure("power loss, mutants", "planted")
    figure("power loss, mutants", "caught", min(caught, 1))
    assert caught
