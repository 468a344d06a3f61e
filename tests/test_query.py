"""Queries: every tier, one instant, only the files that matter, and the caller's own data."""

import threading
from datetime import UTC, datetime, timedelta

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from conftest import SCHEMA, START, events
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lakestore as ls
from lakestore.query import plan


@pytest.fixture
def mixed(lake, table) -> ls.Lake:
    """Ten days of events: six sealed in two seals, two in segments, two buffered."""
    for start in (0, 72):
        table.append(events(start, start + 72))
        table.seal()
    table.append(events(144, 192))
    table.flush()
    table.append(events(192, 240))
    return lake


def test_parameters(mixed):
    query = "SELECT count(*) FROM events WHERE n > ? AND time < ?"
    assert mixed.sql(query, [100, START + timedelta(hours=120)]).fetchone() == (18,)
    named = "SELECT count(*) FROM events WHERE name = $who"
    assert mixed.sql(named, {"who": "name 1"}).fetchone() == (41,)
    hostile = "x' OR '1'='1"
    assert mixed.sql(named, {"who": hostile}).fetchone() == (0,)


def test_several_tables_in_one_statement(mixed):
    other = mixed.create_table("Other", SCHEMA)
    other.append(events(100, 110))
    rows = mixed.sql(
        'WITH o AS (SELECT id FROM "Other") SELECT count(*) FROM events e JOIN o ON o.id = e.id'
    )
    assert rows.fetchone() == (10,)


def test_the_callers_own_data(mixed):
    wanted_arrow = pa.table({"id": ["e000001", "e000239"], "w": [1, 2]})
    wanted_polars = pl.DataFrame(wanted_arrow)
    wanted_lazy = wanted_polars.lazy()
    wanted_pandas = pd.DataFrame({"id": ["e000001", "e000239"], "w": [1, 2]})
    wanted_relation = duckdb.sql("SELECT 'e000001' AS id, 1 AS w UNION SELECT 'e000239', 2")
    wanted_result = mixed.sql("SELECT id, 1 AS w FROM events WHERE id IN ('e000001', 'e000239')")
    for name in ("arrow", "polars", "lazy", "pandas", "relation", "result"):
        query = f"SELECT count(*), min(n) FROM events JOIN wanted_{name} USING (id)"
        assert mixed.sql(query).fetchone() == (2, 1), name
    assert all(len(w) == 2 for w in (wanted_arrow, wanted_polars, wanted_pandas, wanted_relation))
    assert wanted_lazy.collect().height == len(wanted_result) == 2


def test_the_librarys_own_variables_are_not_tables(mixed):
    with pytest.raises(ls.NotFoundError, match="The lake's tables: events"):
        mixed.sql("SELECT * FROM frames")


def test_a_lakes_table_comes_before_a_variable_of_its_name(mixed):
    events = pa.table({"id": ["other"]})
    assert mixed.sql("SELECT count(*) FROM events").fetchone() == (240,)
    assert len(events) == 1


def test_result_forms(mixed):
    result = mixed.sql("SELECT id, n FROM events WHERE n BETWEEN 1 AND 3 ORDER BY n")
    expected = [("e000001", 1), ("e000002", 2), ("e000003", 3)]

    assert result.fetchall() == list(result) == expected
    assert result.fetchone() == expected[0]
    assert (len(result), result.columns) == (3, ["id", "n"])
    assert result.to_arrow().column("n").to_pylist() == [1, 2, 3]
    assert result.to_polars().rows() == expected
    assert result.to_pandas()["n"].tolist() == [1, 2, 3]
    assert pa.table(result).equals(result.to_arrow())
    assert pl.DataFrame(result).height == 3
    assert duckdb.sql("SELECT sum(n) FROM result").fetchall() == [(6,)]
    assert "e000002" in repr(result)
    assert "<td>e000002</td>" in result._repr_html_()


def test_result_html_is_escaped(mixed):
    assert "<script>" not in mixed.sql("SELECT '<script>' AS \"<b>\"")._repr_html_()


