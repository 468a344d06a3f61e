"""Answers: small values that a notebook shows, a dashboard reads, and other tools take as Arrow."""

from __future__ import annotations

import html
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lakestore.columns import interval_micros
from lakestore.errors import InvalidInputError, NotFoundError
from lakestore.query.result import Result

if TYPE_CHECKING:
    import polars as pl
    from altair.typing import ChartType

_SHOWN = 20
"""So many groups, or bars, are told apart; a title says how many there are."""
_CLOCK = (
    "utcFormat(datum.value, utcseconds(datum.value) ? '%H:%M:%S' : "
    "utchours(datum.value) || utcminutes(datum.value) ? '%H:%M' : "
    "utcmonth(datum.value) || utcdate(datum.value) > 1 ? '%b %d' : '%b %d, %Y')"
)
"""What an axis of time shows, for Vega: its own labels leave out which 12:30 it is."""


class Tabular(ABC):
    """An answer that is a table: `to_arrow`, `to_polars`, a notebook's view, an Arrow stream."""

    @abstractmethod
    def to_arrow(self) -> pa.Table:
        """The answer as a pyarrow table."""

    def to_polars(self) -> pl.DataFrame:
        """The answer as a Polars frame."""
        return Result(self.to_arrow()).to_polars()

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """The answer as an Arrow stream capsule."""
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def _repr_html_(self) -> str:
        return Result(self.to_arrow())._repr_html_()

    def __str__(self) -> str:
        return repr(Result(self.to_arrow()))


@dataclass(frozen=True, eq=False)  # equal to any mapping that says the same
class Totals(Tabular, Mapping[str, Any]):
    """Measures of all events that pass a filter, by label."""

    measures: Mapping[str, Any]
    table: pa.Table = field(repr=False)

    def __getitem__(self, label: str) -> Any:
        return self.measures[label]

    def __iter__(self) -> Iterator[str]:
        return iter(self.measures)

    def __len__(self) -> int:
        return len(self.measures)

    @classmethod
    def of(cls, table: pa.Table) -> Totals:
        """The only row of a table."""
        return cls(table.to_pylist()[0], table)

    def to_arrow(self) -> pa.Table:
        """One row; a column a measure."""
        return self.table


@dataclass(frozen=True)
class Page(Tabular):
    """Events in order of time, and what is known of all that pass the filter."""

    rows: list[dict[str, Any]]
    next_cursor: str | None
    """What to ask for the page after this one; None when this is the last."""
    total: int | None
    totals: Totals | None
    table: pa.Table = field(repr=False)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def to_arrow(self) -> pa.Table:
        """The events of the page, in their order."""
        return self.table


