"""What a new version of a table's schema changes, or why it cannot; pure.

Files are never rewritten: rows of older versions are read as those of the newest. So a change is
allowed when every older row has exactly one meaning under the new schema: columns are added that
may be null, types become wider without loss, columns get other names.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from lakestore.columns import Column
from lakestore.errors import SchemaError
from lakestore.schema import TableSchema

_KEYS = (
    "description", "retention", "bloom", "facets", "derived", "rollups", "metrics",
    "on_new_column", "rejects",
)  # fmt: skip
"""What of a document no older row depends on: it may change at will."""
_CONSTRAINTS = re.compile(r"(?is)\s(?:not\s+null|default\s).*")
_DIGITS = {8: 3, 16: 5, 32: 10, 64: 19}
_UNSIGNED_DIGITS = _DIGITS | {64: 20}


@dataclass(frozen=True)
class Change:
    """What a new version of a schema changes."""

    added: tuple[Column, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    """From, to."""
    widened: tuple[tuple[Column, Column], ...] = ()
    relaxed: tuple[str, ...] = ()
    """Columns that may be null from now on."""
    other: tuple[str, ...] = field(default=())
    """Keys of the document that say something else."""

    @property
    def is_nothing(self) -> bool:
        """Whether the new schema is the old one."""
        return not self.lines()

    def lines(self) -> list[str]:
        """The change for people, a line a column."""
        lines = [f"add column {c.name!r} ({c.sql_type})" for c in self.added]
        lines += [f"rename column {old!r} to {new!r}" for old, new in self.renamed]
        lines += [
            f"widen column {new.name!r} from {old.sql_type} to {new.sql_type}"
            for old, new in self.widened
        ]
        lines += [f"allow nulls in column {name!r}" for name in self.relaxed]
        return lines + [f"change {key}" for key in self.other]


def edited(
    schema: TableSchema,
    add: Mapping[str, str],
    widen: Mapping[str, str],
    rename: Mapping[str, str],
) -> TableSchema:
    """A schema with columns added at its end, of other types, and of other names.

    Args:
        add: declarations of new columns, by name.
        widen: types, by name.
        rename: new names by old ones; roles that name a column follow, SQL that does cannot.

    Raises:
        SchemaError: no such column, or the result is no schema.
    """
    declared = dict(schema.document.columns)
    for name in (*widen, *rename):
        if name not in declared:
            raise SchemaError(f"no column {name!r} is declared; there are {', '.join(declared)}")
    for name, kind in widen.items():
        rest = _CONSTRAINTS.search(declared[name])
        declared[name] = kind + (rest[0] if rest else "")
    for name in add:
        if name in declared:
            raise SchemaError(f"there is a column {name!r} already")

    def called(names: Iterable[str]) -> list[str]:
        return [rename.get(name, name) for name in names]

    data = schema.document.model_dump(exclude_defaults=True)
    data["columns"] = {rename.get(n, n): spec for n, spec in declared.items()} | dict(add)
    before = {n: o for n, o in schema.document.renamed.items() if n not in rename}
    data["renamed"] = before | {new: old for old, new in rename.items()}
    for role in ("bloom", "facets"):
        data[role] = called(data.get(role, ()))
    for rollup in data.get("rollups", ()):
        for role in ("by", "sums", "max", "histograms"):
            rollup[role] = called(rollup.get(role, ()))
    data["derived"] = {rename.get(n, n): sql for n, sql in data.get("derived", {}).items()}
    return TableSchema.from_document(data)


def origins(old: TableSchema, new: TableSchema) -> dict[str, str | None]:
    """Which column of the old schema each column of the new one was; None for one that is added."""
    names = set(old.names)
    found: dict[str, str | None] = {}
    for name in new.names:
        before = new.document.renamed.get(name)
        found[name] = name if name in names else before if before in names else None
    return found


def origins_in(versions: Sequence[TableSchema]) -> dict[str, str | None]:
    """Of versions that follow each other: which column of the first each of the last one's was."""
    found: dict[str, str | None] = {name: name for name in versions[-1].names}
    for old, new in zip(reversed(versions[:-1]), reversed(versions[1:]), strict=True):
        step = origins(old, new)
        found = {n: step[c] if c is not None else None for n, c in found.items()}
    return found


