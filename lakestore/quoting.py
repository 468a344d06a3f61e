"""Text into SQL, in one place: identifiers and literals for DuckDB."""

from collections.abc import Iterable

from lakestore.errors import InvalidInputError


def identifier(name: str) -> str:
    """`name` as a quoted SQL identifier.

    Raises:
        InvalidInputError: it is empty or holds a NUL, which no quoting can carry.
    """
    if not name or "\0" in name:
        raise InvalidInputError(f"{name!r} cannot be an SQL identifier")
    return '"' + name.replace('"', '""') + '"'


def identifiers(names: Iterable[str]) -> str:
    """A comma-separated list of quoted identifiers."""
    return ", ".join(identifier(name) for name in names)


def literal(text: str) -> str:
    """`text` as a quoted SQL string literal; for places that take no bound parameter."""
    if "\0" in text:
        raise InvalidInputError(f"{text!r} holds a NUL and cannot be an SQL literal")
    return "'" + text.replace("'", "''") + "'"


def literals(texts: Iterable[str]) -> str:
    """A DuckDB list of string literals: `['a', 'b']`."""
    return "[" + ", ".join(literal(text) for text in texts) + "]"
