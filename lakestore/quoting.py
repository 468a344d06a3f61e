"""Text into SQL, in one place: identifiers and literals for DuckDB."""

import re
from collections.abc import Iterable

from lakestore.errors import InvalidInputError

UNSPEAKABLE = re.compile("[\0\ud800-\udfff]")
"""What no SQL text and no path carries: NUL, and halves of characters (lone surrogates)."""


def identifier(name: str) -> str:
    """`name` as a quoted SQL identifier.

    Raises:
        InvalidInputError: it is empty, or holds what no quoting can carry: a NUL, or half a
            character (a lone surrogate).
    """
    if not name or UNSPEAKABLE.search(name):
        raise InvalidInputError(f"{name!r} cannot be an SQL identifier")
    return '"' + name.replace('"', '""') + '"'


def identifiers(names: Iterable[str]) -> str:
    """A comma-separated list of quoted identifiers."""
    return ", ".join(identifier(name) for name in names)


def literal(text: str) -> str:
    """`text` as a quoted SQL string literal; for places that take no bound parameter."""
    if UNSPEAKABLE.search(text):
        raise InvalidInputError(f"{text!r} cannot be an SQL literal")
    return "'" + text.replace("'", "''") + "'"


def literals(texts: Iterable[str]) -> str:
    """A DuckDB list of string literals: `['a', 'b']`."""
    return "[" + ", ".join(literal(text) for text in texts) + "]"
