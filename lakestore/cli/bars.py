"""Bars in a terminal: as long as what they stand for, to an eighth of a letter."""

import sys
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from lakestore.cli.values import number, text

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")
"""Of bars, one after the other; a terminal's own, so that they suit its background."""

_EIGHTHS = "▏▎▍▌▋▊▉█"
_LABEL = 40
_BAR_MIN = 8


def bar(value: Any, most: float, width: int) -> str:
    """A bar of at most `width` letters; nothing for zero, null and less."""
    size = measured(value)
    if size <= 0 or most <= 0:
        return ""
    eighths = max(1, round(8 * width * min(1.0, size / most)))
    if not (sys.stdout.encoding or "").lower().startswith("utf"):
        return "#" * max(1, eighths // 8)
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8 - 1] if eighths % 8 else "")


def measured(value: Any) -> float:
    """A measure as a length: 0 for what is no number, or endless."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return 0.0
    size = float(value)
    return size if abs(size) < float("inf") else 0.0


def ranked(title: str, label: str, rows: Sequence[tuple[Any, Any]], width: int) -> Iterator[Text]:
    """Lines: a title, then values with a measure each, and a bar that fills the terminal."""
    names = [clip(text(value), _LABEL) for value, _ in rows]
    numbers = [number(measure) for _, measure in rows]
    name_wide = max(map(cell_len, [*names, ""]))
    number_wide = max(map(len, [*numbers, ""]))
    most = max((measured(measure) for _, measure in rows), default=0.0)
    room = max(_BAR_MIN, width - name_wide - number_wide - 5)
    yield Text.assemble((title, "bold"), f", {label}")
    for name, told, (_, measure) in zip(names, numbers, rows, strict=True):
        filled = set_cell_size(name, name_wide)
        yield Text.assemble(
            f"  {filled}  {told:>{number_wide}} ", (bar(measure, most, room), COLOURS[0])
        )


def clip(told: str, width: int) -> str:
    """A text, or as much of it as fits."""
    return told if cell_len(told) <= width else set_cell_size(told, width - 1) + "…"
