"""Two sites that meet: something happens between a seal's last look and its commit."""

from collections.abc import Callable

import pytest

from lakestore.cold.logwriter import LogWriter


def before_the_next_commit(patch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    """Do something once, right before a version of a log is made."""
    commit, done = LogWriter._commit, []

    def late(writer: LogWriter, *arguments: object) -> bool:
        if not done:
            done.append(True)
            do()
        return commit(writer, *arguments)

    patch.setattr(LogWriter, "_commit", late)
