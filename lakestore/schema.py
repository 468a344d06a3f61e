"""What a table's events look like: a document in TOML, and the value it becomes.

Types are DuckDB SQL types and DuckDB itself resolves them, so there is no parser here. A type is
accepted when it has one meaning in every tier: in Arrow, in a DuckDB file and in Parquet.
UUID and JSON are kept as text, which is what every other engine reads; SQL sees VARCHAR.
"""

import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from pydantic import ValidationError

from lakestore import columns as column_types
from lakestore.columns import Column
from lakestore.document import Dedup, TableDocument, check_rollups, to_toml
from lakestore.errors import InvalidInputError, NotFoundError, SchemaError
from lakestore.kept import SAME_AS, Policy, in_place_of, reference, sha256_name, why_no_payload

FILE_ROW = "file_row_number"
"""What DuckDB calls the number of a row in its file, for those who ask for it."""
MADE_ID = "event_id"
"""Name of the id column that is added when a table has no natural id."""

_FORMAT = 2
_TIME_TYPES = (pa.timestamp("us", "UTC"), pa.timestamp("us"))


@dataclass(frozen=True)
class TableSchema:
    """A table's columns and their roles, resolved: every type known, every role checked."""

    document: TableDocument
    columns: tuple[Column, ...]
    made_id: bool
    event_id: str
    event_time: str
    sort: tuple[str, ...]
    dedup: Dedup
    text: str = field(repr=False)
    has_references: bool = False
    """Whether its rows refer to payload files, in the column `payload_ref`."""

    @classmethod
    def from_toml(cls, text: str, source: str = "schema document") -> Self:
        """The schema that a TOML document declares.

        Raises:
            SchemaError: not TOML, an unknown key, a type DuckDB does not know, a role that
                names no column.
        """
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise SchemaError(f"{source}: not TOML: {error}") from error
        return cls.from_document(data, text, source)

    @classmethod
    def from_document(
        cls, data: Mapping[str, Any], text: str | None = None, source: str = "schema document"
    ) -> Self:
        """The schema that a parsed document declares; raises as `from_toml`.

        One that was not written down, and says no format, is of the newest.
        """
        try:
            made = {} if text is not None else {"format": _FORMAT}
            document = TableDocument.model_validate({**made, **data})
        except ValidationError as error:
            raise SchemaError(f"{source}: {_explain(error)}") from error
        made_id = document.event_id is None
        declared = dict(document.columns)
        if made_id:
            if MADE_ID in declared:
                raise SchemaError(
                    f"{source}: a column {MADE_ID!r} exists but has no role: "
                    f'set event_id = "{MADE_ID}", or rename it so that ids can be made'
                )
            declared = {MADE_ID: "VARCHAR not null", **declared}
        columns = column_types.resolve(declared, source)
        schema = cls(
            document=document,
            columns=columns,
            made_id=made_id,
            event_id=document.event_id or MADE_ID,
            event_time=document.event_time,
            sort=document.sort or (document.event_time, document.event_id or MADE_ID),
            dedup="none" if made_id else document.dedup,
            text=text if text is not None else to_toml(document),
        )
        _check_roles(schema, source)
        return schema._with_required_roles()

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """The schema in a TOML file; raises `NotFoundError`, or as `from_toml`."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise NotFoundError(f"no schema document at {str(path)!r}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise SchemaError(f"{str(path)!r} cannot be read as text: {error}") from error
        return cls.from_toml(text, str(path))

    @classmethod
    def shipped(cls, name: str) -> Self:
        """A schema that comes with lakestore, such as `llm_usage`; raises `NotFoundError`."""
        for folder in _SHIPPED:
            if (folder / f"{name}.toml").is_file():
                return cls.from_file(folder / f"{name}.toml")
        known = sorted({path.stem for folder in _SHIPPED for path in folder.glob("*.toml")})
        raise NotFoundError(
            f"no schema named {name!r}; shipped are {', '.join(known)}; a file ends in .toml"
        )

    @classmethod
    def from_arrow(
        cls,
        schema: pa.Schema,
        *,
        event_time: str,
        event_id: str | None = None,
        **roles: Any,
    ) -> Self:
        """A schema for the columns of an Arrow schema.

        Strings lose their encoding (dictionary, view, large), times become microseconds, and
        zones become UTC: what an append of the same data can be cast to.

        Args:
            schema: names and types of the columns.
            event_time: the column with the event time, a timestamp.
            event_id: the column with the id; without it, ids are made.
            roles: any other key of a schema document, such as `sort` or `dedup`.
        """
        column_types.check_unique(schema.names, "the Arrow schema")
        if event_id is not None:
            roles["event_id"] = event_id
        declared = column_types.declare(schema)
        return cls.from_document({"event_time": event_time, **roles, "columns": declared})

    def _with_required_roles(self) -> Self:
        required = (self.event_id, self.event_time)
        columns = tuple(
            replace(column, nullable=column.nullable and column.name not in required)
            for column in self.columns
        )
        return replace(self, columns=columns)

    @cached_property
    def arrow(self) -> pa.Schema:
        """The Arrow schema of every tier: names, types, SQL types as metadata.

        Every field is nullable, as those of callers' frames are: what is required is checked at
        append, and equal schemas spare each batch a rewrap.
        """
        return pa.schema(
            pa.field(c.name, c.arrow_type, metadata={"sql_type": c.sql_type}) for c in self.columns
        )

    @cached_property
    def required(self) -> tuple[str, ...]:
        """Columns that hold no null."""
        return tuple(c.name for c in self.columns if not c.nullable)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Column names, in order."""
        return tuple(c.name for c in self.columns)

    def column(self, name: str) -> Column:
        """The column of that name; raises `NotFoundError`."""
        for column in self.columns:
            if column.name == name:
                return column
        raise NotFoundError(f"no column {name!r}; the table has {', '.join(self.names)}")

    @cached_property
    def payload(self) -> Mapping[str, Policy]:
        """Columns that leave the event row, and what is kept of each; none in format 1."""
        return self.document.payload if self.document.format > 1 else {}

    @cached_property
    def buffered(self) -> Self:
        """What the journal and the buffer hold: of payload columns, only those kept whole.

        What is dropped of the others is dropped before it could reach a disk.
        """
        partly = {name: policy for name, policy in self.payload.items() if policy != "full"}
        kept = [column for name, policy in partly.items() for column in in_place_of(name, policy)]
        return self._without(partly, kept)

    @cached_property
    def stored(self) -> Self:
        """What segments and cold files hold, and queries see: payloads by reference and size."""
        held = self.buffered
        if not held.payload:
            return held
        kept = [column for name in held.payload for column in in_place_of(name, "full")]
        return replace(held._without(held.payload, [reference(), *kept]), has_references=True)

    @cached_property
    def payload_file(self) -> Self:
        """What a payload file holds: id and time of the event, payloads and their sha256."""
        whole = [self.column(name) for name in self.buffered.payload]
        columns = (
            self.column(self.event_id),
            self.column(self.event_time),
            *(replace(column, nullable=True) for column in whole),
            *(Column(sha256_name(c.name), "VARCHAR", pa.string(), True) for c in whole),
            Column(SAME_AS, "BIGINT", pa.int64(), True),
        )
        document = self.document.model_copy(update={"payload": {}, "bloom": ()})
        return replace(self, document=document, columns=columns, sort=(), dedup="none")

    @cached_property
    def payload_view(self) -> Self:
        """What the view of a table's payloads shows: id and time of the event, and payloads."""
        file = self.payload_file
        return replace(file, columns=file.columns[: 2 + len(self.buffered.payload)])

    def _without(self, names: Collection[str], added: Sequence[Column]) -> Self:
        """The schema with other columns in the place of payload columns."""
        if not names:
            return self
        columns = (*(c for c in self.columns if c.name not in names), *added)
        payload = {name: policy for name, policy in self.payload.items() if name not in names}
        document = self.document.model_copy(update={"payload": payload})
        return replace(self, document=document, columns=columns)

    @cached_property
    def bloom(self) -> tuple[str, ...]:
        """Columns that get bloom filters in cold files: the id, and those declared."""
        return tuple(dict.fromkeys((self.event_id, *self.document.bloom)))


