"""Partials by numpy: what DuckDB adds up for the same rows, or nothing."""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import lakestore as ls
from lakestore import grouping, rollup
from lakestore.document import Rollup

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Chance(random.Random):
    """Draws for one case; in some, few values are of the greatest there are."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.wild = self.choice([0.0, 0.0, 0.02])


def moment(chance: Chance) -> datetime:
    """Two hours and a half about 1970, and a few of far away."""
    far = chance.choice([0] * 8 + [-(10**9), 10**9])
    return EPOCH + timedelta(seconds=far + chance.randrange(-4_500, 4_500), microseconds=1)


def within(bits: int) -> Callable[[Chance], int]:
    """Small integers, and some near the ends of so many bits."""
    most = 2 ** (bits - 1) - 1
    return lambda chance: (
        chance.choice([most, -most - 1])
        if chance.random() < chance.wild
        else chance.randrange(-9, 9)
    )


def decimal(digits: int, scale: int) -> Callable[[Chance], Decimal]:
    def drawn(chance: Chance) -> Decimal:
        most = (
            chance.choice([10**digits - 1, 2**63, 2**64])
            if chance.random() < chance.wild
            else 10**4
        )
        number = min(most, 10**digits - 1) - (chance.randrange(9) if most == 10**4 else 0)
        return Decimal(f"{chance.choice([-1, 1]) * number}E-{scale}")  # all digits of it

    return drawn


def unsigned(chance: Chance) -> int:
    return 2**64 - 1 if chance.random() < chance.wild else chance.randrange(9)


def double(chance: Chance) -> float:
    return chance.choice([0.0, -0.0, 1.5, -2e300, float("inf"), float("nan"), chance.random()])


TYPES: dict[str, tuple[str, Callable[[Chance], Any]]] = {
    "text": ("VARCHAR", lambda chance: chance.choice(["", "a", "A", "ключ", "o'b", "a.b"])),
    "bytes": ("BLOB", lambda chance: chance.choice([b"", b"a", b"\0\xff"])),
    "yes": ("BOOLEAN", lambda chance: chance.random() < 0.5),
    "tiny": ("TINYINT", within(8)),
    "int": ("INTEGER", within(32)),
    "big": ("BIGINT", within(64)),
    "far": ("BIGINT", lambda chance: chance.choice([-1, 0, 2**18 - 1, 2**18, 2**40, -(2**40)])),
    "plain": ("BIGINT not null", lambda chance: chance.randrange(10**6)),
    "unsigned": ("UBIGINT", unsigned),
    "small": ("DECIMAL(4,1)", lambda chance: Decimal(chance.randrange(-9999, 9999)).scaleb(-1)),
    "money": ("DECIMAL(18,6)", decimal(18, 6)),
    "wide": ("DECIMAL(38,10)", decimal(38, 10)),
    "d.ay": ("DATE", lambda chance: date(1969, 12, chance.randrange(29, 32))),
    "at": ("TIMESTAMP", lambda chance: moment(chance).replace(tzinfo=None)),
    "zoned": ("TIMESTAMPTZ", moment),
    "clock": ("TIME", lambda chance: time(23, 59, chance.randrange(60), 999_999)),
    "x": ("DOUBLE", double),
}
NUMBERS = ["tiny", "int", "big", "far", "plain", "unsigned", "small", "money", "wide"]
KEYS = [name for name in TYPES if name != "x"]
MOST = [*NUMBERS, "d.ay", "at", "zoned", "clock"]
LEFT = {"text", "bytes", "yes", "x"}
"""Columns whose greatest value is left to DuckDB."""


def schema(time_type: str) -> ls.TableSchema:
    columns = {name: sql for name, (sql, _) in TYPES.items()}
    return ls.TableSchema.from_document(
        {"event_time": "t", "columns": {"t": f"{time_type} not null", **columns}}
    )


def draw_rollup(chance: Chance) -> Rollup:
    def some(names: Sequence[str], most: int) -> tuple[str, ...]:
        return tuple(chance.sample(names, chance.randrange(most + 1)))

    every = chance.choice(["1h", "5m", "1d", "1s"])
    return Rollup(
        name="r",
        every=every,
        by=some(KEYS, 5),
        sums=some(NUMBERS, 4),
        max=some(MOST if chance.random() < 0.9 else [*KEYS, "x"], 5),
        histograms=some([*NUMBERS, "x"], 2),
    )


def draw_rows(chance: Chance, table: ls.TableSchema, count: int) -> pa.Table:
    """Rows of a few keys each, in chunks that begin somewhere in a buffer."""
    nulls = {name: chance.choice([0.0, 0.2, 0.5, 1.0]) for name in TYPES} | {"plain": 0.0}
    count += 3
    values = {
        name: [None if chance.random() < nulls[name] else draw(chance) for _ in range(count)]
        for name, (_, draw) in TYPES.items()
    }
    naive = table.column("t").sql_type == "TIMESTAMP"
    values["t"] = [m.replace(tzinfo=None) if naive else m for m in map(moment, [chance] * count)]
    values |= {name: [f"{i}" for i in range(count)] for name in table.names if name not in values}
    rows = pa.table({name: pa.array(values[name], table.arrow.field(name).type)
                     for name in table.names})  # fmt: skip
    if chance.random() < 0.5:
        return rows.slice(3)
    cut = chance.randrange(3, count + 1)
    return pa.concat_tables([rows.slice(3, cut - 3), rows.slice(cut)])


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as opened:
        opened.execute("SET TimeZone = 'UTC'")
        yield opened


def binner(con: duckdb.DuckDBPyConnection) -> grouping.Binner:
    def run(query: str, rows: pa.Table) -> pa.Table:
        with con.cursor() as cursor:
            cursor.execute("SET TimeZone = 'UTC'")
            cursor.register("rows", rows)
            return cursor.sql(query).to_arrow_table()

    return grouping.Binner(run)


def differ(con: duckdb.DuckDBPyConnection, made: pa.Table, one: Rollup, table, rows) -> bool:
    """Whether DuckDB makes other rows."""
    con.register("rows", rows)
    query = rollup.partial_sql(one, table, "(FROM rows OFFSET 0)")
    known = con.sql(query).to_arrow_table().cast(made.schema)
    con.register("made", made)
    con.register("known", known)
    more = con.execute("SELECT count(*) FROM (FROM made EXCEPT ALL FROM known)").fetchall()
    return made.num_rows != known.num_rows or more != [(0,)]


def fits(one: Rollup, rows: pa.Table) -> bool:
    """Whether nothing is left to DuckDB: by the definition, with Python's integers."""
    times = [m if m.tzinfo else m.replace(tzinfo=UTC) for m in rows["t"].to_pylist()]
    buckets = [(m - EPOCH) // timedelta(microseconds=one.every_us) for m in times]
    keys = zip(buckets, *(rows[name].to_pylist() for name in one.by), strict=True)
    largest = max(Counter(keys).values(), default=0)
    for name in dict.fromkeys((*one.sums, *one.max)):
        values = [v for v in rows[name].to_pylist() if v is not None]
        if name in LEFT and values:
            return False
        if name in NUMBERS:
            scale = getattr(rows.schema.field(name).type, "scale", 0)
            whole = [int(Fraction(v) * 10**scale) for v in values]
            factor = largest if name in one.sums else 1
            if any(not -(2**63) <= v < 2**63 for v in whole):
                return False
            if name in one.sums and any(abs(v) * factor >= 2**63 for v in whole):
                return False
    return True


def one_case(con: duckdb.DuckDBPyConnection, folder: Path, seed: int, count: int) -> bool:
    """Draw rows and a rollup, and make its partial of them; whether it was made."""
    chance = Chance(seed)
    table = schema(chance.choice(["TIMESTAMP", "TIMESTAMPTZ"]))
    rows, one = draw_rows(chance, table, count), draw_rollup(chance)
    path = folder / "rows.parquet"
    pq.write_table(
        rows,
        path,
        row_group_size=max(1, count // 3),
        use_dictionary=chance.choice([True, False, ["text"]]),
        dictionary_pagesize_limit=chance.choice([1, 1 << 20]),
    )
    file = grouping.FileColumns(path, count, one.by)
    made = [
        grouping.partial(one, table, columns, binner(con))
        for columns in (grouping.Columns(rows), file)
    ]
    file.close()
    assert [partial is not None for partial in made] == [fits(one, rows) or not count] * 2
    for partial in made:
        if partial is not None:
            partial.validate(full=True)
            assert partial.schema.equals(rollup.arrow_schema(one, table))
            buckets = partial["bucket"].to_pylist()
            assert buckets == sorted(buckets)
            assert not differ(con, partial, one, table, rows)
    return made[0] is not None


@pytest.mark.parametrize("codes_max", [1 << 62, 1 << 14, 1])
def test_partials_are_those_of_duckdb(con, tmp_path, monkeypatch, figure, codes_max):
    """Also when keys have more values together than there are numbers."""
    monkeypatch.setattr(grouping, "_CODES_MAX", codes_max)
    made = []

    @settings(max_examples=70, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(seed=st.integers(0, 2**32), count=st.sampled_from([0, 1, 3, 60, 600]))
    def case(seed, count):
        made.append(one_case(con, tmp_path, seed, count))
        figure("test_grouping.py", "partials that DuckDB made too", 2 * made[-1])

    case()
    assert sum(made) > len(made) / 4
    assert not all(made)


def merged_case(con: duckdb.DuckDBPyConnection, seed: int, count: int) -> bool:
    """Draw rows, and merge the partials of pieces of them; whether it was done."""
    chance = Chance(seed)
    table = schema(chance.choice(["TIMESTAMP", "TIMESTAMPTZ"]))
    rows, one = draw_rows(chance, table, count), draw_rollup(chance)
    cuts = sorted(chance.randrange(count + 1) for _ in range(chance.randrange(4)))
    parts = []
    for start, end in itertools.pairwise([0, *cuts, count]):
        con.register("piece", rows.slice(start, end - start))
        made = con.sql(rollup.partial_sql(one, table, "(FROM piece OFFSET 0)")).to_arrow_table()
        parts.append(made.cast(rollup.arrow_schema(one, table)))
    partial = grouping.merged(one, table, pa.concat_tables(parts))
    if partial is None:
        return False
    partial.validate(full=True)
    buckets = partial["bucket"].to_pylist()
    assert buckets == sorted(buckets)
    assert not differ(con, partial, one, table, rows)
    return True


def test_partials_of_pieces_add_up_to_that_of_the_whole(con, figure):
    done = []

    @settings(max_examples=80, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(seed=st.integers(0, 2**32), count=st.sampled_from([0, 1, 3, 60, 600]))
    def case(seed, count):
        done.append(merged_case(con, seed, count))
        figure("test_grouping.py", "merged partials that DuckDB made too", done[-1])

    case()
    assert sum(done) > len(done) / 4
    assert not all(done)


@pytest.mark.parametrize(
    ("kind", "values", "total"),
    [
        ("BIGINT", [2**62, 2**62 - 1], None),  # together they fit; nobody knows before
        ("BIGINT", [2**62 - 1, 5], 2**62 + 4),
        ("BIGINT", [-(2**62), 1], None),
        ("BIGINT", [-(2**63), None], None),
        ("UBIGINT", [2**64 - 1, None], None),
        ("DECIMAL(38,0)", [Decimal(2**64 + 1), Decimal(1)], None),  # of which 64 bits say 1
        ("DECIMAL(38,0)", [Decimal(-(2**64)), None], None),
        ("DECIMAL(38,0)", [Decimal(2**61), Decimal(-1)], 2**61 - 1),
        ("DECIMAL(38,0)", [None, None], "null"),
    ],
)
def test_no_sum_wraps(con, kind, values, total):
    document = {"event_time": "t", "columns": {"t": "TIMESTAMP not null", "v": kind}}
    table = ls.TableSchema.from_document(document)
    one = Rollup(name="r", sums=("v",))
    rows = pa.table(
        [pa.array([EPOCH.replace(tzinfo=None)] * 2), pa.array(values, table.arrow.field("v").type)],
        names=["t", "v"],
    )
    made = grouping.partial(one, table, grouping.Columns(rows), binner(con))
    if total is None:
        assert made is None
    else:
        assert made["sum_v"].to_pylist() == [None if total == "null" else total]
        assert not differ(con, made, one, table, rows)


def test_more_rows_than_fit_are_left_to_duckdb(con, monkeypatch):
    table = schema("TIMESTAMP")
    rows = draw_rows(Chance(1), table, 10)
    one = Rollup(name="r", by=("text",))
    assert grouping.partial(one, table, grouping.Columns(rows), binner(con)) is not None
    monkeypatch.setattr(grouping, "ROWS_MAX", 9)
    assert grouping.partial(one, table, grouping.Columns(rows), binner(con)) is None


def test_a_lack_of_memory_leaves_it_to_others(con, monkeypatch):
    table = schema("TIMESTAMP")
    rows, one = draw_rows(Chance(1), table, 10), Rollup(name="r")
    made = grouping.partial(one, table, grouping.Columns(rows), binner(con))
    assert made is not None
    assert grouping.merged(one, table, made) is not None

    def fail(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(grouping, "_grouped", fail)
    assert grouping.partial(one, table, grouping.Columns(rows), binner(con)) is None
    assert grouping.merged(one, table, made) is None


def test_a_column_is_encoded_once_for_all_rollups(con, monkeypatch):
    table = schema("TIMESTAMP")
    columns = grouping.Columns(draw_rows(Chance(2), table, 100))
    seen: list[str] = []
    read = columns.read
    monkeypatch.setattr(columns, "read", lambda name: seen.append(name) or read(name))
    for every in ("1h", "1d"):
        one = Rollup(name="r", every=every, by=("text", "tiny"), sums=("plain",))
        assert grouping.partial(one, table, columns, binner(con)) is not None
    assert seen == ["t", "text", "tiny", "plain", "plain"]
