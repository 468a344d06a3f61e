"""Buckets of time: any width, in any zone, from any origin."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self

import duckdb

from lakestore import quoting
from lakestore.clock import micros
from lakestore.errors import InvalidInputError

_MONDAY_US = 946_857_600_000_000
"""2000-01-03, a Monday: where DuckDB's buckets of days begin."""
_HOUR_US = 3_600_000_000
_DAY_US = 24 * _HOUR_US
_BUCKETS_MAX = 10_000


@dataclass(frozen=True)
class Buckets:
    """Equal spans of time, each named by its first moment in microseconds since 1970.

    A width of more than an hour follows the calendar of the zone: a day begins at midnight there,
    and has 23 or 25 hours when the clocks change. Other widths, and any from an `origin`, are
    so long everywhere.
    """

    width: str
    months: int
    days: int
    micros: int
    zone: str
    origin: int | None

    @classmethod
    def of(
        cls,
        cursor: duckdb.DuckDBPyConnection,
        every: str | timedelta,
        zone: str,
        origin: datetime | None,
    ) -> Self:
        """The buckets that a caller describes.

        Raises:
            InvalidInputError: no positive interval of one unit, or an unknown zone.
        """
        if isinstance(every, timedelta):
            every = f"{every // timedelta(microseconds=1)} microseconds"
        months, days, rest = _parts(cursor, every, zone)
        if [months > 0, days > 0, rest > 0].count(True) != 1 or min(months, days, rest) < 0:
            raise InvalidInputError(
                f"every={every!r} is not a width such as '15m', '1h' or '1 month'"
            )
        if origin is not None and months:
            raise InvalidInputError(f"every={every!r}: from an origin, buckets are equally long")
        start = None if origin is None else micros(origin)
        return cls(every, months, days, rest, zone, start)

    @property
    def fixed_us(self) -> int | None:
        """The width in microseconds; None where it follows a calendar."""
        width = self.micros + self.days * _DAY_US
        if self.months or (self.origin is None and width > _HOUR_US and self.zone != "UTC"):
            return None
        return width

    def sql(self, time: str) -> str:
        """The bucket of a time (`TIMESTAMPTZ`, or `TIMESTAMP` in UTC) as SQL."""
        width = self.fixed_us
        if width is not None:
            origin = _MONDAY_US % width if self.origin is None else self.origin % width
            since = f"(epoch_us({time}) - {origin})"
            return f"(epoch_us({time}) - ({since} % {width} + {width}) % {width})"
        return f"epoch_us({self._calendar(self._local(time))} AT TIME ZONE {self._zone})"

    def starts(
        self, cursor: duckdb.DuckDBPyConnection, first: datetime, end: datetime
    ) -> list[int]:
        """Every bucket that has a moment at or after `first` and before `end`.

        Raises:
            InvalidInputError: more than 10,000 of them.
        """
        last = max(first, end - timedelta(microseconds=1))
        if self.fixed_us is not None:
            low, high = (self._fixed(moment) for moment in (first, last))
        else:
            ends = f"SELECT {self.sql('$first')}, {self.sql('$last')}"
            low, high = cursor.execute(ends, {"first": first, "last": last}).fetchall()[0]
        width = self.fixed_us or (self.months * 28 or self.days) * _DAY_US + self.micros
        if (high - low) // width >= _BUCKETS_MAX:
            raise InvalidInputError(
                f"every={self.width!r} makes more than {_BUCKETS_MAX:,} buckets: choose wider ones"
            )
        if self.fixed_us is not None:
            return list(range(low, high + 1, width))
        local = f"generate_series({self._calendar(self._local('$first'))}, "
        local += f"{self._calendar(self._local('$last'))}, {self._interval})"
        start = f"epoch_us(s AT TIME ZONE {self._zone})"
        rows = cursor.execute(
            f"SELECT DISTINCT {start} FROM {local} AS t(s) ORDER BY 1",
            {"first": first, "last": last},
        ).fetchall()
        return [start for (start,) in rows]

    def _fixed(self, moment: datetime) -> int:
        """The bucket of a time, where all are equally long; as `sql`."""
        at, width = micros(moment), self.fixed_us
        assert width is not None
        return at - (at - (_MONDAY_US if self.origin is None else self.origin)) % width

    def made_of(
        self, cursor: duckdb.DuckDBPyConnection, every_us: int, first: datetime, end: datetime
    ) -> bool:
        """Whether each is a whole number of the buckets, `every_us` wide, that a rollup keeps."""
        width = self.fixed_us
        if width is not None:
            origin = _MONDAY_US if self.origin is None else self.origin
            return width % every_us == 0 and origin % every_us == 0
        if self.micros % every_us:
            return False
        offset = f"epoch_us(d AT TIME ZONE {self._zone}) - epoch_us(d)"
        days = "generate_series($first, $last, INTERVAL 12 HOUR)"
        found = cursor.execute(
            f"SELECT bool_and(({offset}) % {every_us} = 0) FROM {days} AS t(d)",
            {"first": first - timedelta(days=1), "last": end + timedelta(days=1)},
        ).fetchall()
        return bool(found[0][0])

    @property
    def _zone(self) -> str:
        return quoting.literal(self.zone)

    @property
    def _interval(self) -> str:
        return f"CAST({quoting.literal(self.width)} AS INTERVAL)"

    def _local(self, time: str) -> str:
        return f"(CAST({time} AS TIMESTAMPTZ) AT TIME ZONE {self._zone})"

    def _calendar(self, local: str) -> str:
        return f"time_bucket({self._interval}, {local})"


def _parts(cursor: duckdb.DuckDBPyConnection, every: str, zone: str) -> tuple[int, int, int]:
    """Months, days and microseconds of a width, in a zone that DuckDB knows."""
    try:
        rows = cursor.execute(
            "SELECT date_part(['year', 'month', 'day', 'hour', 'minute', 'microsecond'], i), "
            "TIMESTAMPTZ '2000-01-01' AT TIME ZONE $zone FROM (SELECT CAST($every AS INTERVAL) i)",
            {"every": every, "zone": zone},
        ).fetchall()
        found = rows[0][0]
        rest = found["hour"] * _HOUR_US + found["minute"] * 60_000_000 + found["microsecond"]
        return found["year"] * 12 + found["month"], found["day"], rest
    except (duckdb.Error, TypeError) as error:
        raise InvalidInputError(f"every={every!r}, tz={zone!r}: {error}") from error
