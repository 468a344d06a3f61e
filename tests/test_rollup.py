"""Rollups: partials add up to what all rows add up to, whatever befalls them or the files."""

import math
import random
import shutil
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from conftest import FixedClock
from deltalake import write_deltalake
from support.commands import ok
from support.partials import relation
from support.soundness import assert_sound
from support.store import Store
from test_shell import attach, run

import lakestore as ls
from lakestore import failpoint, grouping, partialfile, partialfiles, partials, rollup
from lakestore.partialfiles import PartialFiles
from lakestore.query.pin import pin

HUGE = 2**62
DOCUMENT = """
event_id = "id"
event_time = "time"
[columns]
id = "VARCHAR not null"
time = "{time} not null"
who = "VARCHAR"
"od""d" = "INTEGER"
size = "BIGINT"
cost = "DECIMAL(24,12)"
ms = "INTEGER"
x = "DOUBLE"
[[rollups]]
name = "hourly"
every = "1h"
by = ["who", "od\\"d"]
sums = ["size", "cost"]
max = ["ms", "x"]
histograms = ["ms", "x"]
[[rollups]]
name = "daily"
every = "1 day"
sums = ["ms"]
""".replace('"od""d"', "'od\"d'")
GROUPS = "GROUP BY ALL"


def schema(time: str = "TIMESTAMPTZ") -> ls.TableSchema:
    return ls.TableSchema.from_toml(DOCUMENT.format(time=time))


def rows(chance: random.Random, count: int, first: int = 0) -> list[dict[str, Any]]:
    """Events over three days of two epochs: nulls, extremes, and a few groups that have most."""
    starts = [datetime(1969, 12, 31, 22, tzinfo=UTC), datetime(2026, 11, 22, tzinfo=UTC)]

    def maybe(value: Any) -> Any:
        return None if chance.random() < 0.1 else value

    return [
        {
            "id": f"e{first + i:06d}",
            "time": chance.choice(starts) + timedelta(seconds=chance.randrange(10 * 3600)),
            "who": maybe(f"w{int(chance.paretovariate(1)) % 7}"),
            'od"d': maybe(chance.randrange(3)),
            "size": maybe(chance.choice([HUGE, -HUGE, chance.randrange(-(10**6), 10**6)])),
            "cost": maybe(Decimal(chance.randrange(-(10**20), 10**20)).scaleb(-12)),
            "ms": maybe(chance.randrange(-50, 10_000)),
            "x": maybe(
                chance.choice([0.0, 1e-300, -3.5, math.inf, -math.inf, chance.lognormvariate(3, 2)])
            ),
        }
        for i in range(count)
    ]


def bin_of(x: float) -> int:
    """By the definition, apart from the SQL."""
    if x == 0 or math.isinf(x):
        return 100_000 * int(math.copysign(1, x)) if x else 0
    size = 40_000 + math.ceil(math.log(abs(x)) / math.log(rollup.GAMMA))
    return size if x > 0 else -size


