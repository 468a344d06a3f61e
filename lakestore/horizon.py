"""How old events may become, and whether to believe the clock that says so. Pure."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from lakestore.columns import interval_micros
from lakestore.errors import InvalidInputError
from lakestore.schema import TableSchema

Age = timedelta | float | str
"""A span, a number of days, or what DuckDB reads as an interval, such as `90 days` or `90d`."""
_IDLE = timedelta(days=7)
"""Who wrote nothing for longer may have a clock that jumped ahead."""
_PROVEN = timedelta(days=1)
"""So long after the jump, or the rest, the clock is believed: somebody would have noticed."""


def cutoff(schema: TableSchema, now: datetime, older_than: Age | None) -> datetime:
    """Events before that moment have expired.

    Args:
        older_than: by default the retention of the schema document.

    Raises:
        InvalidInputError: no positive span, or none given and none declared.
    """
    if older_than is None:
        older_than = schema.document.retention
    if older_than is None:
        raise InvalidInputError(
            "the schema document declares no retention: say older_than= or before="
        )
    try:
        return now - _span(older_than)
    except OverflowError:  # longer ago than there is time
        return datetime.min.replace(tzinfo=UTC)


def _span(age: Age) -> timedelta:
    if isinstance(age, str):
        micros = interval_micros(age)
        span = timedelta(microseconds=micros) if micros is not None else timedelta()
    else:
        span = age if isinstance(age, timedelta) else timedelta(days=age)
    if span <= timedelta():
        raise InvalidInputError(f"{age!r} is no positive span, such as '90 days' or 90")
    return span


def doubt(moments: Iterable[float], now: datetime) -> str | None:
    """Why not to believe what time it is; None when it fits what was done before.

    A clock that jumps leaves a gap before the first commit that it dates, or before now. The lake
    being at rest does too, and nobody can tell them apart; a day of work later it does not matter.

    Args:
        moments: when something was committed, in Unix seconds, in any order.
    """
    began, told = now.timestamp(), sorted((m for m in moments if m > 0), reverse=True)
    for moment in told:
        if now.timestamp() - began >= _PROVEN.total_seconds():
            return None
        if moment > began:  # by a clock that was ahead, and was set back
            continue
        if began - moment > _IDLE.total_seconds():
            days = (began - moment) / 86_400
            return (
                f"the clock says {now.isoformat(timespec='seconds')}, and nothing was committed "
                f"for {days:,.0f} days before {_shown(began)}: either the lake was at rest, or "
                "the clock is wrong"
            )
        began = moment
    return None


def _shown(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