def test_an_empty_table_answers_with_its_types(lake, table):
    result = lake.sql("SELECT *, place.zip FROM events").to_arrow()
    assert result.num_rows == 0
    assert result.schema.field("time").type == pa.timestamp("us", "UTC")
    assert result.schema.field("place").type == pa.struct(
        [("city", pa.string()), ("zip", pa.int32())]
    )
    assert table.scan().collect().height == 0
    assert table.to_arrow().schema.names == list(SCHEMA.names)


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        ("SELEC 1", ls.InvalidInputError, "syntax error"),
        ("SELECT nope FROM events", ls.InvalidInputError, "nope"),
        ("SELECT * FROM nope", ls.NotFoundError, "The lake's tables: events"),
        ("SELECT 1; SELECT 2", ls.InvalidInputError, "one statement, this has 2"),
        ("", ls.InvalidInputError, "one statement, this has 0"),
        ("DROP VIEW events", ls.InvalidInputError, "only reads, and this is DROP"),
        ("COPY events TO '/tmp/x'", ls.InvalidInputError, "only reads, and this is COPY"),
        ("ATTACH 'x'", ls.InvalidInputError, "only reads, and this is ATTACH"),
        ("INSERT INTO events VALUES (1)", ls.InvalidInputError, "only reads"),
        ("SET threads = 1", ls.InvalidInputError, "only reads, and this is SET"),
        ("SELECT ? FROM events", ls.InvalidInputError, "parameter"),
        ("SELECT 'x'::INTEGER FROM events", ls.InvalidInputError, "Could not convert"),
    ],
)
def test_wrong_sql(mixed, query, error, message):
    with pytest.raises(error, match=message):
        mixed.sql(query)


def test_scan_is_a_lazy_frame_over_every_tier(mixed):
    scan = mixed["events"].scan()
    assert isinstance(scan, pl.LazyFrame)
    found = scan.filter(pl.col("n") >= 140, pl.col("ok")).select("id", "n").head(500).collect()
    expected = [i for i in range(140, 240) if i % 11 and i % 2 == 0]
    assert sorted(found["n"].to_list()) == expected
    mixed["events"].append(events(240, 250))
    assert scan.collect().height == 240
    assert mixed["events"].scan().collect().height == 250


def test_to_arrow(mixed):
    table = mixed["events"]
    day = datetime(2025, 1, 3, tzinfo=UTC)
    rows = table.to_arrow(["n", "id"], start=day, end=day + timedelta(days=1))
    assert sorted(rows["id"].to_pylist()) == [f"e{i:06d}" for i in range(48, 72)]
    assert rows.schema.names == ["n", "id"]
    naive = table.to_arrow(["id"], start=datetime(2025, 1, 10, 23))
    assert naive["id"].to_pylist() == ["e000239"]

    def count(**where):
        return table.to_arrow(["id"], where=where).num_rows

    assert count(name="name 1") == 41
    assert count(name=None) == 35
    assert count(name=["name 1", None]) == 41 + 35
    assert count(name=[]) == 0
    assert count(n=(">=", 230)) == 9
    assert count(n=("!=", 230), ok=True) == 108
    assert count(name=("like", "name%")) == 205
    with pytest.raises(ls.NotFoundError, match="no column 'nme'"):
        table.to_arrow(where={"nme": 1})
    with pytest.raises(ls.NotFoundError, match="no column 'nme'"):
        table.to_arrow(["nme"])
    with pytest.raises(ls.InvalidInputError, match="operator"):
        table.to_arrow(where={"n": ("; DROP", 1)})


def test_connect_is_an_open_door_that_shares_nothing(mixed):
    con = mixed.connect()
    con.execute("CREATE TABLE mine AS SELECT id, n FROM events WHERE n > 200")
    assert con.execute("SELECT count(*) FROM mine").fetchall() == [(36,)]
    with pytest.raises(ls.NotFoundError):
        mixed.sql("SELECT * FROM mine")


def kept(lake: ls.Lake, condition: str, params: list | None = None) -> int:
    cold = [
        t
        for t in lake.explain(f"SELECT * FROM events WHERE {condition}", params).tiers
        if t.tier == "cold"
    ]
    return cold[0].files_kept


