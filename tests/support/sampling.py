"""Part of a long list, where all of it would take too long."""

import random
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")
SEED = 20261122


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """As many of the items, spread evenly, the same ones each time."""
    if count >= len(items):
        return list(items)
    start = random.Random(SEED).random()
    return [items[int((number + start) * len(items) / count)] for number in range(count)]
