"""Types of the catalog's columns, which refuse values that were never written.

SQLite keeps any value in any column: after damage, a number where a name was, or nothing. What
uses such a value would fail somewhere else, or name a file outside the lake.
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Dialect

from lakestore.errors import CorruptionError

REBUILD = "`lakestore rebuild` makes it again from the lake's files"


def damage(what: object) -> CorruptionError:
    """The error for a catalog that is not what was written."""
    return CorruptionError(f"the catalog is damaged: {what}; {REBUILD}")


class _Strict(sa.types.TypeDecorator[Any]):
    """A type whose values are of one Python type; raises `CorruptionError` for others."""

    cache_ok = True
    kind: type

    def __init__(self, *, nullable: bool = False) -> None:
        super().__init__()
        self.nullable = nullable

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """The value as it is."""
        if type(value) is self.kind or (value is None and self.nullable):
            return value
        raise damage(f"{value!r} is no {self.kind.__name__}")


class Text(_Strict):
    """Any text."""

    impl = sa.Text
    cache_ok = True
    kind = str


class Integer(_Strict):
    """A number of a row, or of a version."""

    impl = sa.Integer
    cache_ok = True
    kind = int


class BigInteger(_Strict):
    """A number that other hosts may have given."""

    impl = sa.BigInteger
    cache_ok = True
    kind = int


class Seconds(_Strict):
    """Unix time: seconds since 1970."""

    impl = sa.Float
    cache_ok = True
    kind = float
