"""The shape of the code: who imports whom, and which names are promised."""

import ast
from pathlib import Path

import lakestore as ls

PACKAGE = Path(ls.__file__).parent

LEVELS: list[list[str]] = [
    # A module imports only from levels below its own, or from its left in the same level.
    [
        "failpoint",
        "errors",
        "clock",
        "settings",
        "quoting",
        "nesting",
        "instances",
        "columns",
        "kept",
        "document",
        "schema",
        "evolution",
        "lineage",
        "rollup",
        "grouping",
        "layout",
        "snapshot",
        "replacement",
        "past",
        "marks",
        "exits",
    ],
    [
        "storage",
        "storage.local",
        "storage.s3",
        "storage.probe",
        "locks",
        "spill",
        "httpfs",
        "engine",
        "idhash",
        "newids",
        "casts",
        "naming",
        "mappings",
        "rowjson",
        "derive",
        "policy",
        "coerce",
        "distinct",
        "datafile",
        "files.source",
        "files.mapping",
        "files.rejects",
        "files.arrow",
        "files.csv",
        "files.ndjson",
        "files",
        "files.infer",
    ],
    [
        "frames",
        "journal",
        "buffer",
        "tail",
        "lakefile",
        "sitefile",
        "writers",
        "hot",
        "fileids",
        "filecache",
        "partialfile",
        "partialfiles",
        "resident",
        "partials",
        "payload",
    ],
    [
        "delta",
        "delta.types",
        "delta.statistics",
        "delta.actions",
        "delta.checkpoint",
        "delta.log",
        "delta.past",
    ],
    [
        "catalog.strict",
        "catalog.records",
        "catalog.tables",
        "catalog.rows",
        "catalog.migrations",
        "catalog.garbage",
        "catalog.holdings",
        "catalog.coldlist",
        "catalog.waiting",
        "catalog.past",
        "catalog.own",
        "catalog.commit",
        "catalog.frozen",
        "catalog.integrity",
        "catalog.database",
        "catalog.opening",
        "catalog.sqlite",
        "catalog.postgres",
        "catalog.restoring",
        "catalog",
    ],
    [
        "siting",
        "cold",
        "cold.keeper",
        "cold.entries",
        "cold.past",
        "cold.parquet",
        "cold.logwriter",
        "cold.delta",
        "opensite",
        "context",
        "versions",
    ],
    [
        "append",
        "deadletters",
        "recover",
        "duplicates",
        "flush",
        "watermark",
        "sites",
        "coldfiles",
        "seal",
        "compact",
        "coldmeta",
        "horizon",
        "prune",
        "undo",
        "thinning",
        "purge",
    ],
    ["retain", "maintenance", "adopt", "payloadview", "shell", "evolve", "status"],
    [
        "query",
        "query.failures",
        "query.pin",
        "query.payloads",
        "query.parameters",
        "query.plan",
        "query.mount",
        "query.reader",
        "query.result",
        "query.reads",
        "query.scan",
        "query.run",
        "query.attach",
        "query.frames",
    ],
    [
        "events",
        "events.filters",
        "events.buckets",
        "events.measures",
        "events.statement",
        "events.rolled",
        "events.aggregate",
        "events.answers",
        "events.questions",
        "events.pages",
        "events.lookup",
        "events.metrics",
        "events.counters",
    ],
    [
        "verify",
        "verify.report",
        "verify.objects",
        "verify.datafiles",
        "verify.documents",
        "verify.payloads",
        "verify.duplicates",
        "verify.tiers",
        "verify.journals",
        "verify.caches",
        "verify.partials",
        "verify.logs",
        "verify.leftovers",
        "verify.run",
        "repair",
        "tiling",
        "rebuild",
        "rebuild.sources",
        "rebuild.logs",
        "rebuild.files",
        "rebuild.documents",
        "rebuild.repeats",
        "rebuild.seals",
        "rebuild.tables",
        "rebuild.found",
        "rebuild.run",
    ],
    [
        "load",
        "load.fresh",
        "load.chunks",
        "load.streams",
        "load.files",
        "load.sources",
        "load.ordering",
        "load.commit",
        "load.run",
        "export",
    ],
    ["worker", "traces", "deletable", "upkeep", "erasure", "doctor"],
    ["session", "tablerows", "tableshape", "travel", "table", "opened", "lake", "opening"],
    ["", "demo", "cli"],
]
ORDER = [module for level in LEVELS for module in level]


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below it; the folder `cli` is one."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        found[".".join(parts)] = path
    return found