def decide(
    old: TableSchema, new: TableSchema, cold: str, earlier: Iterable[TableSchema] = ()
) -> Change:
    """What changes from one version of a table's schema to the next.

    Args:
        earlier: the versions before the old one.
        cold: the format of the sealed files; of Delta every reader has to follow.

    Raises:
        SchemaError: a row of the old version would be lost, or have no meaning; says each reason.
    """
    came_from = origins(old, new)
    change = difference(old, new)
    reasons = [*_roles(old, new), *_columns(old, new, came_from, change)]
    versions = [*earlier, old, new]
    for number, version in enumerate(versions[:-1]):
        reasons += [
            f"column {name!r}: older files have another so called"
            for name, source in origins_in(versions[number:]).items()
            for other in version.names
            if other.casefold() == name.casefold() and other != source
        ]
    if cold == "delta":
        reasons += _not_in_delta(change)
    if reasons:
        told = "; ".join(dict.fromkeys(reasons))
        raise SchemaError(f"the schema cannot become that one: {told}")
    return change


def difference(old: TableSchema, new: TableSchema) -> Change:
    """What the new schema says otherwise, as far as that is allowed."""
    came_from = origins(old, new)
    pairs = [(old.column(source), c) for c in new.columns if (source := came_from[c.name])]
    return Change(
        tuple(c for c in new.columns if came_from[c.name] is None),
        tuple((a.name, b.name) for a, b in pairs if a.name != b.name),
        tuple((a, b) for a, b in pairs if a.arrow_type != b.arrow_type),
        tuple(b.name for a, b in pairs if b.nullable and not a.nullable),
        tuple(k for k in _KEYS if getattr(old.document, k) != getattr(new.document, k)),
    )


def _roles(old: TableSchema, new: TableSchema) -> Iterator[str]:
    """Which roles change that older files were written by."""
    roles = {
        "event_time": (old.event_time, new.event_time),
        "event_id": (
            None if old.made_id else old.event_id,
            None if new.made_id else new.event_id,
        ),
        "sort": (list(old.sort), list(new.sort)),
        "dedup": (old.dedup, new.dedup),
        "payload": (dict(old.payload), dict(new.payload)),
    }
    for role, (before, after) in roles.items():
        if before != after:
            yield f"{role} changes from {before!r} to {after!r}"


def _columns(
    old: TableSchema, new: TableSchema, came_from: Mapping[str, str | None], change: Change
) -> Iterator[str]:
    for name in old.names:
        if name not in came_from.values():
            yield f"column {name!r} is dropped (to rename it, say so under [renamed])"
    fixed = {old.event_id, old.event_time, *old.payload}
    for before, after in change.widened:
        kinds = f"{before.sql_type} becomes {after.sql_type}"
        if before.name in fixed:
            yield f"column {before.name!r}: {kinds}, and ids, event times and payloads stay"
        elif pa.types.is_nested(before.arrow_type) or pa.types.is_nested(after.arrow_type):
            yield f"column {before.name!r}: {kinds}; a nested type cannot change: add a column"
        elif not is_wider(before.arrow_type, after.arrow_type):
            yield f"column {before.name!r}: {kinds}, which does not hold all of its values"
    for column in change.added:
        if not column.nullable:
            yield f"column {column.name!r} is new and NOT NULL, and older rows have no value of it"
    for name, source in came_from.items():
        if source and old.column(source).nullable and not new.column(name).nullable:
            yield f"column {source!r} becomes NOT NULL, and older rows may hold nulls"


def _not_in_delta(change: Change) -> Iterator[str]:
    """What readers of a Delta log do not do: they would see nulls, or fail at older files."""
    for before, after in change.renamed:
        yield (
            f"column {before!r} becomes {after!r}: readers of a Delta table know a column by one "
            "name in every file"
        )
    for old, new in change.widened:
        yield (
            f"column {old.name!r} becomes {new.sql_type}: readers of a Delta table do not agree "
            "on files of several types; add a column instead"
        )


def is_wider(source: pa.DataType, target: pa.DataType) -> bool:
    """Whether a plain type holds every value of another."""
    types = pa.types
    if source.equals(target):
        return True
    if types.is_integer(source):
        bits, unsigned = source.bit_width, types.is_unsigned_integer(source)
        if types.is_decimal(target):
            digits = (_UNSIGNED_DIGITS if unsigned else _DIGITS)[bits]
            return bool(target.precision - target.scale >= digits)
        if types.is_floating(target):
            return bool(bits <= {32: 16, 64: 32}.get(target.bit_width, 0))
        if types.is_integer(target):
            same = unsigned == types.is_unsigned_integer(target)
            return bool(target.bit_width > bits and (same or unsigned))
    if types.is_decimal(source) and types.is_decimal(target):
        whole = source.precision - source.scale
        return bool(target.scale >= source.scale and target.precision - target.scale >= whole)
    return bool(types.is_float32(source) and types.is_float64(target))
