"""Types of the catalog's columns, which refuse values that were never written.

SQLite keeps any value in any column: after damage, a number where a name was, or nothing. What
uses such a value would fail somewhere else, or name a file outside the lake.
"""

import re
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Dialect

from lakestore.errors import CorruptionError

_ESCAPED = re.compile(r"\\([0\\])")
_YEAR_10000 = 253_402_300_800.0
REBUILD = "`lakestore rebuild` makes it again from the lake's files"


def damage(what: object) -> CorruptionError:
    """The error for a catalog that is not what was written."""
    return CorruptionError(f"the catalog is damaged: {what}; {REBUILD}")


class _Strict(sa.types.TypeDecorator[Any]):
    """A type whose values are of one Python type; raises `CorruptionError` for others."""

    cache_ok = True
    kind: type

    def __init__(self, *, nullable: bool = False, among: tuple[str, ...] = ()) -> None:
        """A column's type.

        Args:
            nullable: null is a value too.
            among: no other texts are.
        """
        super().__init__()
        self.nullable = nullable
        self.among = among

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """The value as it is."""
        if (type(value) is self.kind and self._fits(value)) or (value is None and self.nullable):
            return value
        raise damage(f"{value!r} is no {type(self).__name__.lower()}")

    def _fits(self, value: Any) -> bool:
        return not self.among or value in self.among


class Text(_Strict):
    """Any text, or one among a few; Postgres, which has no NUL, gets it escaped."""

    impl = sa.Text
    cache_ok = True
    kind = str

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """The text as the database has it."""
        if dialect.name == "postgresql" and isinstance(value, str):
            return value.replace("\\", "\\\\").replace("\0", "\\0")
        return value

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """The text as it was written."""
        if dialect.name == "postgresql" and isinstance(value, str):
            value = _ESCAPED.sub(lambda found: "\0" if found[1] == "0" else "\\", value)
        return super().process_result_value(value, dialect)


class Number(_Strict):
    """A number of a row, or of a version: from 0 on."""

    impl = sa.Integer
    cache_ok = True
    kind = int

    def _fits(self, value: Any) -> bool:
        return bool(value >= 0)


class BigNumber(Number):
    """A number that other hosts may have given: from 0 on."""

    impl = sa.BigInteger
    cache_ok = True


class Seconds(_Strict):
    """Unix time: seconds since 1970, before the year 10000."""

    impl = sa.Float
    cache_ok = True
    kind = float

    def _fits(self, value: Any) -> bool:
        return bool(0 <= value < _YEAR_10000)
