"""Events as Python mappings → Arrow columns."""

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa

from lakestore.casts import cast, mismatch
from lakestore.columns import Column
from lakestore.errors import InvalidInputError, SchemaError
from lakestore.naming import target, unknown
from lakestore.nesting import TooDeep, levels
from lakestore.schema import TableSchema


def from_mappings(rows: Iterable[Any], schema: TableSchema) -> pa.Table:
    """The events as columns, each of its type in the schema or as Arrow infers it.

    Raises:
        InvalidInputError: a row is no mapping.
        SchemaError: a column is unknown, or a value fits nothing. Names row, column, value.
    """
    events = list(rows)
    reject = schema.document.on_new_column == "reject"
    names: dict[str, None] = {}
    for index, event in enumerate(events):
        if not isinstance(event, Mapping):
            raise InvalidInputError(f"row {index} is {type(event).__name__}, not a mapping")
        if event.keys() - names.keys():
            names.update(dict.fromkeys(event))
            strange = [name for name in event if target(name, schema) is None]
            if strange and (reject or not all(isinstance(name, str) for name in strange)):
                raise SchemaError(f"row {index}: {unknown(str(strange[0]), schema)}")
    columns = {}
    for name in names:
        column = target(name, schema)
        if column is None and schema.document.on_new_column == "ignore":
            continue
        values = [event.get(name) for event in events]
        columns[name] = from_values(values, name, column.arrow_type if column else None)
    if events and not columns:
        raise SchemaError(f"row 0 is empty; the table requires {schema.event_time!r}")
    return pa.table(columns)


def check_depth(values: Iterable[Any], where: str) -> None:
    """Refuse what nests so deeply that Arrow's own recursion would end the process."""
    try:
        for _ in levels(values):
            pass
    except TooDeep as error:
        raise SchemaError(f"{where}: {error}") from error


def from_values(values: list[Any], name: str, target: pa.DataType | None) -> pa.Array:
    """Python values as an Arrow array: of the target's type, or else as Arrow infers them."""
    check_depth(values, f"column {name!r}")
    if target is None:
        return _inferred(values, name)
    if pa.types.is_string(target):
        values = [str(v) if isinstance(v, UUID) else v for v in values]
    if pa.types.is_map(target):
        return _from_maps(values, name, target)
    inferred = _must_infer(values, target)
    error: Exception | None = None
    for arrow in (None,) if inferred else (target, None):
        try:
            return pa.array(values, type=arrow)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as problem:
            error = problem
    for row, value in enumerate(values):  # one by one, to name the culprit
        try:
            pa.array([value], type=target)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as problem:
            raise SchemaError(mismatch(row, name, value, target)) from problem
    raise SchemaError(f"column {name!r}: its values have no common type: {error}") from error


def _inferred(values: list[Any], name: str) -> pa.Array:
    """Values of a column that the table has not got (yet)."""
    try:
        return pa.array([str(v) if isinstance(v, UUID) else v for v in values])
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise SchemaError(f"column {name!r}: its values have no common type: {error}") from error


def _from_maps(values: list[Any], name: str, target: pa.MapType) -> pa.Array:
    """Mappings, or lists of pairs, as an Arrow map: keys and items each as a column would be."""
    pairs = [list(v.items()) if isinstance(v, Mapping) else v for v in values]
    try:
        keys = [key for some in pairs for key, _ in some or ()]
        items = [item for some in pairs for _, item in some or ()]
        sizes = [None if some is None else len(some) for some in pairs]
    except (TypeError, ValueError) as error:
        raise SchemaError(f"column {name!r}: a map is a mapping or a list of pairs") from error
    ends = np.cumsum([0, *(size or 0 for size in sizes)])
    offsets = [None if s is None else int(e) for s, e in zip(sizes, ends, strict=False)]
    parts = []
    for kind, wanted in ((keys, target.key_type), (items, target.item_type)):
        column = Column(name, str(wanted), wanted, True)
        array = cast(pa.chunked_array([from_values(kind, name, wanted)]), column)
        parts.append(array.combine_chunks())
    made = pa.MapArray.from_arrays(pa.array([*offsets, int(ends[-1])], pa.int32()), *parts)
    return made.cast(target)


def _must_infer(values: list[Any], target: pa.DataType) -> bool:
    """Whether Arrow, told the target, would change a value in silence: 1.5 to 1, True to 1."""
    types, kinds = pa.types, {type(v) for v in values}
    if types.is_boolean(target):
        return bool(kinds - {bool, type(None)})
    if types.is_date(target):
        return bool(kinds - {date, type(None)})
    if types.is_temporal(target):
        return bool(kinds & {int, float, bool})
    if types.is_integer(target):
        return bool(kinds - {int, type(None)})
    if types.is_float32(target):
        return bool(kinds & {float, bool})
    if types.is_floating(target) or types.is_decimal(target):
        return bool in kinds
    return bool(types.is_struct(target) or types.is_list(target))
