"""What every test that hurts a lake calls at its end."""

from collections.abc import Collection
from pathlib import Path

import lakestore as ls

CRASH_LEAVES = ("orphan", "staging", "tail", "dangling", "views")


def assert_sound(lake: ls.Lake | Path | str, *, allowed: Collection[str] = CRASH_LEAVES) -> None:
    """Verify finds nothing but what crashes leave.

    Args:
        lake: an open lake, or the folder of one, which is then opened to read.
        allowed: kinds of problems that the test's crash may leave, unless they are damage.
    """
    if not isinstance(lake, ls.Lake):
        with ls.open(lake, mode="r") as opened:
            assert_sound(opened, allowed=allowed)
        return
    report = lake.verify()
    wrong = [
        problem
        for problem in report.problems
        if problem.severity in ("damage", "cache") or problem.kind not in allowed
    ]
    assert not wrong, "\n".join(map(str, wrong))
