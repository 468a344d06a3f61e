"""Answers: small values that a notebook shows, a dashboard reads, and other tools take as Arrow."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lakestore.errors import InvalidInputError, NotFoundError
from lakestore.query.result import Result

if TYPE_CHECKING:
    import altair as alt
    import polars as pl


class Tabular:
    """An answer that is a table: `to_arrow`, `to_polars`, a notebook's view, an Arrow stream."""

    def to_arrow(self) -> pa.Table:
        """The answer as a pyarrow table."""
        raise NotImplementedError

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

    def plot(self) -> alt.Chart:
        """A line a group, and a panel a measure."""
        alt = _altair()
        groups = [_label(row, self.by) for row in self.table.select(list(self.by)).to_pylist()]
        rows = [
            {"time": bucket, "group": group, "measure": label, "value": _number(value)}
            for label in self.measures
            for bucket, group, value in zip(
                self.table["bucket"].to_pylist(),
                groups or [""] * len(self),
                self.table[label].to_pylist(),
                strict=True,
            )
        ]
        chart = alt.Chart(alt.Data(values=_json(rows)))
        chart = chart.mark_line(interpolate="step-after").encode(
            x=alt.X("time:T", title=f"time, by {self.every}"),
            y=alt.Y("value:Q", title=None),
            tooltip=["time:T", "group:N", "value:Q"],
            **({"color": alt.Color("group:N", title=", ".join(self.by))} if self.by else {}),
        )
        return _panels(chart, "measure", len(self.measures))


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

    def plot(self) -> alt.Chart:
        """A bar a value, and a panel a column."""
        alt = _altair()
        rows = self.to_arrow().to_pylist()
        for row in rows:
            row["value"] = "∅" if row["value"] is None else row["value"]
        chart = alt.Chart(alt.Data(values=rows)).mark_bar()
        chart = chart.encode(
            x=alt.X("count:Q", title="events"),
            y=alt.Y("value:N", sort="-x", title=None),
            tooltip=["value:N", "count:Q"],
        )
        return _panels(chart, "column", len(self.counts))


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

    def plot(self, measure: str | None = None) -> alt.Chart:
        """A bar a group, and a panel a grouping.

        Args:
            measure: which one; by default the first of the summary.
        """
        alt = _altair()
        label = measure or next(iter(self.summary))
        if label not in self.summary:
            raise NotFoundError(f"no measure {label!r}; there are {', '.join(self.summary)}")
        rows = [
            {"grouping": name, "group": str(row["group"]), "value": _number(row[label])}
            for name, table in self.groups.items()
            for row in table.to_pylist()
        ]
        chart = alt.Chart(alt.Data(values=rows)).mark_bar()
        chart = chart.encode(
            x=alt.X("value:Q", title=label), y=alt.Y("group:N", sort="-x", title=None)
        )
        return _panels(chart, "grouping", len(self.groups))

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


def _panels(chart: alt.Chart, column: str, count: int) -> alt.Chart:
    """The chart, in panels when there is more than one value of the column."""
    shown: alt.Chart = chart.properties(width=640 if count == 1 else 420, height=240)
    if count > 1:
        columns = 1 if column == "measure" else 2
        shown = shown.facet(f"{column}:N", columns=columns).resolve_scale(y="independent")
    return shown


def _label(row: Mapping[str, Any], by: Sequence[str]) -> str:
    return ", ".join("∅" if row[name] is None else str(row[name]) for name in by)


def _number(value: Any) -> float | int | None:
    return value if value is None or isinstance(value, int | float) else float(value)


def _json(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"time": row["time"].isoformat()} for row in rows]
