"""Values inside values, level by level: Arrow and DuckDB go down by recursion, and do not come up.

Ten thousand levels end a process in pyarrow 26, and keep DuckDB 1.5 busy for ever.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

DEPTH_MAX = 100


class TooDeep(ValueError):
    """A value is nested more than `DEPTH_MAX` levels deep."""


def levels(values: Iterable[Any]) -> Iterator[list[Any]]:
    """The values, then what these contain, then what that contains, and so on.

    Raises:
        TooDeep: after the last level that may be.
    """
    level = list(values)
    for _ in range(DEPTH_MAX):
        if not level:
            return
        yield level
        level = [
            child
            for value in level
            if isinstance(value, Mapping | list | tuple)
            for child in (value.values() if isinstance(value, Mapping) else value)
        ]
    if level:
        raise TooDeep(f"a value is nested more than {DEPTH_MAX} levels deep")
