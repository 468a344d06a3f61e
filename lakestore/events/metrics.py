"""Metrics: a summary, the same by group, and who leads; as a schema declares, for any table."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lakestore.document import MetricsDocument
from lakestore.errors import InvalidInputError, NotFoundError, SchemaError
from lakestore.events.aggregate import aggregate_all
from lakestore.events.answers import Metrics, Totals
from lakestore.events.filters import Filter
from lakestore.events.measures import Measure, columns_of, default, parse
from lakestore.events.questions import named
from lakestore.events.statement import Question
from lakestore.query.reader import Reader
from lakestore.schema import TableSchema

GROUP = "group"
"""What the column is called that tells the groups apart."""


@dataclass(frozen=True)
class View:
    """What one declared view of metrics shows."""

    measures: tuple[Measure, ...]
    groups: Mapping[str, str]
    """Column by name of the grouping."""
    top: Mapping[str, tuple[str, bool]]
    """By list: the measure that ranks it, and whether the least leads."""


def view(schema: TableSchema, name: str | None) -> View:
    """The view of that name; without a name, the first declared, or one made of facets.

    Raises:
        NotFoundError: the schema declares no such view.
    """
    declared = schema.document.metrics
    if name is None and not declared:
        return _of_facets(schema)
    name = next(iter(declared)) if name is None else name
    if name not in declared:
        known = ", ".join(declared) or "none"
        raise NotFoundError(f"no metrics named {name!r}; the schema declares {known}")
    return _declared(schema, declared[name])


def check(schema: TableSchema) -> None:
    """Refuse declared views that could not be answered; raises `SchemaError`."""
    for name, document in schema.document.metrics.items():
        try:
            _declared(schema, document)
        except (InvalidInputError, NotFoundError) as error:
            raise SchemaError(f"metrics.{name}: {error.args[0]}") from error


def _declared(schema: TableSchema, document: MetricsDocument) -> View:
    measures = parse(document.measures, schema)
    labels = {measure.label for measure in measures}
    if GROUP in labels:
        raise InvalidInputError(f"a measure cannot be called {GROUP!r}")
    top = {}
    for name, ranked in document.top.items():
        label, _, way = ranked.partition(" ")
        if label not in labels or way not in ("", "asc", "desc"):
            raise InvalidInputError(
                f"top.{name}: {ranked!r} is not one of its measures, then optionally 'asc'"
            )
        top[name] = (label, way == "asc")
    for column in document.groups.values():
        columns_of(schema, column)
    return View(measures, document.groups, top)


def _of_facets(schema: TableSchema) -> View:
    measures = default(schema)
    groups = {name: name for name in schema.document.facets}
    return View(measures, groups, {"count": ("count", False)})


def metrics(reader: Reader, filter: Filter, shown: View, top: int) -> Metrics:
    """The answer of a view."""
    by = [(), *((column,) for column in shown.groups.values())]
    questions = [Question(filter, shown.measures, one) for one in by]
    summary, *grouped = aggregate_all(reader, questions)
    groups = {
        name: named(answer, [GROUP], shown.measures)
        for name, answer in zip(shown.groups, grouped, strict=True)
    }
    first = shown.measures[0].label
    lists = {
        name: {
            grouping: leaders(table.to_pylist(), label, first, least=least)[:top]
            for grouping, table in groups.items()
        }
        for name, (label, least) in shown.top.items()
    }
    return Metrics(Totals.of(named(summary, [], shown.measures)), groups, lists)


def leaders(
    groups: Iterable[dict[str, Any]], label: str, first: str, *, least: bool = False
) -> list[dict[str, Any]]:
    """Groups by a measure, the most first or the `least`, those without it last.

    Args:
        first: the measure that decides between equals; then the group does.
    """
    rows = sorted(groups, key=lambda row: (row[GROUP] is None, str(row[GROUP])))
    rows.sort(key=lambda row: -(row[first] or 0))
    known = [row for row in rows if row[label] is not None]
    known.sort(key=lambda row: row[label], reverse=not least)
    return known + [row for row in rows if row[label] is None]
