"""The few numbers that a user may tune: one frozen value, checked when it is made."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lakestore.errors import InvalidInputError

MIB = 1 << 20
GIB = 1 << 30


class Settings(BaseModel):
    """Numbers of one open lake: sizes in bytes, times in seconds.

    They change when work is done, never what an answer says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flush_rows: int = Field(131_072, ge=1, description="flush when so many rows are buffered")
    flush_bytes: int = Field(64 * MIB, ge=1, description="… or so many Arrow bytes")
    flush_age_s: float = Field(5.0, gt=0, description="… or the oldest row has waited so long")
    buffer_bytes: int = Field(
        128 * MIB, ge=1, description="above this much unflushed, append waits"
    )
    append_timeout_s: float = Field(30.0, ge=0, description="… so long, then raises")
    segments_max: int = Field(32, ge=2, description="merge neighbours above so many segments")
    segment_duckdb_rows: int = Field(
        20_000, ge=0, description="smaller segments stay Parquet only: a DuckDB file costs 94 KB"
    )
    seal_bytes: int = Field(128 * MIB, ge=1, description="seal when the hot tier holds this much")
    seal_age_s: float = Field(600.0, gt=0, description="… or its oldest segment is so old")
    commit_timeout_s: float = Field(
        60.0, ge=0, description="a seal is tried so long while others commit or the store fails"
    )
    cold_file_bytes: int = Field(256 * MIB, ge=1, description="target size of one cold file")
    cache_bytes: int = Field(
        4 * GIB, ge=0, description="copies of a store's files, kept on the local disk"
    )
    vacuum_grace_s: float = Field(
        900.0, ge=0, description="superseded files live so long, for shells that still read them"
    )
    cold_grace_s: float = Field(
        86_400.0,
        ge=0,
        description="cold files that were replaced or expired live so long: to go back to them",
    )
    memory_bytes: int = Field(
        1 * GIB,
        ge=64 * MIB,
        description="DuckDB's memory for the process's queries; then it spills",
    )

    @property
    def flush_bytes_now(self) -> int:
        """Bytes worth a flush: before appends have to wait for room, whatever the settings."""
        return min(self.flush_bytes, max(1, self.buffer_bytes // 2))

    @classmethod
    def of(cls, value: "Settings | dict[str, object] | None") -> Self:
        """Settings from what a caller passed: nothing, a mapping, or settings.

        Raises:
            InvalidInputError: an unknown name, or a number out of range.
        """
        if isinstance(value, cls):
            return value
        try:
            return cls.model_validate(value or {})
        except ValidationError as error:
            problem = error.errors()[0]
            name = ".".join(str(part) for part in problem["loc"])
            raise InvalidInputError(f"setting {name!r}: {problem['msg']}") from error
