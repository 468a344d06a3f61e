"""Run a child under strace: its file-changing system calls, and faults put into them.

The child is a fork of a `Zygote` that waits at its gate until strace holds it, so a run costs no
start of Python. strace counts calls by thread and by name; so does `calls_below`.
"""

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.forks import Child, Zygote

SPACE = ("write", "writev", "pwrite64", "link", "mkdir")
"""Calls that a full disk refuses, but for the creation of files: `openat` only reads, mostly."""

CHANGING = (
    *SPACE, "fsync", "fdatasync", "ftruncate", "fallocate", "openat", "rename", "renameat",
    "renameat2", "linkat", "unlink", "unlinkat", "mkdirat", "rmdir",
)  # fmt: skip
"""`pwritev2` is left to the ledger and to what a child prints: no fault may hit those."""


def need_strace() -> str:
    """The program; where there is none, the test is skipped, or fails where CI promised one."""
    found = shutil.which("strace")
    if found is None:
        reason = "strace is not installed (Debian: apt-get install strace)"
        if os.environ.get("LAKESTORE_REAL_DATA") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def run_traced(
    zygote: Zygote,
    function: str,
    *arguments: Any,
    scratch: Path,
    options: Sequence[str],
    timeout_s: float = 60,
) -> tuple[Child, int, Path]:
    """A child under strace, to its end: the child, its exit code, the trace.

    Args:
        scratch: a new folder for its output, its gate and the trace.
        options: strace's, such as `-e trace=write`.
    """
    scratch.mkdir(parents=True)
    trace = scratch / "trace"
    child = zygote.start(function, *arguments, output=scratch / "output", gate=scratch / "gate")
    command = ["strace", "-f", "-y", "-e", "signal=none", "-o", str(trace), *options]
    with subprocess.Popen([*command, "-p", str(child.pid)], stderr=subprocess.PIPE) as strace:
        assert strace.stderr is not None
        said = strace.stderr.readline()
        if b"attached" not in said:
            child.kill()
            raise AssertionError(f"strace does not work here: {said!r} {strace.stderr.read()!r}")
        child.release()
        code = child.wait(timeout_s)
        strace.stderr.read()  # until it has written the trace and gone
    return child, code, trace


def tracing(names: Sequence[str]) -> list[str]:
    """Options that trace these calls, as far as this machine knows them."""
    return ["-e", "trace=" + ",".join(f"?{name}" for name in names)]


@dataclass(frozen=True)
class Point:
    """The `count`-th call of `name` by the main thread, which changes a file of the lake."""

    name: str
    count: int
    text: str
    before: tuple[tuple[str, int], ...]
    """Calls of each kind that a full disk refuses, made before this one."""

    def kill(self) -> list[str]:
        """Options that kill the process as it enters this call."""
        return [*tracing([self.name]), *self._inject("signal=SIGKILL", f"{self.count}")]

    def fail(self, error: str) -> list[str]:
        """Options that make this call fail with an errno."""
        return [*tracing([self.name]), *self._inject(f"error={error}", f"{self.count}")]

    def fill_the_disk(self) -> list[str]:
        """Options that make this call, and all that need room from here on, fail with ENOSPC."""
        options = tracing([name for name, _ in self.before])
        for name, count in self.before:
            options += ["-e", f"inject={name}:error=ENOSPC:when={count + 1}+"]
        return options

    def _inject(self, what: str, when: str) -> list[str]:
        return ["-e", f"inject={self.name}:{what}:when={when}"]


_CALL = re.compile(r"(\d+) +([a-z0-9_]+)\((.*)$")


def calls_below(trace: Path, folder: Path) -> list[Point]:
    """What the main thread did to files below `folder`, call by call."""
    counts: Counter[str] = Counter()
    points = []
    main = None
    for line in trace.read_text(errors="replace").splitlines():
        match = _CALL.match(line)
        if match is None:
            continue
        thread, name, rest = match.groups()
        main = main or thread
        if thread != main:
            continue
        counts[name] += 1
        changes = name != "openat" or "O_CREAT" in rest
        if changes and f"{folder}/" in rest.replace(">", "/").replace('"', "/"):
            before = tuple((space, counts[space] - (space == name)) for space in SPACE)
            points.append(Point(name, counts[name], rest[:160], before))
    return points


def struck(trace: Path, point: Point, folder: Path) -> bool:
    """Whether a fault hit a call on a file of the lake, as it was meant to."""
    seen = [
        match.groups()
        for match in map(_CALL.match, trace.read_text(errors="replace").splitlines())
        if match is not None
    ]
    mine = [rest for thread, name, rest in seen if thread == seen[0][0] and name == point.name]
    return len(mine) >= point.count and str(folder) in mine[point.count - 1]
