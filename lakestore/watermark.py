"""The watermark: up to when everything that was accepted is in the cold tier.

Each site says so of itself with the commit of a seal, and the least of them holds for the table.
It goes by the time of acceptance, not by that of events, which may always be late; and by the
sites' own clocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from lakestore.clock import from_micros, micros
from lakestore.context import TableContext
from lakestore.frames import HEADER_MAX, parse_header
from lakestore.layout import journal_name
from lakestore.marks import UNKNOWN, least, living
from lakestore.snapshot import GenerationId
from lakestore.storage.local import open_to_read, refusals


@dataclass(frozen=True)
class Promise:
    """What the site accepted before a moment is cold as soon as segment `last` is."""

    moment: int
    """Microseconds since 1970."""
    last: int
    is_kept: bool
    """Whether there is no row left to seal."""


def promise(table: TableContext) -> Promise:
    """What can be promised of a table now.

    First the clock, then the journals, then the segments: what was accepted before the first two
    were looked at is in a journal that was begun by then, or in a segment that is listed by now.

    Raises:
        StorageError, CorruptionError: the catalog or a journal cannot be read.
    """
    moment = micros(table.site.clock.now())
    flushed = table.state().flushed
    for id in table.tails.unflushed((), flushed):
        moment = min(moment, _began(table, id, moment))
    state = table.state()
    last = max((segment.last for segment in state.hot), default=state.sealed_through)
    return Promise(moment, last, not any(s.info.rows for s in state.hot))


def _began(table: TableContext, id: GenerationId, otherwise: int) -> int:
    """When a journal was begun, which is before any of its rows was accepted."""
    path = table.site.layout.writer(table.entry.folder, id.writer) / journal_name(id.number)
    with refusals(f"cannot read journal {str(path)!r}"):
        try:
            with open_to_read(path) as file:
                parsed = parse_header(path, memoryview(file.read(HEADER_MAX)))
        except FileNotFoundError:  # flushed and deleted meanwhile: a segment has its rows
            return otherwise
    return otherwise if parsed is None else parsed[0].began


def watermark(table: TableContext) -> datetime | None:
    """Up to when a table's cold tier has all that any site accepted; None while one never said.

    Sites that were retired are not waited for.

    Raises:
        StorageError, CorruptionError: the catalog or the log cannot be read.
    """
    return moment_of(least(table.cold.marks()))


def moment_of(mark: int) -> datetime | None:
    """The moment of a living site's mark, or of the least; None when it tells none."""
    return from_micros(mark) if mark > UNKNOWN else None


def is_behind(marks: Mapping[str, int], site: str, most_s: float, now: int | None) -> int | None:
    """What a site with nothing to seal should say; None while it need not. Pure.

    It holds no other back, and says no more than another did: two that have nothing to seal would
    go on for ever. Only who is asked (`now`, microseconds) says what time it is.
    """
    others = [mark for name, mark in living(marks).items() if name != site]
    known = now if now is not None else max(others, default=0)
    return known if known - marks.get(site, 0) >= most_s * 1_000_000 else None