def expected(events: list[dict[str, Any]], every: timedelta, by: list[str]) -> dict[Any, Any]:
    """What each group adds up to: plain Python over all rows."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    for event in events:
        bucket = epoch + (event["time"] - epoch) // every * every
        groups.setdefault((bucket, *(event[name] for name in by)), []).append(event)
    return {
        key: {
            "n": len(group),
            **{f"sum_{c}": _total(group, c) for c in ("size", "cost")},
            **{f"n_{c}": len(_filled(group, c)) for c in ("size", "cost")},
            **{f"max_{c}": max(_filled(group, c), default=None) for c in ("ms", "x")},
            **{f"hist_{c}": Counter(map(bin_of, _filled(group, c))) for c in ("ms", "x")},
        }
        for key, group in groups.items()
    }


def _filled(group: list[dict[str, Any]], column: str) -> list[Any]:
    return [event[column] for event in group if event[column] is not None]


def _total(group: list[dict[str, Any]], column: str) -> Any:
    values = _filled(group, column)
    return sum(values) if values else None


def query(lake: ls.Lake, table: ls.Table, select: str, name: str = "hourly") -> list[Any]:
    """Rows of a SELECT over `{}`, the partials of all that is published; none may be missing."""
    context = table._context
    one = rollup.find(context.schema, name)
    (pinned,) = pin(lake._site, [context])
    with context.partials.load(one, pinned.segments, pinned.cold) as loaded:
        assert loaded.missing == frozenset()
        with lake._site.engine.cursor() as cursor:
            return cursor.execute(select.format(relation(loaded))).fetchall()


def found(lake: ls.Lake, table: ls.Table) -> dict[Any, Any]:
    """The same as `expected`, from partials."""
    keys = ["bucket", "who", '"od""d"']
    names = ["n", "sum_size", "sum_cost", "n_size", "n_cost", "max_ms", "max_x"]
    sums = ", ".join(f"{'max' if n.startswith('max') else 'sum'}({n})" for n in names)
    answer = query(lake, table, f"SELECT {', '.join(keys)}, {sums} FROM {{}} {GROUPS}")
    groups = {
        (row[0].astimezone(UTC), *row[1:3]): dict(zip(names, row[3:], strict=True))
        | {"hist_ms": Counter(), "hist_x": Counter()}
        for row in answer
    }
    for column in ("ms", "x"):
        bins = rollup.bins_of_partials(column, "{}", keys)
        for bucket, who, odd, bin, n in query(lake, table, bins):
            groups[bucket.astimezone(UTC), who, odd][f"hist_{column}"][bin] = n
    return groups


def totals(lake: ls.Lake, table: ls.Table) -> tuple[Any, ...]:
    """Counts and sums of partials, which must be those of the rows."""
    sums = "SELECT sum(n), sum(sum_size), sum(n_size), sum(sum_cost), max(max_ms) FROM {}"
    (answer,) = query(lake, table, sums)
    scan = f"SELECT count(*), sum(size), count(size), sum(cost), max(ms) FROM {table.name}"
    assert answer == lake.sql(scan).fetchone()
    return tuple(answer)


@pytest.fixture
def chance() -> random.Random:
    return random.Random(20261127)


@pytest.fixture
def usage(lake: ls.Lake, chance: random.Random) -> ls.Table:
    """A table with cold files and segments."""
    table = lake.create_table("usage", schema())
    for part in range(4):
        table.append(rows(chance, 150, part * 150))
        table.flush()
        if part == 1:
            table.seal()
    return table


def partial_paths(root: Path, name: str = "hourly") -> list[Path]:
    return sorted(path for path in root.rglob(f"*.{name}-*.parquet") if path.is_file())


@pytest.mark.parametrize("cold", ["parquet", "delta"])
@pytest.mark.parametrize("time", ["TIMESTAMPTZ", "TIMESTAMP"])
def test_partials_add_up_to_what_all_rows_add_up_to(open_lake, chance, time, cold):
    lake = open_lake(settings={"segments_max": 4})
    table = lake.create_table("usage", schema(time), cold=cold)
    events: list[dict[str, Any]] = []
    for part in range(9):  # the fifth flush merges, and so does a later one
        batch = rows(chance, 120, part * 120)
        events += batch
        table.append(pa.Table.from_pylist(batch, schema=table.schema.arrow) if part else batch)
        table.flush()
        if part == 6:
            assert any(s.first < s.last for s in table._context.state().hot)
            table.seal()
        if part in (0, 5, 6, 8):
            wanted = expected(events, timedelta(hours=1), ["who", 'od"d'])
            assert found(lake, table) == wanted
    assert any(group["n"] > 9 for group in wanted.values())
    assert any(bucket < datetime(1970, 1, 1, tzinfo=UTC) for bucket, *_ in wanted)
    days = query(lake, table, f"SELECT bucket, sum(n), sum(sum_ms) FROM {{}} {GROUPS}", "daily")
    by_day: dict[date, list[int]] = {}
    for event in events:
        sums = by_day.setdefault(event["time"].date(), [0, 0])
        sums[0], sums[1] = sums[0] + 1, sums[1] + (event["ms"] or 0)
    assert {b.astimezone(UTC).date(): [n, ms] for b, n, ms in days} == by_day
    assert_sound(lake)


def test_no_file_is_read_twice_and_every_maker_made_its_partial(lake, usage, monkeypatch):
    """What flush, merge and seal left needs no row to be read."""
    monkeypatch.setattr(PartialFiles, "make", lambda *_: pytest.fail("rows were read"))
    assert totals(lake, usage)[0] == 600
    monkeypatch.setattr(PartialFiles, "read", lambda *_: pytest.fail("a file was read again"))
    assert totals(lake, usage)[0] == 600


@pytest.mark.parametrize("quantiles", [[0.5, 0.95, 0.99], [0.0, 0.25, 1.0]])
def test_percentiles_are_within_the_error_that_is_stated(lake, usage, quantiles):
    at = {f"q{i}": q for i, q in enumerate(quantiles)}
    for column in ("ms", "x"):
        bins = rollup.bins_of_partials(column, "{}", ["who"])
        select = rollup.quantiles_sql(f"({bins})", at, ["who"])
        exact = f"SELECT who, quantile_disc({column}, $q) FROM usage GROUP BY ALL"
        true = dict(lake.sql(exact, {"q": quantiles}).fetchall())
        for who, *values in query(lake, usage, select):
            for value, exact_value in zip(values, true[who], strict=True):
                error = rollup.RELATIVE_ERROR * 1.000001 if math.isfinite(exact_value) else 0
                assert math.isclose(value, exact_value, rel_tol=error), (column, who)


def test_percentiles_of_rows_and_of_partials_are_the_same_numbers(lake, usage):
    at = {"p50": 0.5, "p99": 0.99}
    partial = rollup.quantiles_sql(f"({rollup.bins_of_partials('x', '{}')})", at)
    rows = lake.sql("SELECT x FROM usage").to_arrow()
    with lake._site.engine.cursor() as cursor:
        cursor.register("rows", rows)
        scanned = rollup.quantiles_sql(f"({rollup.bins_of_rows('x', 'rows')})", at)
        assert cursor.execute(scanned).fetchall() == query(lake, usage, partial)


EXTREMES = [
    0.0, -0.0, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, -1.7976931348623157e308,
    1.0, 1.02, -1.0, 1.0201, 123456789.123, math.inf, -math.inf, math.nan, None,
]  # fmt: skip


def test_every_double_has_a_bin_in_order_and_a_value_near_it():
    chance = random.Random(7)
    doubles = [chance.choice([-1, 1]) * 10 ** chance.uniform(-307, 308) for _ in range(2_000)]
    table = pa.table({"x": pa.array(EXTREMES + doubles, pa.float64())})
    with duckdb.connect() as con:
        con.register("t", table)
        bin = rollup.bin_sql("x")
        answer = con.execute(
            f"SELECT x, bin, {rollup.bin_value_sql('bin')} FROM (SELECT x, {bin} AS bin FROM t) "
            "ORDER BY x NULLS FIRST"
        ).fetchall()
    assert answer[0] == (None, None, None)
    bins = [bin for _, bin, _ in answer[1:]]
    assert bins == sorted(bins)
    for x, bin, value in answer[1:]:
        if math.isnan(x):
            assert math.isnan(value)
        elif abs(x) >= 2.2250738585072014e-308:  # below, doubles have fewer digits than 1 %
            assert math.isclose(x, value, rel_tol=rollup.RELATIVE_ERROR * 1.000001), (x, bin)
    assert rollup.RELATIVE_ERROR < 0.01


def test_counting_bins_is_what_duckdb_counts(chance):
    table = schema()
    one = table.document.rollups[0].model_copy(update={"sums": ("ms",), "max": ("ms",)})
    batch = pa.Table.from_pylist(rows(chance, 3_000), schema=table.arrow)
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        con.register("t", batch)
        binner = grouping.Binner(lambda query, rows: con.sql(query).to_arrow_table())
        counted, whole = (
            made.sort_by([(name, "ascending") for name in ("bucket", "who", 'od"d')])
            for made in (
                grouping.partial(one, table, grouping.Columns(batch), binner),
                con.sql(rollup.partial_sql(one, table, "t")).to_arrow_table(),
            )
        )
    for name in ("hist_ms", "hist_x"):
        assert counted.column(name).to_pylist() == whole.column(name).to_pylist()
        assert counted.column(name).null_count == whole.column(name).null_count > 0
    nothing = np.zeros(0, np.int64)
    assert rollup.counted(nothing, nothing.astype(np.int32), 2).to_pylist() == [None, None]


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.unlink()
    path.write_bytes(data)


def replace_by_another(path: Path) -> None:
    """The partial of another file, which is whole, under this one's name."""
    other = next(p for p in partial_paths(path.parents[4]) if p.stat().st_size and p != path)
    path.unlink()
    shutil.copy(other, path)