@pytest.mark.parametrize(
    ("condition", "files"),
    [
        ("time >= '2025-01-06'", 1),
        ("time < '2025-01-02'", 1),
        ("time BETWEEN '2025-01-02 12:00' AND '2025-01-03 12:00'", 2),
        ("date_trunc('day', time) = '2025-01-04'", 1),
        ("time > now() - INTERVAL 1 HOUR", 0),
        ("id = 'e000050'", 1),
        ("id IN ('e000050', 'e000051', 'e000100')", 2),
        ("id LIKE 'e00000%'", 1),
        ("n = 100", 1),
        ("n < 0", 0),
        ("n > 100 AND n < 110", 1),
        ("n IS NULL", 6),
        ("n IS NOT NULL", 6),
        ("cost IS NOT NULL", 0),
        ("cost = 3", 0),
        ("cost IS NULL", 6),
        ("x > 1000", 6),  # floats are not pruned: NaN
        ("place.zip = 3", 6),
        ("n = 10 OR name = 'x'", 6),
        ("random() < 2", 6),
        ("true", 6),
        ("time >= '2025-01-06' ORDER BY time DESC LIMIT 3", 1),
        ("n > 100 AND n < 110 ORDER BY n LIMIT 3", 1),
        ("true ORDER BY time DESC LIMIT 3", 6),
    ],
)
def test_only_files_that_can_match_are_read(mixed, condition, files):
    assert kept(mixed, condition) == files


def test_parameters_prune(mixed):
    assert kept(mixed, "time >= ?", [datetime(2025, 1, 6, tzinfo=UTC)]) == 1
    assert kept(mixed, "id = ?", ["e000050"]) == 1


def test_each_scan_of_a_table_keeps_its_files(mixed):
    query = """
        WITH a AS (SELECT * FROM events WHERE time < '2025-01-02')
        SELECT * FROM a JOIN events b ON a.n + 100 = b.n AND b.time >= '2025-01-05'
        """
    cold = [t for t in mixed.explain(query).tiers if t.tier == "cold"]
    assert cold[0].files_kept == 3
    assert len(mixed.sql(query)) == 19


def test_explain_reads_well(mixed):
    text = str(mixed.explain("SELECT * FROM events WHERE time >= '2025-01-06'"))
    assert "1 of 6" in text
    assert "scan of events" in text
    assert mixed.explain("SELECT 1").tiers == ()


@pytest.mark.parametrize(
    "text",
    ["", "(", "optional: Dynamic Filter (n)", "n = n", "abs(n) = 3", "n = (SELECT 1)",
     "NOT (n = 3)", "n <> 3", "'x'", "n IN (SELECT 1)", "upper(name) = 'X'", "a.b.c = 1"],
)  # fmt: skip
def test_what_is_not_understood_prunes_nothing(text):
    assert plan.file_test(text, ["n", "name"]) is None


PLANNING_TRAPS = [
    # A scan that DuckDB folds away by statistics must not leave another scan's filters to decide.
    "SELECT (SELECT count(*) FROM events), "
    "(SELECT count(*) FROM events WHERE time >= '2025-01-05')",
    "SELECT 'all', count(*) FROM events UNION ALL "
    "SELECT 'late', count(*) FROM events WHERE time >= '2025-01-05' ORDER BY 1",
    "WITH total AS (SELECT count(*) c FROM events) "
    "SELECT count(*), any_value(c) FROM events, total WHERE n = 5",
    "SELECT (SELECT count(*) FROM events WHERE tags IS NOT NULL), "
    "(SELECT count(*) FROM events WHERE n = 5)",
    "SELECT (SELECT count(*) FROM events WHERE x > 1.5e308), "
    "(SELECT count(*) FROM events WHERE n = 5)",
    "SELECT count(*) FROM events a SEMI JOIN events b ON a.n = b.n + 1 AND b.place.zip > 100",
    "SELECT count(*) FROM events WHERE time <= now() AND time > now() - INTERVAL 100 YEAR",
    "SELECT count(*) FROM events WHERE n > (SELECT avg(n) FROM events WHERE time < '2025-01-02')",
    "SELECT count(*) FROM events WHERE id IN (SELECT id FROM events WHERE n < 20)",
    "SELECT a.n, b.n FROM events a LEFT JOIN events b ON a.n = b.n * 2 AND b.n < 10 "
    "WHERE a.n < 30 ORDER BY ALL",
    "SELECT id FROM events ORDER BY time DESC LIMIT 3",
    "SELECT count(*) FROM events WHERE 1 = 0 UNION ALL SELECT count(*) FROM events WHERE n = 150",
    "SELECT replace(max(name), '\"', '') FROM events WHERE name NOT LIKE '%\"%'",
    "SELECT count(*) FROM events -- it's a comment",
    "SELECT count(*) FROM events WHERE EXISTS (SELECT 1 FROM events e WHERE e.n = events.n + 99)",
    "FROM (SELECT *, row_number() OVER (ORDER BY n) r FROM events) SELECT count(*) WHERE n = 5",
]