@dataclass(frozen=True)
class Series(Tabular):
    """Measures by bucket of time, and by group: every bucket of the window, zero-filled."""

    table: pa.Table = field(repr=False)
    """Columns `bucket`, then those of `by`, then a column a measure; by group, then time."""
    every: str
    by: tuple[str, ...]
    measures: tuple[str, ...]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.table.to_pylist())

    def to_arrow(self) -> pa.Table:
        """One row a bucket and group."""
        return self.table

    def plot(self) -> ChartType:
        """An Altair chart: a line a group, and a panel a measure; of groups, those with most."""
        alt = _altair()
        groups = self._groups()
        shown = _leading(groups, self.measures[0])
        note = f" ({len(shown)} of {len(groups):,} groups)" if len(shown) < len(groups) else ""
        colour = alt.Color(
            "group:N",
            title=", ".join(self.by),
            sort=shown,
            scale=alt.Scale(domain=shown, scheme="tableau10" if len(shown) <= 10 else "tableau20"),
            legend=alt.Legend(symbolLimit=0, labelLimit=280) if self.by else None,
        )
        panels = []
        for label in self.measures:
            values = [p for name in shown for p in _steps(groups[name], name, label, self.every)]
            chart = alt.Chart(alt.Data(values=values), title=_title(label + note))
            chart = chart.mark_line(interpolate="step-after").encode(
                x=alt.X(
                    "time:T",
                    title=f"UTC, by {self.every}",
                    scale=alt.Scale(type="utc"),  # or it would be of the zone of who looks
                    axis=alt.Axis(labelExpr=_CLOCK, labelOverlap="greedy", labelSeparation=8),
                ),
                y=alt.Y("value:Q", title=None),
                color=colour,
                tooltip=["time:T", "group:N", alt.Tooltip("value:Q", format=",")],
            )
            panels.append(chart.properties(width=640, height=240))
        return _panels(panels, columns=1)

    def _groups(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of each group, in the order of time, by a name of its own."""
        groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in self:
            groups.setdefault(tuple(row[name] for name in self.by), []).append(row)
        named: dict[str, list[dict[str, Any]]] = {}
        for values, rows in groups.items():
            name = ", ".join(map(_text, values))
            while name in named:  # null and the text that stands for it, or a text with a comma
                name += "*"
            named[name] = rows
        return named


@dataclass(frozen=True, eq=False)  # as Totals
class Facets(Tabular, Mapping[str, list[tuple[Any, int]]]):
    """Values of columns with their numbers of events: what a filter menu offers."""

    counts: Mapping[str, list[tuple[Any, int]]]
    """By column: (value, events), the most frequent first; None stands for null."""

    def __getitem__(self, column: str) -> list[tuple[Any, int]]:
        return self.counts[column]

    def __iter__(self) -> Iterator[str]:
        return iter(self.counts)

    def __len__(self) -> int:
        return len(self.counts)

    def values_of(self, column: str) -> list[Any]:
        """The values of a column alone, in ascending order, null left out."""
        if column not in self.counts:
            raise NotFoundError(f"no facet {column!r}; there are {', '.join(self.counts)}")
        return sorted(value for value, _ in self.counts[column] if value is not None)

    def to_arrow(self) -> pa.Table:
        """One row a column and value: `column`, `value` as text, `count`."""
        rows = [(c, value, n) for c, found in self.counts.items() for value, n in found]
        return pa.table(
            {
                "column": pa.array([c for c, _, _ in rows], pa.string()),
                "value": pa.array([None if v is None else str(v) for _, v, _ in rows], pa.string()),
                "count": pa.array([n for _, _, n in rows], pa.int64()),
            }
        )

    def plot(self) -> ChartType:
        """An Altair chart: a bar a value, and a panel a column; of values, the most frequent."""
        return _panels(
            [_bars(column, "events", counts) for column, counts in self.counts.items()], columns=2
        )


@dataclass(frozen=True)
class Metrics(Tabular):
    """A summary, the same measures by group, and lists of the groups that lead in one."""

    summary: Totals
    groups: Mapping[str, pa.Table]
    """By name of the grouping: a row a group, columns `group` and a measure each."""
    top: Mapping[str, Mapping[str, list[dict[str, Any]]]]
    """By list, then by grouping: the groups that lead, as rows of `groups`."""

    def to_arrow(self) -> pa.Table:
        """The summary as one row."""
        return self.summary.to_arrow()

    def plot(self, measure: str | None = None) -> ChartType:
        """An Altair chart: a bar a group, and a panel a grouping; of groups, those with most.

        Args:
            measure: which one; by default the first of the summary.
        """
        label = measure or next(iter(self.summary))
        if label not in self.summary:
            raise NotFoundError(f"no measure {label!r}; there are {', '.join(self.summary)}")
        return _panels(
            [
                _bars(name, label, [(row["group"], row[label]) for row in table.to_pylist()])
                for name, table in self.groups.items()
            ],
            columns=2,
        )

    def _repr_html_(self) -> str:
        parts = [self.summary._repr_html_()]
        for name, table in self.groups.items():
            parts.append(f"<h4>{html.escape(name)}</h4>{Result(table)._repr_html_()}")
        return "".join(parts)


def _altair() -> Any:
    try:
        import altair
    except ImportError as error:
        raise InvalidInputError("plots need altair: pip install 'lakestore[plot]'") from error
    return altair


def _panels(panels: Sequence[Any], columns: int) -> ChartType:
    """The charts under and beside each other.

    Raises:
        InvalidInputError: there is none.
    """
    if not panels:
        raise InvalidInputError("there is nothing to plot: the schema names no facets")
    chart: ChartType = panels[0]
    if len(panels) > 1:
        chart = _altair().concat(*panels, columns=columns, spacing=24)
    return chart


def _title(text: str) -> Any:
    return _altair().Title(text, anchor="start", frame="group")


def _bars(title: str, label: str, measured: Sequence[tuple[Any, Any]]) -> Any:
    """A bar a value, with its number at the end; no more of them than can be told apart."""
    alt = _altair()
    found = [(_text(value), _number(number)) for value, number in measured]
    known = [(name, number) for name, number in found if number is not None]
    known.sort(key=lambda row: -row[1])
    rows = [{"name": name, "value": number, "told": _told(number)} for name, number in known]
    if len(rows) > _SHOWN:
        title += f" ({_SHOWN} of {len(rows):,})"
    chart = alt.Chart(alt.Data(values=rows[:_SHOWN])).encode(
        x=alt.X("value:Q", title=label, axis=alt.Axis(tickCount=5)),
        y=alt.Y("name:N", sort=None, title=None, axis=alt.Axis(labelLimit=220)),
        tooltip=["name:N", alt.Tooltip("value:Q", format=",")],
    )
    bars = chart.mark_bar() + chart.mark_text(align="left", dx=3).encode(text="told:N")
    return bars.properties(title=_title(title), width=360, height=alt.Step(20))


def _told(number: float) -> str:
    if isinstance(number, int):
        return f"{number:,}"
    return f"{number:,.2f}" if abs(number) >= 1 else f"{number:.4g}"


def _leading(groups: Mapping[str, list[dict[str, Any]]], label: str) -> list[str]:
    """Names of the groups with most, no more than colours, in their own order."""
    size = {
        name: sum(_number(row[label]) or 0 for row in rows if row[label] is not None)
        for name, rows in groups.items()
    }
    most = set(sorted(groups, key=lambda name: -size[name])[:_SHOWN])
    return [name for name in groups if name in most]


def _steps(
    rows: Sequence[Mapping[str, Any]], group: str, label: str, every: str
) -> Iterator[dict[str, Any]]:
    """The points of a line that is level in each bucket, also in the last, and before a gap."""
    starts = [row["bucket"] for row in rows]
    width = timedelta(microseconds=interval_micros(every) or 0)
    ends = [*starts[1:], starts[-1] + width]
    for at, row in enumerate(rows):
        value = _number(row[label])
        yield {"time": starts[at].isoformat(), "group": group, "value": value}
        after = None if at + 1 == len(rows) else rows[at + 1][label]
        if value is not None and after is None:
            yield {"time": ends[at].isoformat(), "group": group, "value": value}


def _text(value: Any) -> str:
    return "∅" if value is None else str(value)


def _number(value: Any) -> float | int | None:
    """A number that JSON has, or None."""
    if value is None or isinstance(value, bool):
        return None
    number = value if isinstance(value, int) else float(value)
    return number if isinstance(number, int) or math.isfinite(number) else None
