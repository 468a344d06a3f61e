"""Lakes that are open when their process forks or ends."""

import atexit
import os
import weakref
from collections.abc import Callable
from typing import Protocol


class Closes(Protocol):
    """What has to be closed."""

    def close(self) -> None:
        """Close it."""
        ...


_open: weakref.WeakKeyDictionary[Closes, Callable[[], None]] = weakref.WeakKeyDictionary()


def remember(lake: Closes, abandon: Callable[[], None]) -> None:
    """Have a lake closed when the process ends; in a forked child, `abandon` it."""
    _open[lake] = abandon


def forget(lake: Closes) -> None:
    """Its owner closes it."""
    _open.pop(lake, None)


def _let_locks_go() -> None:
    for lake, abandon in list(_open.items()):
        abandon()
        forget(lake)  # or a grandchild would close the same numbers again


os.register_at_fork(after_in_child=_let_locks_go)


@atexit.register
def _close_all() -> None:
    """Close what the caller did not, before DuckDB and the threads go."""
    for lake in list(_open):
        lake.close()