HARMS: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "damaged": damage,
    "of another file": replace_by_another,
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_partial_that_is_not_its_own_is_made_again(open_lake, usage, root, harm):
    paths = [p for p in partial_paths(root) if "_rollups" in p.parts][:1]
    paths += [p for p in partial_paths(root) if "_rollups" not in p.parts][-1:]
    for path in paths:
        HARMS[harm](path)
    lake = open_lake()
    table = lake["usage"]
    if harm != "missing":
        assert {(p.kind, p.severity) for p in lake.verify().problems} == {("rollup", "cache")}
    assert totals(lake, table)[0] == 600
    lake.repair(dry_run=False)
    assert_sound(lake, allowed=())
    made = partial_paths(root)
    assert totals(open_lake(mode="r"), table)[0] == 600
    again = open_lake()
    assert totals(again, again["usage"])[0] == 600
    assert set(partial_paths(root)) >= set(made)


def test_no_flipped_bit_of_a_partial_is_read(usage, root):
    context = usage._context
    one, segment = context.schema.document.rollups[0], context.state().hot[0]
    files = context.partials.files
    path = root / "_site/rollups/usage" / files.name(one, segment).flat
    good, chance = path.read_bytes(), random.Random(3)
    for place in [0, len(good) - 1, *(chance.randrange(len(good)) for _ in range(120))]:
        data = bytearray(good)
        data[place] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        assert files.read(one, segment) is None, place
    path.write_bytes(good)
    assert files.read(one, segment) is not None


