"""The sites of a lake: what each has of the tables, and how one is retired that is gone for good.

To retire a site is to say in its place that it will never have another row: its mark becomes the
end of time. Nothing of it is deleted. Should it come back, it joins anew, and seals what it has.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from lakestore.catalog.records import Holding
from lakestore.context import TableContext
from lakestore.errors import ConflictError, InvalidInputError, NotFoundError
from lakestore.marks import RETIRED
from lakestore.opensite import SiteContext
from lakestore.watermark import moment_of

_SILENT = 2
"""A site that lives says something about once in `seal_age_s`; in twice that, surely."""


@dataclass(frozen=True)
class SiteTable:
    """What a site has of one table."""

    table: str
    sealed_through: int
    hot_rows: int | None
    """Flushed, and not sealed; None when only the site's own catalog knows."""
    complete_before: datetime | None
    """All that it accepted before is cold; None when it never said, or is retired."""
    retired: bool


@dataclass(frozen=True)
class Site:
    """One host's part of a lake."""

    name: str
    is_this: bool
    seen: datetime | None
    """When it was last seen to do something, by its own clock; None when nothing tells."""
    tables: tuple[SiteTable, ...]

    @property
    def retired(self) -> bool:
        """Whether no table waits for it."""
        return bool(self.tables) and all(table.retired for table in self.tables)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries and lists; times as ISO text."""
        data = asdict(self) | {"retired": self.retired, "seen": _text(self.seen)}
        tables = [asdict(t) | {"complete_before": _text(t.complete_before)} for t in self.tables]
        return data | {"tables": tables}


def sites(site: SiteContext, tables: Sequence[TableContext]) -> list[Site]:
    """Every site that a catalog or a log tells of, this one first.

    Raises:
        StorageError, CorruptionError: the catalog or a log cannot be read.
    """
    marks = [table.cold.marks() for table in tables]
    found: dict[str, list[SiteTable]] = {}
    seen = {name: datetime.fromtimestamp(when, UTC) for name, when in site.catalog.seen().items()}
    for table, said in zip(tables, marks, strict=True):
        for name, part in _parts(table, said):
            found.setdefault(name, []).append(part)
            if part.complete_before is not None:
                seen[name] = max(seen.get(name, part.complete_before), part.complete_before)
    mine = site.catalog.site
    names = sorted(found.keys() | seen.keys(), key=lambda name: (name != mine, name))
    return [Site(name, name == mine, seen.get(name), tuple(found.get(name, ()))) for name in names]


def retire(site: SiteContext, tables: Sequence[TableContext], name: str) -> None:
    """Have no table's watermark wait for a site any more.

    Raises:
        NotFoundError: there is no such site.
        InvalidInputError: it is this one.
        ConflictError: it is not gone, or it is the last one of a table.
        StorageError: not all tables were told; it can be tried again.
    """
    marks = [table.cold.marks() for table in tables]  # first: what it says later is a conflict
    known = {one.name: one for one in sites(site, tables)}
    if name not in known:
        raise NotFoundError(f"no site {name!r}; those of this lake: {', '.join(known)}")
    check_gone(known[name], site.clock.now(), site.settings.seal_age_s)
    for table, said in zip(tables, marks, strict=True):
        if said.get(name, RETIRED) != RETIRED:
            table.cold.retire(name, said[name])


def check_gone(site: Site, now: datetime, seal_age_s: float) -> None:
    """Raise when a site may be there still. Pure.

    Raises:
        InvalidInputError: it is this one.
        ConflictError: it was seen not long ago.
    """
    if site.is_this:
        raise InvalidInputError(f"site {site.name!r} is this one: retire it from another host")
    until = _SILENT * seal_age_s
    if site.seen is not None and now - site.seen < timedelta(seconds=until):
        raise ConflictError(
            f"site {site.name!r} was there at {_text(site.seen)}: end its processes, and retire "
            f"it once nothing was seen of it for {until:,g} s"
        )


def _parts(table: TableContext, marks: Mapping[str, int]) -> Iterator[tuple[str, SiteTable]]:
    """What each site has of a table."""
    sealed, listed = table.cold.sealed(), table.site.catalog.holdings(table.entry.id)
    for name, mark in marks.items():
        retired, through = mark == RETIRED, sealed.get(name, 0)
        moment = None if retired else moment_of(mark)
        hot = _hot_rows(listed.get(name), through)
        yield name, SiteTable(table.entry.name, through, hot, moment, retired)


def _hot_rows(holding: Holding | None, through: int) -> int | None:
    if holding is None:
        return None
    return sum(segment.info.rows for segment in holding.segments if segment.last > through)


def _text(when: datetime | None) -> str | None:
    return when.isoformat() if when is not None else None
