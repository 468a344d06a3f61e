"""Values as programs read them, and as people do."""

import base64
import json
import math
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

NOTHING = "∅"
"""What people see in the place of null."""

_HEAD = 10


def plain(value: Any) -> Any:
    """A value as JSON has it: decimals as text, times as ISO, bytes as base64."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such number
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)


def text(value: Any) -> str:
    """A value on one line; what could move a terminal's cursor is shown as an escape."""
    if value is None:
        return NOTHING
    if isinstance(value, datetime):
        told = value.replace(tzinfo=None).isoformat(sep=" ") + ("Z" if value.tzinfo else "")
    elif isinstance(value, Decimal):
        told = f"{value:f}"
    elif isinstance(value, dict | list):
        told = json.dumps(plain(value), ensure_ascii=False)
    else:
        told = str(plain(value))
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in told)


def number(value: Any) -> str:
    """A measure, as long as people read it; what is no number as `text`."""
    if isinstance(value, int | float | Decimal) and math.isfinite(value):
        whole = int(value)
        if value == whole:
            return f"{whole:,}"
        return f"{value:,.2f}" if whole else f"{float(value):.4g}"
    return text(value)


def short(value: Any) -> str:
    """A measure in at most seven letters, as tables of many of them need: `430.6M`."""
    told = number(value)
    if len(told) <= 7 or not isinstance(value, int | float | Decimal):
        return told
    size = float(value)
    if len(f"{size:,.0f}") <= 7:
        return f"{size:,.0f}"
    for unit in ("", "k", "M", "G", "T"):
        if abs(size) < 999.95:
            return f"{size:.1f}{unit}"
        size /= 1000
    return f"{size:.1e}T"


def heading(label: str) -> str:
    """The label of a column of numbers, on lines that are not much longer than numbers are."""
    lines = [""]
    for word in _words(label):
        if lines[-1] and len(lines[-1]) + len(word) > _HEAD:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.strip() for line in lines)


def _words(label: str) -> Iterable[str]:
    """The parts of a label, each with the sign after which a line may end."""
    word = ""
    for sign in text(label):
        word += sign
        if sign in "_ (":
            yield word
            word = ""
    yield word
