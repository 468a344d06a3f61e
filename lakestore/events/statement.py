"""The statement of a question: states by key of every part of a snapshot, merged.

Counts and sums are merged by addition, a mean from both, and percentiles by adding up the counts
of logarithmic bins. The partials of a rollup are such states already, of a bucket of time each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lakestore import quoting, rollup
from lakestore.document import BUCKET, COUNT, Rollup
from lakestore.events.buckets import Buckets
from lakestore.events.filters import Filter
from lakestore.events.measures import Measure


@dataclass(frozen=True)
class Question:
    """Measures by key."""

    filter: Filter
    measures: tuple[Measure, ...]
    by: tuple[str, ...] = ()
    buckets: Buckets | None = None

    @property
    def keys(self) -> list[str]:
        """The answer's key columns: `k0`, `k1`, …; the bucket is the first."""
        return [f"k{i}" for i in range(len(self.by) + (self.buckets is not None))]

    def keyed(self, time: str) -> str:
        """The keys of a row as SQL with a comma after each.

        Args:
            time: SQL of the row's time.
        """
        made = [self.buckets.sql(time)] if self.buckets else []
        made += [quoting.identifier(name) for name in self.by]
        return "".join(f"{sql} AS {key}, " for sql, key in zip(made, self.keys, strict=True))


@dataclass(frozen=True)
class Part:
    """Rows, or partials of rows, that a statement takes states from."""

    source: str
    condition: str
    rollup: Rollup | None = None
    """None: rows."""


def statement(question: Question, parts: Sequence[Part]) -> str:
    """A SELECT of `k0`, `k1`, … and `m0`, `m1`, …: a row for each key of which there is an event.

    Without keys there is one row, whether there is an event or not.
    """
    keys = question.keys
    merged = [_merged(m, f"s{i}") for i, m in enumerate(question.measures)]
    chosen = [*keys, "count(*) AS present"]
    chosen += [f"{sql} AS m{i}" for i, sql in enumerate(merged) if sql]
    states = " UNION ALL ".join(_states(question, part) for part in parts)
    tables = [f"merged AS (SELECT {', '.join(chosen)} FROM ({states}){_group_by(keys)})"]
    joins, names = "", {i: f"merged.m{i}" for i, sql in enumerate(merged) if sql}
    for number, (measure, group) in enumerate(_binned(question).items()):
        bins = " UNION ALL ".join(_bins(question, part, measure) for part in parts)
        levels = {f"m{i}": question.measures[i].quantile for i in group}
        tables.append(f"q{number} AS ({rollup.quantiles_sql(f'({bins})', levels, keys)})")
        same = " AND ".join(f"merged.{k} IS NOT DISTINCT FROM q{number}.{k}" for k in keys)
        joins += f" LEFT JOIN q{number} ON {same or 'true'}"
        names |= {i: f"q{number}.m{i}" for i in group}
    columns = [f"merged.{key}" for key in keys] + [names[i] for i in sorted(names)]
    return f"FROM (WITH {', '.join(tables)} SELECT {', '.join(columns)} FROM merged{joins})"


def _group_by(keys: Sequence[str]) -> str:
    """By position: a column of the table could have a key's name."""
    return f" GROUP BY {', '.join(str(i + 1) for i in range(len(keys)))}" if keys else ""


def _states(question: Question, part: Part) -> str:
    filter = question.filter
    time = BUCKET if part.rollup else quoting.identifier(filter.schema.event_time)
    made = ["1 AS present"]
    for i, measure in enumerate(question.measures):
        state = _of_measure(measure, rolled=part.rollup is not None)
        made += [f"{sql} AS s{i}{end}" for end, sql in state.items()]
    return (
        f"SELECT {question.keyed(time)}{', '.join(made)} FROM {part.source} "
        f"WHERE {part.condition}{_group_by(question.keys)}"
    )


def _of_measure(measure: Measure, *, rolled: bool) -> dict[str, str]:
    """The states of a measure, of rows or (`rolled`) of partials, by the ends of their names."""

    def made(aggregate: str, kept: str) -> str:
        """An aggregate of the column, or of what partials keep of it."""
        return f"{aggregate}({measure.kept(kept) if rolled else measure.name}){measure.filter}"

    if measure.column is None:
        return {"": f"{f'sum({COUNT})' if rolled else 'count(*)'}{measure.filter}"}
    match measure.kind:
        case "count":
            return {"": made("sum" if rolled else "count", "n")}
        case "sum":
            return {"": f"CAST({made('sum', 'sum')} AS {measure.sum_type})"}
        case "avg":
            count = made("sum" if rolled else "count", "n")
            return {"": f"CAST({made('sum', 'sum')} AS {measure.sum_type})", "n": count}
        case "min" | "max":
            return {"": made(measure.kind, measure.kind)}
        case "distinct":
            return {"": f"list(DISTINCT {measure.name}){measure.filter}"}
        case _:
            return {}


def _merged(measure: Measure, state: str) -> str:
    """The measure, from the states of all parts; empty for one that is joined."""
    match measure.kind:
        case "count":
            return f"CAST(coalesce(sum({state}), 0) AS BIGINT)"
        case "sum":
            return f"coalesce(CAST(sum({state}) AS {measure.sum_type}), 0)"
        case "avg":
            return f"CAST(sum({state}) AS DOUBLE) / nullif(sum({state}n), 0)"
        case "min" | "max":
            return f"{measure.kind}({state})"
        case "distinct":
            return f"coalesce(len(list_distinct(flatten(list({state})))), 0)"
        case _:
            return ""


def _binned(question: Question) -> dict[Measure, list[int]]:
    """Numbers of the percentiles that come of the same bins, by the first such measure."""
    groups: dict[tuple[str, str | None], list[int]] = {}
    for i, measure in enumerate(question.measures):
        if measure.kind == "percentile":
            groups.setdefault((measure.name, measure.test), []).append(i)
    return {question.measures[group[0]]: group for group in groups.values()}


def _bins(question: Question, part: Part, measure: Measure) -> str:
    """Counts of bins by key, of rows or of partials."""
    test = f"({measure.test}) AND " if measure.test else ""
    if part.rollup is None:
        time, value = quoting.identifier(question.filter.schema.event_time), f"{measure.name} AS v"
    else:
        time = BUCKET
        value = f"{measure.kept('hist')} AS hist_v"
    source = (
        f"(SELECT {question.keyed(time)}{value} FROM {part.source} WHERE {test}{part.condition})"
    )
    binned = rollup.bins_of_rows if part.rollup is None else rollup.bins_of_partials
    return f"({binned('v', source, question.keys)})"
