"""Scan: a DuckDB relation as a Polars LazyFrame whose errors are lakestore's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, cast

import duckdb
import pyarrow as pa

if TYPE_CHECKING:
    import polars as pl

Translate = Callable[[Exception], Exception]


def scanned(relation: duckdb.DuckDBPyRelation, translate: Translate) -> pl.LazyFrame:
    """A frame that reads the relation when it is collected; filters and columns are pushed down.

    Args:
        translate: makes what a caller sees of what DuckDB or Arrow raise meanwhile.
    """
    from duckdb.polars_io import duckdb_source

    schema = relation.limit(0).pl().schema
    frame: pl.LazyFrame = duckdb_source(cast(Any, _Relation(relation, translate)), schema)
    return frame


class _Relation:
    """What DuckDB's Polars source uses of a relation."""

    def __init__(self, relation: duckdb.DuckDBPyRelation, translate: Translate) -> None:
        self._relation = relation
        self._translate = translate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._relation, name)

    def project(self, *columns: Any) -> Self:
        return self._with("project", *columns)

    def limit(self, *rows: int) -> Self:
        return self._with("limit", *rows)

    def filter(self, *tests: Any) -> Self:
        return self._with("filter", *tests)

    def to_arrow_reader(self, *rows: int) -> _Reader:
        with _translating(self._translate):
            return _Reader(self._relation.to_arrow_reader(*rows), self._translate)

    def _with(self, verb: str, *arguments: Any) -> Self:
        with _translating(self._translate):
            return type(self)(getattr(self._relation, verb)(*arguments), self._translate)


class _Reader:
    """What that source uses of a reader of record batches."""

    def __init__(self, reader: pa.RecordBatchReader, translate: Translate) -> None:
        self._reader = reader
        self._translate = translate

    def read_next_batch(self) -> pa.RecordBatch:
        with _translating(self._translate):
            return self._reader.read_next_batch()

    def close(self) -> None:
        self._reader.close()


@contextmanager
def _translating(translate: Translate) -> Iterator[None]:
    try:
        yield
    except StopIteration:
        raise
    except (duckdb.Error, pa.ArrowException, OSError, ValueError) as error:
        raise translate(error) from error
