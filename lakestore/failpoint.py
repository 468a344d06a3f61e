"""Failpoints: named places between two effects, where a test can stop the world.

`reach("flush.3")` stands right after the third step of a flush; each module's header says which
steps there are. Nobody listens in production, and then it costs one look at an empty dictionary.
A test listens through `at`, or for a whole process through the environment:

    LAKESTORE_FAILPOINTS="seal.4=crash@2;vacuum.2=ENOSPC"

`crash` kills the process with SIGKILL; the name of an errno raises that OSError, as the disk
would; a callable is called. `@2` means the second time it is reached (the first by default), and
`@*` means always.
"""

import errno
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

STEPS = {
    "append": 6,
    "reject": 2,
    "journal": 8,
    "flush": 8,
    "merge": 5,
    "segment": 6,
    "rollup": 3,
    "payload": 4,
    "seal": 8,
    "compact": 5,
    "prune": 3,
    "undo": 2,
    "purge": 9,
    "swap": 2,
    "record": 2,
    "load": 10,
    "export": 3,
    "vacuum": 5,
    "publish": 5,
    "replace": 3,
    "catalog": 3,
    "views": 3,
    "create": 6,
    "evolve": 6,
    "drop": 3,
    "delta": 4,
    "s3": 2,
    "open": 8,
    "recover": 3,
}
"""How many steps each verb has; the header of its module says what they are."""
POINTS = tuple(f"{verb}.{step + 1}" for verb, steps in STEPS.items() for step in range(steps))
"""Every name there is."""

Action = str | Callable[[], object]


@dataclass
class Trap:
    """Somebody waits at a point; `seen` says how often it was reached."""

    action: Action
    hit: int | None  # None: every time
    seen: int = 0


_traps: dict[str, list[Trap]] = {}  # by name
_counters: list[Counter[str]] = []
_lock = threading.Lock()  # guards what the two hold


def reach(name: str) -> None:
    """Say that the effect before this line has happened."""
    if _traps or _counters:
        _spring(name)


def _spring(name: str) -> None:
    with _lock:
        for counter in _counters:
            counter[name] += 1
        due = []
        for trap in _traps.get(name, ()):
            trap.seen += 1
            if trap.hit in (None, trap.seen):
                due.append(trap.action)
    for action in due:
        _act(action, name)


def _act(action: Action, name: str) -> None:
    if callable(action):
        action()
    elif action == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        number = getattr(errno, action)
        raise OSError(number, f"{os.strerror(number)} (failpoint {name})")


def _set(name: str, action: Action, hit: int | None) -> Trap:
    known = callable(action) or action == "crash" or hasattr(errno, action)
    if name not in POINTS or not known:
        raise ValueError(f"{name}={action}: no such failpoint, or no such action")
    trap = Trap(action, hit)
    with _lock:
        _traps.setdefault(name, []).append(trap)
    return trap


@contextmanager
def at(name: str, action: Action, *, hit: int | None = 1) -> Iterator[Trap]:
    """Act when `name` is reached for the `hit`-th time from now on, or each time (None)."""
    trap = _set(name, action, hit)
    try:
        yield trap
    finally:
        with _lock:
            _traps[name].remove(trap)
            if not _traps[name]:
                del _traps[name]


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Counts how often each point is reached."""
    counter: Counter[str] = Counter()
    _counters.append(counter)
    try:
        yield counter
    finally:
        _counters.remove(counter)


def configure(text: str) -> None:
    """Listen for the rest of this process, in the words of the environment's variable."""
    for part in filter(None, text.split(";")):
        name, _, rest = part.strip().partition("=")
        action, _, hit = rest.partition("@")
        _set(name, action, None if hit == "*" else int(hit or 1))


configure(os.environ.get("LAKESTORE_FAILPOINTS", ""))
