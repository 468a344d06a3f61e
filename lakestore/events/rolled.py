"""What a rollup answers of a question: which of its buckets, exactly, and what is left to rows."""

from dataclasses import dataclass
from datetime import datetime

from lakestore.clock import EPOCH, from_micros, micros
from lakestore.document import BUCKET, Rollup
from lakestore.events.filters import Filter, window_of
from lakestore.events.measures import Measure
from lakestore.events.statement import Question
from lakestore.query.reader import Reader


@dataclass(frozen=True)
class Window:
    """The buckets of a rollup that lie in a filter's window whole; None is without end."""

    first: datetime | None
    end: datetime | None

    def of_partials(self) -> list[str]:
        """Tests of a partial's bucket."""
        return list(window_of(BUCKET, self.first, self.end))

    def edges(self, filter: Filter) -> list[tuple[datetime | None, datetime | None]]:
        """The times of the filter's window that are in no whole bucket."""
        edges = [(filter.start, self.first), (self.end, filter.end)]
        return [(start, end) for start, end in edges if start != end]


def inside(question: Question, one: Rollup, reader: Reader) -> Window | None:
    """The buckets of a rollup that answer their part of a question; None when none does."""
    filter = question.filter
    columns = {*filter.tests, *question.by}.union(*(m.tested for m in question.measures))
    if not columns <= set(one.by) or not all(_keeps(one, m) for m in question.measures):
        return None
    first = None if filter.start is None else _whole(filter.start, one.every_us, up=True)
    end = None if filter.end is None else _whole(filter.end, one.every_us, up=False)
    if first is not None and end is not None and first >= end:
        return None
    if question.buckets is not None:
        oldest, newest = _times(reader)
        span = (first or oldest, end or newest)
        if not question.buckets.made_of(reader.cursor, one.every_us, *span):
            return None
    return Window(first, end)


def _keeps(one: Rollup, measure: Measure) -> bool:
    """Whether a rollup's partials have the states of a measure."""
    if measure.column is None:
        return True
    kept = {
        "count": one.sums,
        "sum": one.sums,
        "avg": one.sums,
        "max": one.max,
        "distinct": one.by,
        "percentile": one.histograms,
    }
    return measure.column.name in kept.get(measure.kind, ())


def _whole(moment: datetime, every_us: int, *, up: bool) -> datetime:
    """The start of the bucket that a moment is in, or (`up`) of the first that is not before it."""
    since = micros(moment)
    return from_micros((-(-since // every_us) if up else since // every_us) * every_us)


def _times(reader: Reader) -> tuple[datetime, datetime]:
    """From when to when the published events of a snapshot are."""
    infos = [s.info for s in reader.pin.segments] + [f.info for f in reader.pin.cold]
    infos = [info for info in infos if info.rows]
    return (
        min((info.min_time for info in infos), default=EPOCH),
        max((info.max_time for info in infos), default=EPOCH),
    )