_SHIPPED = (
    Path(__file__).parent / "schemas",  # in an installed package
    Path(__file__).parent.parent / "schemas",  # in a checkout
)


def _explain(error: ValidationError) -> str:
    """The first problem of a document, with its key."""
    problems = error.errors()
    # A misspelt key is both unknown and missing: the former says more.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = ", ".join(TableDocument.model_fields)
        return f"unknown key {key!r}; known keys are {known}"
    if problem["type"] == "missing":
        return f"key {key!r} is missing"
    return f"key {key!r}: {problem['msg']} (got {problem['input']!r})"


def _check_roles(schema: TableSchema, source: str) -> None:
    """Every role names a column that can play it."""
    document, names = schema.document, schema.names
    roles: dict[str, Sequence[str]] = {
        "event_time": (schema.event_time,),
        "event_id": (schema.event_id,),
        "sort": schema.sort,
        "bloom": document.bloom,
        "facets": document.facets,
        "derived": tuple(document.derived),
        "payload": tuple(document.payload),
        "renamed": tuple(document.renamed),
    }
    for rollup in document.rollups:
        roles[f"rollups.{rollup.name}"] = rollup.sources
    for role, columns in roles.items():
        for name in columns:
            if name not in names:
                raise SchemaError(
                    f"{source}: {role} names {name!r}, which is no column; "
                    f"columns are {', '.join(names)}"
                )
    check_rollups(document.rollups, {c.name: c for c in schema.columns}, source)
    if schema.column(schema.event_time).arrow_type not in _TIME_TYPES:
        raise SchemaError(
            f"{source}: event_time {schema.event_time!r} is "
            f"{schema.column(schema.event_time).sql_type}; it must be TIMESTAMPTZ or TIMESTAMP"
        )
    for name in (schema.event_id, *schema.sort, *document.bloom):
        if pa.types.is_nested(schema.column(name).arrow_type):
            raise SchemaError(f"{source}: nested column {name!r} cannot be an id or sort column")
    if pa.types.is_floating(schema.column(schema.event_id).arrow_type):
        raise SchemaError(f"{source}: event_id {schema.event_id!r} is a float; NaN is no id")
    if document.retention is not None:
        _check_interval(document.retention, f"{source}: retention")
    _check_payload(schema, roles, source)
    if document.renamed:
        names_of_old = [*names, *document.renamed.values()]
        column_types.check_unique(names_of_old, f"{source}: with the names under [renamed]")