def test_a_wrong_value_in_a_whole_partial_is_found_by_verify(lake, usage, root):
    context = usage._context
    one, segment = context.schema.document.rollups[0], context.state().hot[0]
    files = context.partials.files
    partial = files.read(one, segment)
    column = partial.schema.get_field_index("n_size")
    wrong = partial.set_column(column, "n_size", partial["n"])
    path = root / "_site/rollups/usage" / files.name(one, segment).flat
    partialfile.write(path, wrong, files.footer(one, segment))
    (problem,) = lake.verify().problems
    assert problem.file == path
    assert "add up to" in problem.what


def test_another_definition_of_the_same_name_is_another_file(usage, root):
    one, table = usage.schema.document.rollups[0], usage.schema
    others = [
        one.model_copy(update=change)
        for change in ({"every": "5m"}, {"by": ("who",)}, {"max": ("size",)}, {"histograms": ()})
    ]
    told = [rollup.fingerprint(each, table) for each in (one, *others)]
    assert len(set(told)) == len(told)
    assert all(f".hourly-{told[0]}." in path.name for path in partial_paths(root))


@pytest.mark.parametrize("point", ["rollup.1", "rollup.2", "rollup.3"])
def test_a_partial_that_cannot_be_made_fails_neither_flush_nor_seal(lake, usage, chance, point):
    with failpoint.at(point, "ENOSPC", hit=None) as trap:
        usage.append(rows(chance, 50, 600))
        usage.flush()
        assert trap.seen == 2
        usage.seal()
    assert trap.seen > 2
    assert totals(lake, usage)[0] == 650
    assert_sound(lake, allowed=())


