"""A thread that does a job again and again, and survives whatever becomes of it."""

import logging
import os
import threading
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field

log = logging.getLogger("lakestore")
_NICENESS = 5


@dataclass
class Report:
    """What one round of maintenance did: numbers of things."""

    flushed: int = 0
    merged: int = 0
    sealed: int = 0
    pruned: int = 0
    """Rows."""
    deleted: int = 0
    compacted: int = 0
    left: int = 0
    """Tasks that the budget did not allow."""
    problems: list[str] = field(default_factory=list)
    damaged: bool = False


class Worker:
    """One such thread."""

    def __init__(
        self,
        name: str,
        job: Callable[[Report], None],
        pause_s: float,
        pause_max_s: float,
        problems: MutableMapping[str, str],
    ) -> None:
        """A thread that was not started yet.

        Args:
            pause_s: between two rounds.
            pause_max_s: at most so long, after rounds that failed.
            problems: where what failed is noted under `name`, until it succeeds; damage until
                somebody has looked, and taken the note away.
        """
        self._name = name
        self._job = job
        self._pause_s = pause_s
        self._pause_max_s = pause_max_s
        self._problems = problems
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._failures = 0
        self._damaged = False
        self._thread = threading.Thread(target=self._run, name=f"lakestore-{name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Begin the next round now."""
        self._wake.set()

    def stop(self) -> None:
        """Begin no other round."""
        self._stopping.set()
        self._wake.set()

    def join(self) -> None:
        """Wait for the end of the last round."""
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        with suppress(OSError):
            # Of this thread alone, on Linux: appends and queries come first on busy cores.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while True:
            self._wake.wait(self._pause_s)
            self._wake.clear()
            if self._stopping.is_set():
                return
            report = Report()
            try:
                self._job(report)
            except Exception as error:  # the thread must outlive any one failure
                report.problems.append(str(error))
            self._note(report)

    def _note(self, report: Report) -> None:
        """Note what failed, or that it succeeded; after failures, wait longer each time."""
        name = self._name
        self._failures = self._failures + 1 if report.problems else 0
        self._damaged = (self._damaged and name in self._problems) or report.damaged
        if report.problems:
            known, problem = self._problems.get(name), report.problems[0]
            self._problems[name] = problem  # first: who is told looks at the status
            if problem != known:
                log.error("upkeep: %s", problem)
            pause = self._pause_s * 2 ** min(self._failures, 9)
            self._stopping.wait(min(self._pause_max_s, pause))
        elif not self._damaged:
            self._problems.pop(name, None)
