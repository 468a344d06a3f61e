"""Real input: LLM requests and flights give the answers that DuckDB gives over their CSV."""

from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

import lakestore as ls

STATES = ["buffered", "flushed", "sealed", "mixed", "reopened"]

REQUESTS = """
event_time = "event_time"
[columns]
event_time = "TIMESTAMPTZ not null"
context_tokens = "INTEGER not null"
generated_tokens = "INTEGER not null"
"""


@pytest.fixture(params=STATES)
def load(request, open_lake) -> Callable[[str, object, pa.Table], ls.Lake]:
    """Appends a table in six batches, and brings it to a state."""

    def load_it(name: str, schema: object, rows: pa.Table) -> ls.Lake:
        lake = open_lake()
        table = lake.create_table(name, schema)
        step = -(-rows.num_rows // 6)
        accepted = 0
        for index in range(6):
            accepted += table.append(rows.slice(index * step, step)).rows
            if request.param == "flushed" or (request.param == "mixed" and index in (2, 3)):
                table.flush()
            if request.param == "sealed" or (request.param == "mixed" and index == 1):
                table.seal()
        assert accepted == rows.num_rows
        if request.param == "reopened":
            lake.close()
            lake = open_lake()
        return lake

    return load_it


def compare(lake: ls.Lake, plain: duckdb.DuckDBPyConnection, queries: list[str]) -> None:
    for query in queries:
        mine, theirs = lake.sql(query).fetchall(), plain.execute(query).fetchall()
        assert mine == theirs, query
        assert mine, query


def test_llm_requests(load, azure_csv: Path):
    with duckdb.connect() as plain:
        plain.execute("SET GLOBAL TimeZone = 'UTC'")
        plain.execute(
            "CREATE TABLE requests AS SELECT TIMESTAMP::TIMESTAMPTZ AS event_time, "
            "ContextTokens::INTEGER AS context_tokens, "
            f"GeneratedTokens::INTEGER AS generated_tokens FROM '{azure_csv}'"
        )
        rows = plain.sql("FROM requests").to_arrow_table()
        assert rows.num_rows == 19_366
        lake = load("requests", ls.TableSchema.from_toml(REQUESTS), rows)
        columns = "event_time, context_tokens, generated_tokens"
        compare(
            lake,
            plain,
            [
                "SELECT count(*), sum(context_tokens), sum(generated_tokens), min(event_time), "
                "max(event_time) FROM requests",
                "SELECT date_trunc('minute', event_time) AS m, count(*), avg(generated_tokens) "
                "FROM requests GROUP BY m ORDER BY m",
                f"SELECT {columns} FROM requests ORDER BY {columns}",
                f"SELECT {columns} FROM requests WHERE event_time "
                f"BETWEEN '2023-11-16 18:30' AND '2023-11-16 18:31' ORDER BY {columns}",
                "SELECT context_tokens // 500 AS b, count(*) FROM requests "
                "WHERE generated_tokens > 100 GROUP BY b ORDER BY b",
            ],
        )


def test_flights(load, flights_csv: Path):
    with duckdb.connect() as plain:
        plain.execute("SET GLOBAL TimeZone = 'UTC'")
        plain.execute(
            "CREATE TABLE flights AS SELECT *, "
            "concat_ws('-', year, month, day, carrier, flight, origin) AS event_id, "
            "make_timestamp(year, month, day, sched_dep_time // 100, sched_dep_time % 100, 0) "
            f"AS event_time FROM read_csv('{flights_csv}', nullstr = 'NA')"
        )
        raw = plain.sql("SELECT * EXCLUDE (event_id, event_time) FROM flights").to_arrow_table()
        assert raw.num_rows == 336_776
        lake = load("flights", "flights", raw)
        names = ", ".join(ls.TableSchema.shipped("flights").names)
        compare(
            lake,
            plain,
            [
                "SELECT count(*), count(DISTINCT event_id), sum(distance), sum(dep_delay), "
                "count(dep_time), min(event_time), max(event_time) FROM flights",
                "SELECT carrier, count(*), avg(arr_delay) FROM flights GROUP BY 1 ORDER BY 1",
                "SELECT month, origin, count(*), max(air_time) FROM flights GROUP BY ALL "
                "ORDER BY ALL",
                f"SELECT {names} FROM flights WHERE event_time >= '2013-07-04' "
                "AND event_time < '2013-07-05' ORDER BY event_id",
                f"SELECT {names} FROM flights WHERE tailnum = 'N14228' ORDER BY event_id",
                f"SELECT {names} FROM flights WHERE dep_time IS NULL AND dest = 'ORD' "
                "ORDER BY event_id",
                f"SELECT {names} FROM flights WHERE event_id = '2013-1-1-UA-1545-EWR'",
            ],
        )
        again = lake["flights"].append(raw.slice(0, 1000))
        lake.flush()
        assert lake.sql("SELECT count(*) FROM flights").fetchone() == (336_776,)
        assert again.rows + again.duplicates == 1000