def test_a_segment_of_no_rows_has_a_partial_of_none(lake, usage, chance, monkeypatch):
    usage.seal()
    known = rows(random.Random(20261127), 20)  # all are sealed
    usage.append(known, producer="late", seq=1)
    usage.flush()
    assert [segment.info.rows for segment in usage._context.state().hot] == [0]
    monkeypatch.setattr(PartialFiles, "make", lambda *_: pytest.fail("rows were read"))
    assert totals(lake, usage)[0] == 600
    assert_sound(lake, allowed=())


@pytest.mark.sqlite
def test_a_rebuild_leaves_partials_as_they_are(open_lake, lake, usage, root, monkeypatch):
    lake.close()
    before = partial_paths(root)
    (root / "_site/catalog.sqlite").unlink()
    ok("rebuild", root)
    lake = open_lake()
    monkeypatch.setattr(PartialFiles, "make", lambda *_: pytest.fail("rows were read"))
    assert totals(lake, lake["usage"])[0] == 600
    assert partial_paths(root) == before
    assert_sound(lake, allowed=())


def test_a_sum_of_too_many_digits_is_left_to_the_scan(lake):
    document = """
    event_time = "time"
    event_id = "id"
    [columns]
    id = "INTEGER not null"
    time = "TIMESTAMP not null"
    size = "DECIMAL(38,0)"
    [[rollups]]
    name = "hourly"
    sums = ["size"]
    """
    table = lake.create_table("big", ls.TableSchema.from_toml(document))
    most = Decimal(10**38 - 1)
    moment = datetime(2026, 11, 22)
    table.append([{"id": 0, "time": moment, "size": most}])
    table.flush()
    assert query(lake, table, "SELECT sum(sum_size) FROM {}") == [(most,)]  # 38 digits are right
    table.append([{"id": i, "time": moment, "size": most} for i in (1, 2)])
    table.flush()
    table.append([{"id": 3, "time": moment, "size": most}, {"id": 4, "time": moment, "size": 1}])
    table.flush()
    context = table._context
    one, segments = context.schema.document.rollups[0], context.state().hot
    with context.partials.load(one, segments, ()) as loaded:
        assert loaded.missing == {segment.name for segment in segments[1:]}
    assert lake.sql("SELECT count(*) FROM big").fetchone() == (5,)


def required() -> ls.TableSchema:
    """Two columns of the same values, of which one is declared NOT NULL."""
    text = DOCUMENT.format(time="TIMESTAMP").replace('ms = "INTEGER"', 'ms = "INTEGER not null"')
    return ls.TableSchema.from_toml(
        text.replace('sums = ["size", "cost"]', 'sums = ["size", "ms"]')
    )


def test_values_of_a_column_without_nulls_are_counted_by_the_rows(lake, chance):
    table = lake.create_table("usage", required())
    one = rollup.find(table.schema, "hourly")
    kept = rollup.arrow_schema(one, table.schema).names
    assert "n_size" in kept
    assert "n_ms" not in kept
    batch = [row | {"ms": chance.randrange(100), "time": row["time"].replace(tzinfo=None)}
             for row in rows(chance, 400)]  # fmt: skip
    table.append(batch[:200])
    table.seal()
    table.append(batch[200:])
    table.flush()
    asked = ["count(ms)", "avg(ms)", "sum(ms)", "max(ms)", "count(size)", "p50(ms)"]
    by_rows = table.totals([f"{measure} if id >= ''" for measure in asked])  # ids are no keys
    whole = table.totals(asked)
    assert list(whole.measures.values()) == list(by_rows.measures.values())
    tested = [f"{measure} if who = 'w1'" for measure in asked[:2]]
    answer = lake.sql("SELECT count(ms), avg(ms) FROM usage WHERE who = 'w1'").fetchall()
    assert [tuple(table.totals(tested).measures.values())] == answer
    assert_sound(lake, allowed=())


