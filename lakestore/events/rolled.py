"""What a rollup answers of a question: which of its buckets, exactly, and what is left to rows."""

from dataclasses import dataclass
from datetime import datetime

from lakestore.clock import EPOCH, from_micros, micros
from lakestore.document import DAY_US, Rollup
from lakestore.events.filters import Filter
from lakestore.events.measures import Measure
from lakestore.events.statement import Question
from lakestore.query.reader import Reader

Span = tuple[datetime | None, datetime | None]
"""From a time to before another; None is without end."""


@dataclass(frozen=True)
class Window:
    """The buckets of a rollup that lie in a filter's window whole."""

    buckets: Span
    days: Span | None
    """Those of them that are whole days, when days answer the question."""

    @property
    def by_day(self) -> list[Span]:
        """What is to be had of days."""
        return [] if self.days is None else [self.days]

    @property
    def by_bucket(self) -> list[Span]:
        """What is to be had of buckets."""
        if self.days is None:
            return [self.buckets]
        return _beside(self.days, self.buckets)

    def edges(self, filter: Filter) -> list[Span]:
        """The times of the filter's window that are in no whole bucket."""
        return _beside(self.buckets, (filter.start, filter.end))


def inside(question: Question, one: Rollup, reader: Reader) -> Window | None:
    """The buckets of a rollup that answer their part of a question; None when none does."""
    columns = {*question.filter.tests, *question.by}.union(*(m.tested for m in question.measures))
    if not columns <= set(one.by) or not all(_keeps(one, m) for m in question.measures):
        return None
    buckets = _whole(question, one.every_us, reader)
    if buckets is None:
        return None
    binned = any(measure.kind == "percentile" for measure in question.measures)
    days = one.every_us < DAY_US and not binned
    return Window(buckets, _whole(question, DAY_US, reader) if days else None)


def _whole(question: Question, every_us: int, reader: Reader) -> Span | None:
    """The span of the filter's window that is made of whole buckets; None when that is none.

    It is none too when the question's own buckets are not made of these.
    """
    filter = question.filter
    first = None if filter.start is None else _edge(filter.start, every_us, up=True)
    end = None if filter.end is None else _edge(filter.end, every_us, up=False)
    if first is not None and end is not None and first >= end:
        return None
    if question.buckets is not None:
        oldest, newest = _times(reader)
        span = (first or oldest, end or newest)
        if not question.buckets.made_of(reader.cursor, every_us, *span):
            return None
    return first, end


def _beside(inner: Span, outer: Span) -> list[Span]:
    """What a span has before and after another that lies in it."""
    spans = [(outer[0], inner[0]), (inner[1], outer[1])]
    return [(start, end) for start, end in spans if start != end]


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


def _edge(moment: datetime, every_us: int, *, up: bool) -> datetime:
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