@pytest.mark.parametrize("query", PLANNING_TRAPS)
def test_planning_never_changes_an_answer(mixed, query):
    with duckdb.connect() as plain:
        plain.execute("SET GLOBAL TimeZone = 'UTC'")
        plain.register("given_rows", mixed["events"].to_arrow())
        plain.execute("CREATE TABLE events AS FROM given_rows")
        assert mixed.sql(query).fetchall() == plain.execute(query).fetchall()


def test_literals_that_look_like_filters(lake, table):
    """EXPLAIN splits its filters at newlines, those inside literals too."""
    texts = ["a\nn = 500\nb", "optional: x", "x' OR n = 500 --", "a\n'b'\nn = 500"]
    for index, text in enumerate(texts):
        table.append({"id": f"{index}", "time": START, "n": 1, "name": text})
    table.seal()
    for text in texts:
        assert len(lake.sql("SELECT * FROM events WHERE name = ?", [text])) == 1
    assert (
        len(lake.sql("SELECT * FROM events WHERE name IN ($a, $b)", {"a": texts[0], "b": texts[3]}))
        == 2
    )


def test_a_column_whose_name_looks_like_a_filter(lake):
    schema = ls.TableSchema.from_toml(
        "event_time = 't'\n[columns]\nt = 'TIMESTAMP'\nn = 'INTEGER'\n'x=9 OR n' = 'INTEGER'"
    )
    table = lake.create_table("odd", schema)
    table.append([{"t": "2025-01-01", "n": 1, "x=9 OR n": 5}])
    table.seal()
    assert len(lake.sql('SELECT * FROM odd WHERE "x=9 OR n" = 5')) == 1


@pytest.mark.parametrize("state", ["buffered", "flushed", "duckdb", "sealed"])
def test_nan_is_the_greatest_number_in_every_tier(open_lake, state):
    lake = open_lake(settings={"segment_duckdb_rows": 1 if state == "duckdb" else 10})
    table = lake.create_table("events", SCHEMA)
    for index, x in enumerate((1.0, -1.0, 2.0, float("nan"), None)):
        table.append({"id": f"{index}", "time": START, "x": x})
    if state != "buffered":
        (table.seal if state == "sealed" else table.flush)()
    counts = lake.sql(
        "SELECT count(*) FILTER (x > 5), count(*) FILTER (isnan(x)), max(x)::VARCHAR FROM events"
    )
    assert counts.fetchone() == (1, 1, "nan")
    assert len(lake.sql("SELECT * FROM events WHERE x > 5")) == 1
    assert len(lake.sql("SELECT * FROM events WHERE x = 'nan'")) == 1
    assert len(lake.sql("SELECT a.id FROM events a JOIN events b USING (id) WHERE b.x > 1")) == 2


def test_a_reader_that_shares_an_aliass_name_is_not_used_up(mixed):
    reader = pa.table({"id": ["e000001"]}).to_reader()
    assert mixed.sql("SELECT count(*) AS reader FROM events").fetchone() == (240,)
    assert mixed.sql("SELECT count(*) FROM events JOIN reader USING (id)").fetchone() == (1,)
    assert reader.read_all().num_rows == 0


# A differential test: whatever is asked, pruning and tiers change nothing.