def group(name: str) -> str:
    return "cli" if name.split(".")[0] == "cli" else name


def imports(path: Path, known: set[str]) -> set[str]:
    """Modules of the package that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name == "lakestore" or name.startswith("lakestore."):
                short = name.removeprefix("lakestore").removeprefix(".")
                if short in known:
                    found.add(short)
    return found


def is_typing_only(path: Path, module: str) -> bool:
    """Whether a file imports a module under TYPE_CHECKING alone."""
    tree = ast.parse(path.read_text())
    inside, outside = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            inside |= {id(child) for child in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == f"lakestore.{module}":
            (outside if id(node) not in inside else set()).add(module)
    return module not in outside


def test_every_module_has_a_level():
    assert {group(name) for name in modules()} == set(ORDER)


def test_imports_point_down():
    known = set(modules())
    wrong = []
    for name, path in modules().items():
        for imported in imports(path, known) - {""}:
            upwards = ORDER.index(group(imported)) > ORDER.index(group(name))
            if upwards and not is_typing_only(path, imported):
                wrong.append(f"{name} imports {imported}")
    assert wrong == []


def test_heavy_dependencies_have_one_home():
    homes = {
        "sqlalchemy": "catalog",
        "sqlglot": ("query.plan", "query.frames", "events.measures"),
        "typer": "cli",
    }
    for dependency, home in homes.items():
        users = {
            name
            for name, path in modules().items()
            for node in ast.walk(ast.parse(path.read_text()))
            if (isinstance(node, ast.Import) and node.names[0].name.split(".")[0] == dependency)
            or (isinstance(node, ast.ImportFrom) and (node.module or "").startswith(dependency))
        }
        assert users
        assert all(user.startswith(home) for user in users), (dependency, users)


def test_public_names_are_the_promised_ones():
    assert set(ls.__all__) == {
        "open",
        "Lake",
        "Table",
        "TableSchema",
        "Settings",
        "Ack",
        "Position",
        "Result",
        "LakestoreError",
        "InvalidInputError",
        "SchemaError",
        "NotFoundError",
        "ClosedError",
        "LockedError",
        "ConflictError",
        "BackpressureError",
        "FormatTooNewError",
        "StorageError",
        "UnsafeStoreError",
        "CommitUncertainError",
        "CorruptionError",
    }
    assert all(hasattr(ls, name) for name in ls.__all__)


def test_public_methods_are_the_promised_ones():
    def public(kind: type) -> set[str]:
        mine = [base for base in kind.__mro__ if base.__module__.startswith("lakestore.")]
        return {name for base in mine for name in vars(base) if not name.startswith("_")}

    assert public(ls.Lake) == {
        "create_table", "drop_table", "tables", "sql", "explain", "connect", "wait", "flush",
        "seal", "vacuum", "maintain", "plan_maintenance", "status", "watermark", "sites", "retire",
        "open_report", "verify", "repair", "close",
    }  # fmt: skip
    assert public(ls.Table) == {
        "name", "schema", "schemas", "append", "evolve", "flush", "seal", "compact", "purge",
        "load", "vacuum", "scan", "to_arrow", "export", "get", "prune", "undo",
        "get_many", "page", "totals", "series", "facets", "metrics", "counters",
        "history", "at",
    }  # fmt: skip
    assert public(ls.Result) == {
        "columns", "to_arrow", "to_polars", "to_pandas", "fetchall", "fetchone", "show",
    }  # fmt: skip


def test_error_tree():
    """Handlers group errors by what to do next, and old handlers keep working."""
    assert issubclass(ls.SchemaError, ls.InvalidInputError)
    assert issubclass(ls.InvalidInputError, ValueError)
    assert issubclass(ls.NotFoundError, KeyError)
    assert issubclass(ls.UnsafeStoreError, ls.StorageError)
    assert issubclass(ls.CommitUncertainError, ls.StorageError)
    for name in ls.__all__:
        kind = getattr(ls, name)
        if isinstance(kind, type) and issubclass(kind, Exception):
            assert issubclass(kind, ls.LakestoreError)
    assert str(ls.NotFoundError("no table 'x'")) == "no table 'x'"


def test_no_module_promises_nothing():
    names = {part for name in modules() for part in name.split(".")}
    assert not names & {"util", "utils", "common", "helper", "helpers", "misc"}