def test_nulls_of_another_engine_where_there_should_be_none_are_left_to_the_scan(
    lake, chance, root
):
    table = lake.create_table("usage", required(), cold="delta")
    batch = [row | {"ms": i, "time": row["time"].replace(tzinfo=None)}
             for i, row in enumerate(rows(chance, 60))]  # fmt: skip
    table.append(batch[:50])
    table.seal()
    theirs = pa.Table.from_pylist(batch[50:], schema=table.schema.arrow)
    theirs = theirs.set_column(theirs.schema.get_field_index("ms"), "ms", pa.nulls(10, pa.int32()))
    days = pa.array([row["time"].date() for row in batch[50:]])
    theirs = theirs.append_column("day", days)
    write_deltalake(str(root / "tables/usage/data"), theirs, mode="append")
    counts = table.totals(["count", "count(ms)", "avg(ms)"]).measures
    assert list(counts.values()) == [60, 50, 24.5]


def test_who_was_told_of_files_sees_these_whatever_is_loaded_meanwhile(lake, usage, chance):
    context = usage._context
    one, state = context.schema.document.rollups[0], context.state()
    count = "SELECT sum(n) FROM {}"
    with (
        lake._site.engine.cursor() as cursor,
        context.partials.load(one, state.hot, state.cold) as before,
    ):
        usage.append(rows(chance, 50, 600))
        usage.seal()
        assert totals(lake, usage)[0] == 650
        assert cursor.execute(count.format(relation(before))).fetchone() == (600,)
        some = context.state().cold[:1]
        with context.partials.load(one, (), some) as few:
            assert cursor.execute(count.format(relation(few))).fetchone() == (some[0].info.rows,)
            assert cursor.execute(count.format(relation(before))).fetchone() == (600,)
        with context.partials.load(one, (), ()) as none:
            assert cursor.execute(count.format(relation(none))).fetchone() == (None,)


def resident_rows(lake: ls.Lake) -> int:
    """Rows in memory of all partials."""
    with lake._site.engine.cursor() as cursor:
        names = cursor.execute(
            "SELECT table_name FROM duckdb_tables() WHERE database_name = 'lakestore_rollups'"
        ).fetchall()
        counts = [f"SELECT count(*) FROM lakestore_rollups.main.{name}" for (name,) in names]
        return sum(cursor.execute(count).fetchall()[0][0] for count in counts)


def test_what_is_not_asked_for_any_more_leaves_the_memory(lake, usage, monkeypatch):
    monkeypatch.setattr(partials, "_STALE_ROWS", 0)
    context = usage._context
    one, state = context.schema.document.rollups[0], context.state()
    before = resident_rows(lake)
    with context.partials.load(one, state.hot, state.cold) as held:
        for _ in range(partials._STALE_LOADS + 1):
            with context.partials.load(one, (), state.cold[:1]):
                pass
        with lake._site.engine.cursor() as cursor:  # what is held is there still
            assert cursor.execute(f"SELECT sum(n) FROM {relation(held)}").fetchone() == (600,)
    with context.partials.load(one, state.hot[:1], state.cold[:1]):
        pass
    kept = [context.partials.files.read(one, file) for file in (state.hot[0], state.cold[0])]
    assert resident_rows(lake) - before <= sum(partial.num_rows for partial in kept) * 3
    assert totals(lake, usage)[0] == 600
    lake.drop_table("usage")
    assert resident_rows(lake) == before


def test_more_than_there_is_memory_for_is_missing(lake, usage):
    context = usage._context
    one, state = context.schema.document.rollups[0], context.state()
    sizes = [context.partials.files.read(one, file).nbytes for file in state.cold]
    context.partials._bytes_max = sizes[0] + sizes[1]
    with context.partials.load(one, (), state.cold) as loaded:
        assert loaded.missing == {file.name for file in state.cold[2:]}
    with context.partials.load(one, (), state.cold[2:3]) as loaded:  # room is made
        assert loaded.missing == frozenset()


def test_an_instance_that_is_lost_is_loaded_again(lake, usage):
    assert totals(lake, usage)[0] == 600
    engine = lake._site.engine
    with engine._lock:
        engine._queries._con = engine._start()
    assert totals(lake, usage)[0] == 600


