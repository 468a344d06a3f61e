"""A process that has imported everything and opened nothing: it forks children that may die.

Reads one JSON request a line, `[verb, arguments, failpoints]`, runs that verb of `lifecycle` in a
forked child, and answers `[exit code, error]`; the code is negative when a signal ended it.
Starting a new interpreter for each child would take ten times as long.
"""

import faulthandler
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from support import lifecycle

from lakestore import failpoint
from lakestore.catalog import Catalog
from lakestore.catalog.database import Creation
from lakestore.catalog.sqlite import SQLite
from lakestore.clock import SystemClock

_SECONDS_MAX = 60
"""A child that takes longer hangs: it says where, and ends."""


def serve() -> None:
    with tempfile.TemporaryDirectory() as folder:  # so that SQLAlchemy has compiled its queries
        catalog = Catalog(
            SQLite(Path(folder) / "c"),
            SystemClock(),
            write=True,
            creation=Creation("lake", "site"),
        )
        catalog.states([])
        catalog.garbage()
        catalog.tables()
        catalog.close()
    for line in sys.stdin:
        verb, arguments, failpoints = json.loads(line)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            os._exit(_run(verb, arguments, failpoints, write))
        os.close(write)
        with os.fdopen(read) as pipe:
            error = pipe.read()
        _, status = os.waitpid(child, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), error]), flush=True)


def _run(verb: str, arguments: list[str], failpoints: str, write: int) -> int:
    faulthandler.dump_traceback_later(_SECONDS_MAX, exit=True, file=write)
    try:
        failpoint.configure(failpoints)
        getattr(lifecycle, verb)(Path(arguments[0]), *arguments[1:])
    except BaseException:
        os.write(write, traceback.format_exc().encode())
        return 1
    return 0


class Zygote:
    """The parent's end."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
        )

    def run(self, verb: str, *arguments: object, failpoints: str = "") -> tuple[int, str]:
        """Exit code and error of a child that does `verb`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([verb, [*map(str, arguments)], failpoints]) + "\n")
        self._process.stdin.flush()
        code, error = json.loads(self._process.stdout.readline())
        return code, error

    def close(self) -> None:
        self._process.communicate()


if __name__ == "__main__":
    serve()