NUMBERS = st.one_of(st.none(), st.integers(-3, 3), st.sampled_from([-(2**63), 2**63 - 1]))
FLOATS = st.one_of(
    st.none(), st.sampled_from([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.5])
)
TEXTS = st.one_of(st.none(), st.sampled_from(["", "a", "ab", "b'", 'c"', "é", "\U0010ffff", "Z"]))
COSTS = st.one_of(st.none(), st.decimals(-5, 5, places=2))
MOMENTS = st.integers(0, 6 * 86_400).map(lambda s: START + timedelta(seconds=s, microseconds=s))
ROWS = st.lists(
    st.tuples(MOMENTS, NUMBERS, FLOATS, TEXTS, COSTS, st.one_of(st.none(), st.booleans())),
    min_size=1,
    max_size=25,
)


def literal(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"'{value}'::DOUBLE"
    if isinstance(value, datetime):
        return f"'{value.isoformat()}'::TIMESTAMPTZ"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return f"({value})"


@st.composite
def comparisons(draw) -> str:
    column, values = draw(
        st.sampled_from(
            [("n", NUMBERS), ("x", FLOATS), ("name", TEXTS), ("cost", COSTS), ("time", MOMENTS),
             ("ok", st.booleans())]
        )
    )  # fmt: skip
    value = st.shared(values, key=column) if draw(st.booleans()) else values
    form = draw(st.integers(0, 6))
    if form == 0:
        return f"{column} IS {draw(st.sampled_from(['', 'NOT ']))}NULL"
    if form == 1:
        some = ", ".join(literal(v) for v in draw(st.lists(values, min_size=1, max_size=3)))
        return f"{column} {draw(st.sampled_from(['', 'NOT ']))}IN ({some})"
    if form == 2:
        return f"{column} BETWEEN {literal(draw(values))} AND {literal(draw(value))}"
    if form == 3 and column == "name":
        pattern = draw(st.sampled_from(["a%", "%b", "_", "%", "é%", "a_"]))
        return f"name LIKE '{pattern}'"
    if form == 3 and column == "time":
        return f"date_trunc('day', time) = {literal(draw(values))}::DATE"
    operator = draw(st.sampled_from(["=", "<>", "<", "<=", ">", ">=", "IS NOT DISTINCT FROM"]))
    return f"{column} {operator} {literal(draw(value))}"


CONDITIONS = st.recursive(
    comparisons(),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["AND", "OR"]), inner).map(
            lambda t: f"({t[0]}) {t[1]} ({t[2]})"
        ),
        inner.map(lambda c: f"NOT ({c})"),
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def differential(tmp_path_factory):
    """A lake that is filled anew for each example, in one folder."""
    lake = ls.open(tmp_path_factory.mktemp("differential") / "lake", upkeep="manual")
    yield lake
    lake.close()


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=ROWS,
    conditions=st.lists(CONDITIONS, min_size=1, max_size=6),
    cuts=st.tuples(st.integers(0, 25), st.integers(0, 25), st.integers(0, 25)),
)
def test_answers_are_those_of_one_plain_table(differential, rows, conditions, cuts):
    lake = differential
    table = lake.create_table("events", SCHEMA)
    names = ("time", "n", "x", "name", "cost", "ok")
    data = [{"id": f"{i}", **dict(zip(names, row, strict=True))} for i, row in enumerate(rows)]
    first, second, third = sorted(cuts)
    for part, move in (
        (data[:first], table.seal),
        (data[first:second], table.seal),
        (data[second:third], table.flush),
        (data[third:], lambda: 0),
    ):
        table.append(part)
        move()
    with duckdb.connect() as plain:
        plain.execute("SET GLOBAL TimeZone = 'UTC'")
        plain.register("given_rows", table.to_arrow())
        plain.execute("CREATE TABLE events AS FROM given_rows")
        for condition in conditions:
            query = f"SELECT id FROM events WHERE {condition} ORDER BY id"
            assert lake.sql(query).fetchall() == plain.execute(query).fetchall(), condition
    lake.drop_table("events")


# One instant.


