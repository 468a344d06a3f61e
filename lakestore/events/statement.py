"""The statement of a question: states by key of every part of a snapshot, merged.

Counts and sums are merged by addition, a mean from both, and percentiles by adding up the counts
of logarithmic bins. The partials of a rollup are such states already, of a bucket of time each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lakestore import quoting, rollup
from lakestore.document import BUCKET, COUNT
from lakestore.events.buckets import Buckets
from lakestore.events.filters import Filter
from lakestore.events.measures import Measure
from lakestore.resident import Source


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

    def keyed(self, values: Sequence[str]) -> str:
        """SQL of the keys' values under their names, with a comma after each."""
        return "".join(f"{sql} AS {key}, " for sql, key in zip(values, self.keys, strict=True))

    @property
    def reads(self) -> set[str]:
        """Columns that its measures look at by value."""
        values = {m.column.name for m in self.measures if m.column and m.kind == "distinct"}
        return values.union(*(m.tested for m in self.measures))


@dataclass(frozen=True)
class Rows:
    """Events that a statement takes states from."""

    source: str
    condition: str

    def relation(self, question: Question) -> str:
        """What stands after FROM."""
        return self.source

    def bucket(self, question: Question) -> str:
        """The question's bucket of a row."""
        time = quoting.identifier(question.filter.schema.event_time)
        return question.buckets.sql(time) if question.buckets else ""

    def keys(self, question: Question) -> list[str]:
        """The keys of a row."""
        buckets = [self.bucket(question)] if question.buckets else []
        return buckets + [quoting.identifier(name) for name in question.by]


@dataclass(frozen=True)
class Rolled:
    """Partials that a statement takes states from: grouped by numbers, which are then named."""

    source: Source
    condition: str

    def relation(self, question: Question) -> str:
        """What stands after FROM."""
        return self.source.with_texts(question.reads)

    def bucket(self, question: Question, number: str = BUCKET) -> str:
        """The question's bucket of a partial's."""
        return question.buckets.sql(self.source.time(number)) if question.buckets else ""

    def keys(self, question: Question) -> list[str]:
        """What stands for the keys of a partial."""
        return [BUCKET] * bool(question.buckets) + [self.source.key(name) for name in question.by]

    def named(self, question: Question, states: str, *, bucketed: bool = False) -> str:
        """States by the keys themselves.

        Args:
            states: a SELECT of states by what stands for them.
            bucketed: but for the bucket, which is the question's already.
        """
        keys, replaced, joins = question.keys, [], ""
        if question.buckets and not bucketed:
            replaced.append(f"{self.bucket(question, f's.{keys[0]}')} AS {keys[0]}")
        for key, name in zip(keys[len(keys) - len(question.by) :], question.by, strict=True):
            if name in self.source.dictionaries:
                replaced.append(f"{key}t.{quoting.identifier(name)} AS {key}")
                texts = self.source.dictionaries[name]
                joins += f" JOIN {texts} AS {key}t ON {key}t.{self.source.key(name)} = s.{key}"
        if not replaced:
            return states
        return f"SELECT s.* REPLACE ({', '.join(replaced)}) FROM ({states}) AS s{joins}"


Part = Rows | Rolled


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
    made = ["1 AS present"]
    for i, measure in enumerate(question.measures):
        state = _of_measure(measure, rolled=isinstance(part, Rolled))
        made += [f"{sql} AS s{i}{end}" for end, sql in state.items()]
    states = (
        f"SELECT {question.keyed(part.keys(question))}{', '.join(made)} "
        f"FROM {part.relation(question)} WHERE {part.condition}{_group_by(question.keys)}"
    )
    return part.named(question, states) if isinstance(part, Rolled) else states


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
    rolled = isinstance(part, Rolled)
    value = f"{measure.kept('hist')} AS hist_v" if rolled else f"{measure.name} AS v"
    keys = part.keys(question)
    if question.buckets:  # before there is a row a bin
        keys[0] = part.bucket(question)
    source = (
        f"(SELECT {question.keyed(keys)}{value} "
        f"FROM {part.relation(question)} WHERE {test}{part.condition})"
    )
    if isinstance(part, Rolled):
        bins = rollup.bins_of_partials("v", source, question.keys)
        return part.named(question, f"({bins})", bucketed=True)
    return f"({rollup.bins_of_rows('v', source, question.keys)})"
