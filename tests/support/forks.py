"""Processes that start in milliseconds: forks of one that imported lakestore and opened nothing.

A `Zygote` is that one process. It forks a child for each `start`, which calls a function by name;
the child shares nothing with the others but code. The functions are those of the modules beside
this one, and take and return what JSON can say.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WARM = (
    "lakestore",
    "sqlalchemy.dialects.sqlite",
    "pyarrow.compute",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "polars",
    "support.oracle",
    "support.small_life",
    "support.later_life",
    "support.many_lives",
)


class Child:
    """One forked process."""

    def __init__(self, zygote: "Zygote", pid: int, output: Path, gate: Path | None) -> None:
        self.pid = pid
        self.output = output
        self._zygote = zygote
        self._gate = gate
        self._pidfd = os.pidfd_open(pid)
        self._status: int | None = None

    def release(self) -> None:
        """Let a gated child begin."""
        assert self._gate is not None
        self._gate.write_bytes(b"go")

    def kill(self) -> None:
        """SIGKILL, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def wait(self, timeout_s: float = 60) -> int:
        """The exit code, or minus the signal that ended it.

        Raises:
            TimeoutError: it hangs; it is killed first.
        """
        if self._status is None:
            ended, _, _ = select.select([self._pidfd], [], [], timeout_s)
            if not ended:
                self.kill()
            self._status = self._zygote._ask({"wait": self.pid})
            os.close(self._pidfd)
            if not ended:
                raise TimeoutError(f"a process hung for {timeout_s} s: {self.said}")
        return self._status

    @property
    def said(self) -> str:
        """What it printed, on either stream."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""


class Zygote:
    """The process that forks the others; a context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from support.forks import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": ""},
        )

    def start(
        self, function: str, *arguments: Any, output: Path, gate: Path | None = None
    ) -> Child:
        """A child that calls `module:function`, and exits with 0, or 1 after an exception.

        Args:
            output: gets what it prints, and the traceback.
            gate: where to make a fifo; the child begins once it was told to, by `release`.
        """
        if gate is not None:
            os.mkfifo(gate)
        request = {
            "function": function,
            "arguments": [str(a) if isinstance(a, Path) else a for a in arguments],
            "output": str(output),
            "gate": str(gate) if gate is not None else None,
        }
        return Child(self, self._ask(request), output, gate)

    def run(self, function: str, *arguments: Any, output: Path, timeout_s: float = 60) -> int:
        """Start a child and wait for its end."""
        return self.start(function, *arguments, output=output).wait(timeout_s)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> "Zygote":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, request: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def serve() -> None:
    """Fork a child for each line of standard input, until it ends."""
    for module in WARM:
        importlib.import_module(module)
    replies = os.dup(1)
    for request in _requests():
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            os.write(replies, b"%d\n" % os.waitstatus_to_exitcode(status))
            continue
        pid = os.fork()
        if pid == 0:
            os.close(replies)
            _be(request)
        os.write(replies, b"%d\n" % pid)


def _requests() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        yield json.loads(line)


def _be(request: dict[str, Any]) -> None:
    """The child's life; never returns."""
    code = 1
    try:
        output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        if request["gate"] is not None:
            Path(request["gate"]).read_bytes()
        module, name = request["function"].split(":")
        getattr(importlib.import_module(module), name)(*request["arguments"])
        code = 0
    except BaseException:
        say(traceback.format_exc())
    finally:
        os._exit(code)


def say(text: str) -> None:
    """Print, by a system call that no fault is put into."""
    os.pwritev(1, [text.encode() + b"\n"], 0)  # its file is open for appending