def test_a_sum_beyond_18_digits_makes_no_difference(lake, usage, chance):
    assert totals(lake, usage)[0] == 600
    key = ("hourly", False)
    batch = rows(chance, 60, 600)
    for event in batch:
        event |= {"who": "w0", 'od"d': 0, "size": HUGE, "time": datetime(2026, 11, 22, tzinfo=UTC)}
    usage.append(batch)
    usage.flush()
    assert totals(lake, usage)[0] == 660
    assert usage._context.partials._residents[key].wide


VIEW = "SELECT sum(n), sum(sum_size), max(max_ms), min(bucket), count(DISTINCT who) FROM {}"
SCAN = """
    SELECT count(*), sum(size), max(ms), min(date_trunc('hour', time)), count(DISTINCT who)
    FROM usage
    """


@pytest.mark.parametrize("cold", ["parquet", "delta"])
def test_a_shell_reads_the_rollups_of_exactly_what_it_sees(lake, chance, root, duckdb_cli, cold):
    lake.create_table("usage_rollup_daily", schema())  # a table goes before a view
    table = lake.create_table("usage", schema(), cold=cold)

    def check(count: int) -> None:
        shown = run(duckdb_cli, root, VIEW.format("usage_rollup_hourly"))
        assert shown == run(duckdb_cli, root, SCAN)
        assert shown[0][0] == (str(count) if count else "")
        assert_sound(lake, allowed=())

    for part in range(3):
        table.append(rows(chance, 100, part * 100))
        table.flush()
        check((part + 1) * 100)
        if part == 1:
            table.seal()
            check(200)
    for path in partial_paths(root)[::2]:
        path.unlink()
    table.append(rows(chance, 50, 300))
    table.flush()
    check(350)
    with attach(root) as con:
        names = con.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
    assert sorted(name for (name,) in names) == [
        "_lake", "usage", "usage_rollup_daily", "usage_rollup_daily_rollup_daily",
        "usage_rollup_daily_rollup_hourly", "usage_rollup_hourly",
    ]  # fmt: skip


def test_a_view_of_payloads_goes_before_one_of_a_rollup(open_lake, root, duckdb_cli):
    head = 'format = 2\nevent_time = "time"\n[columns]\ntime = "TIMESTAMPTZ not null"\n'
    with open_lake() as lake:
        rolled = ls.TableSchema.from_toml(f'{head}[[rollups]]\nname = "b_payload"\n')
        heavy = ls.TableSchema.from_toml(f'{head}body = "VARCHAR"\n[payload]\nbody = "full"\n')
        moment = datetime(2026, 11, 22, tzinfo=UTC)
        lake.create_table("a", rolled).append([{"time": moment}])
        lake.create_table("a_rollup_b", heavy).append([{"time": moment, "body": "long"}])
        for name in ("a", "a_rollup_b"):
            lake[name].flush()
        assert run(duckdb_cli, root, "SELECT body FROM a_rollup_b_payload") == [["long"]]
        assert run(duckdb_cli, root, "SELECT count(*) FROM a") == [["1"]]


def test_vacuum_and_drop_take_partials_with_their_files(open_lake, chance, root, clock):
    lake = open_lake(settings={"vacuum_grace_s": 10})
    table = lake.create_table("usage", schema())
    table.append(rows(chance, 100))
    table.flush()
    (segment,) = partial_paths(root)
    table.seal()
    assert segment.exists()
    clock.move(11)
    table.vacuum(dry_run=False)
    assert not segment.exists()
    assert partial_paths(root)
    assert_sound(lake, allowed=())
    totals(lake, table)
    lake.drop_table("usage")
    clock.move(11)
    lake.maintain()
    assert partial_paths(root) == []
    assert_sound(lake, allowed=())


def test_partials_of_nothing_are_leftovers(open_lake, usage, root):
    stray = next(p for p in partial_paths(root) if "_rollups" in p.parts)
    kept = next(p for p in partial_paths(root) if "_rollups" not in p.parts)
    shutil.copy(stray, stray.with_name(stray.name.replace("-0000-", "-0077-")))
    shutil.copy(kept, kept.with_name(f"000099-000099-{'a' * 12}.hourly-00000000.parquet"))
    lake = open_lake()
    report = lake.verify()
    assert report.ok
    assert [p.kind for p in report.problems] == ["orphan", "orphan"]
    lake.repair(dry_run=False)
    assert_sound(lake, allowed=())