def test_flush_and_vacuum_between_pinning_and_reading_the_catalog(open_lake, monkeypatch):
    """The journal's rows and the segment's are the same rows, though the journal is forgotten."""
    lake = open_lake()
    table = lake.create_table("events", SCHEMA)
    table.append(events(0, 100))
    for reader in (open_lake(mode="r"), lake):
        table.append(events(100, 150) if reader is lake else events(0, 0))
        catalog = reader._site.catalog
        real, calls = catalog.states, []

        def states(ids, real=real, calls=calls):
            calls.append(ids)
            if len(calls) == 2:
                lake.flush()
                lake.maintain()
            return real(ids)

        with monkeypatch.context() as patch:
            patch.setattr(catalog, "states", states)
            rows, distinct = reader.sql(
                "SELECT count(*), count(DISTINCT id) FROM events"
            ).fetchone() or (0, 0)
        assert rows == distinct == (150 if reader is lake else 100)
        assert len(calls) > 2


def test_counts_are_exact_while_rows_arrive_flush_and_seal(open_lake):
    lake = open_lake()
    table = lake.create_table("events", SCHEMA)
    done = threading.Event()
    acknowledged = [0]
    wrong: list[object] = []

    def read() -> None:
        last = 0
        while not done.is_set():
            before = acknowledged[0]
            row = lake.sql("SELECT count(*), count(DISTINCT id), max(id) FROM events").fetchone()
            assert row is not None
            if not (row[0] == row[1] >= max(before, last)) or (
                row[0] and row[2] != f"e{row[0] - 1:06d}"
            ):
                wrong.append((before, last, row))
                return
            last = row[0]

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for start in range(0, 1200, 10):
            table.append(events(start, start + 10, step=timedelta(minutes=1)))
            acknowledged[0] = start + 10
            if start % 50 == 0:
                table.flush()
            if start % 200 == 0:
                table.seal()
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert lake.sql("SELECT count(*) FROM events").fetchone() == (1200,)


def test_two_tables_are_seen_as_of_one_instant(open_lake):
    """Rows go to `a` first: no query may find a row in `b` that is missing in `a`."""
    lake = open_lake()
    a, b = (lake.create_table(name, SCHEMA) for name in "ab")
    done = threading.Event()
    wrong: list[object] = []

    def read() -> None:
        while not done.is_set():
            row = lake.sql("SELECT (SELECT count(*) FROM a), (SELECT count(*) FROM b)").fetchone()
            assert row is not None
            if not 0 <= row[0] - row[1] <= 5:
                wrong.append(row)
                return

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for start in range(0, 500, 5):
            a.append(events(start, start + 5))
            b.append(events(start, start + 5))
            if start % 20 == 0:
                b.flush()
            if start % 30 == 0:
                a.seal()
    finally:
        done.set()
        thread.join()
    assert wrong == []


def test_rows_that_come_while_a_query_pins_are_in_both_tables_or_neither(open_lake, monkeypatch):
    """`b` is written before `a`; only `a` is flushed between the two looks at the catalog."""
    lake = open_lake()
    a, b = (lake.create_table(name, SCHEMA) for name in "ab")
    catalog = lake._site.catalog
    real, calls = catalog.states, []

    def states(ids):
        calls.append(ids)
        if len(calls) == 2:
            b.append(events(0, 1))
            a.append(events(0, 1))
            a.flush()
        return real(ids)

    monkeypatch.setattr(catalog, "states", states)
    row = lake.sql("SELECT (SELECT count(*) FROM a), (SELECT count(*) FROM b)").fetchone()
    assert row in ((0, 0), (0, 1), (1, 1))


def test_a_vacuum_between_a_flushs_commit_and_its_end(lake, table, monkeypatch):
    """While the buffer holds rows that a segment has too, the catalog must go on saying so."""
    from lakestore.buffer import Buffer

    table.append(events(0, 10))
    retire, seen = Buffer.retire, []

    def look(self, ids):
        table.vacuum(dry_run=False)
        seen.append(lake.sql("SELECT count(*) FROM events").fetchone())
        retire(self, ids)

    monkeypatch.setattr(Buffer, "retire", look)
    table.flush()
    assert seen == [(10,)]
    assert len(table.vacuum(dry_run=False).journals) == 1
