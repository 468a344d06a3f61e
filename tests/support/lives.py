"""Which lives the suites of faults interrupt, and what judges a lake afterwards."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Script:
    """One life: functions that a `Zygote` calls, and what both of them are told."""

    live: str
    judge: str
    arguments: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.live.split(".")[1].split("_")[0], *self.arguments))


SMALL = Script("support.small_life:live", "support.small_life:judge")
LATER = [
    Script("support.later_life:live", "support.later_life:judge", (cold,))
    for cold in ("parquet", "delta")
]
DELTALAKE = Script("support.delta_life:live", "support.delta_life:judge")


def chunked(chunks: Mapping[Script, int]) -> pytest.MarkDecorator:
    """A test for each of so many parts of what is tried of each life."""
    parts = [(script, part, count) for script, count in chunks.items() for part in range(count)]
    return pytest.mark.parametrize(("script", "chunk", "chunks"), parts, ids=str)