def _check_payload(schema: TableSchema, roles: Mapping[str, Sequence[str]], source: str) -> None:
    """Payload columns are text or bytes, play no other role, and leave names free."""
    for name, policy in schema.payload.items():
        if why := why_no_payload(schema.column(name), policy):
            raise SchemaError(f"{source}: payload column {name!r}: {why}")
        for role, columns in roles.items():
            if role not in ("payload", "derived", "renamed") and name in columns:
                raise SchemaError(f"{source}: {role} names {name!r}, which is a payload column")
    where = f"{source}: with the columns that payload columns become"
    if schema.payload:
        column_types.check_unique(schema.buffered.names, where)
    if schema.buffered.payload:
        column_types.check_unique(schema.stored.names, where)
        column_types.check_unique((*schema.payload_file.names, FILE_ROW), f"{where} in their files")


def _check_interval(text: str, where: str) -> None:
    if not column_types.is_positive_interval(text):
        raise SchemaError(f"{where}: {text!r} is not a positive interval such as '90 days'")


def declares(source: Any, roles: Mapping[str, Any]) -> bool:
    """Whether this has types of columns, and not the values of an event: as its time tells."""
    time = source.get(roles.get("event_time")) if isinstance(source, Mapping) else None
    return isinstance(time, str) and time.strip().upper().startswith("TIMESTAMP")


def load(
    source: "TableSchema | pa.Schema | Mapping[str, str] | str | Path", roles: Mapping[str, Any]
) -> TableSchema:
    """A schema from whatever `create_table` was given.

    A string names a shipped schema, or is the path of a document when it ends in `.toml`; a
    mapping has the types of columns.
    """
    if isinstance(source, TableSchema | str | Path) and roles:
        raise InvalidInputError(
            f"{', '.join(roles)}: a schema document already says its roles; edit it there"
        )
    if isinstance(source, TableSchema):
        return source
    if isinstance(source, Mapping):
        return TableSchema.from_document({**roles, "columns": dict(source)})
    if isinstance(source, pa.Schema):
        if "event_time" not in roles:
            raise SchemaError("event_time= must name the column that holds the event time")
        return TableSchema.from_arrow(source, **roles)
    if isinstance(source, Path) or source.endswith(".toml"):
        return TableSchema.from_file(source)
    return TableSchema.shipped(source)