@pytest.mark.parametrize("cold", ["parquet", "delta"])
def test_hosts_of_one_store_use_each_others_partials(
    store: Store, prefix: str, tmp_path: Path, clock: FixedClock, chance, monkeypatch, cold
):
    def opened(host: str) -> ls.Lake:
        return ls.open(
            prefix, local=tmp_path / host, storage_options=store.options, clock=clock,
            upkeep="manual", settings={"memory_bytes": 1 << 28},
        )  # fmt: skip

    with opened("one") as lake:
        table = lake.create_table("usage", schema(), cold=cold)
        table.append(rows(chance, 200))
        table.seal()
        table.append(rows(chance, 50, 200))
        table.flush()
        assert totals(lake, table)[0] == 250
        assert_sound(lake, allowed=())
        sealed = sum(file.info.rows for file in table._context.state().cold)
    if cold == "parquet":  # its catalog is one host's
        return
    monkeypatch.setattr(PartialFiles, "make", lambda *_: pytest.fail("rows were read"))
    with opened("two") as lake:
        assert totals(lake, lake["usage"])[0] == sealed
    monkeypatch.undo()
    for key in list(lake._site.storage.list("tables/usage/_rollups/")):
        lake._site.storage.delete(key)
    with opened("three") as lake:
        assert totals(lake, lake["usage"])[0] == sealed
        assert partial_paths(tmp_path / "three")


WRONG = {
    'sums = ["x"]': "no exact sum",
    'sums = ["who"]': "no exact sum",
    'by = ["x"]': "cannot be grouped",
    'by = ["tags"]': "cannot be grouped",
    'max = ["tags"]': "no greatest value",
    'histograms = ["who"]': "no number",
    'every = "7h"': "does not divide a day",
    'every = "1 month"': "does not divide a day",
    'every = "soon"': "does not divide a day",
    'by = ["bucket"]': "have one name",
    'by = ["N"]': "have one name",
    'by = ["file"]': "have one name",
    'by = ["sum_size"]\nsums = ["size"]': "have one name",
    'by = ["who", "who"]': "have one name",
    'sums = ["nope"]': "no column",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_rollups_that_could_not_be_exact_are_refused(wrong):
    head = DOCUMENT.format(time="TIMESTAMP").split("[[rollups]]")[0]
    names = ("bucket", "N", "file", "sum_size")
    more = 'tags = "VARCHAR[]"\n' + "".join(f'{name} = "INTEGER"\n' for name in names)
    document = f'{head}{more}[[rollups]]\nname = "r"\n{wrong}\n'
    with pytest.raises(ls.SchemaError, match=WRONG[wrong]):
        ls.TableSchema.from_toml(document)
    twice = '[[rollups]]\nname = "r"\n'
    with pytest.raises(ls.SchemaError, match="one name"):
        ls.TableSchema.from_toml(head + more + twice + twice)


def test_no_statement_reaches_the_partials_in_memory(lake, usage):
    totals(lake, usage)
    for resident in usage._context.partials._residents.values():
        with pytest.raises(ls.NotFoundError, match="lakestore's own"):
            lake.sql(f"FROM {resident.name}")
    assert "lakestore_rollups" not in str(lake.sql("SHOW TABLES").fetchall())


def test_forgetting_a_file_leaves_those_of_others(tmp_path):
    names = ["000001-000001-aaaaaaaaaaaa.hourly-00000000.parquet",
             "000001-000001-bbbbbbbbbbbb.hourly-00000000.parquet"]  # fmt: skip
    for name in names:
        (tmp_path / name).touch()
    partialfiles.forget(tmp_path, ["000001-000001-aaaaaaaaaaaa.parquet"])
    assert [path.name for path in tmp_path.iterdir()] == names[1:]
