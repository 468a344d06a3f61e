"""README.md beside this file misses no row of upstream's tables, and names tests that are there."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
README = (Path(__file__).parent / "README.md").read_text()
COUNTS = {"D": 15, "P": 12, "W": 22, "J": 17, "S": 19, "C": 13, "R": 22, "X": 9, "O": 10, "T": 49}
ROW = re.compile(r"^\| ([A-Z]\d+) \| (.+?) \| (.+?) \|$", re.MULTILINE)
NAMED = re.compile(r"`((?:parity/)?test_\w+)::(\w+)`")


def functions_of(file: str) -> set[str]:
    tree = ast.parse((TESTS / f"{file}.py").read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_row_is_there_once_with_an_answer():
    rows = ROW.findall(README)
    assert [id for id, _, _ in rows] == [f"{k}{i + 1}" for k, n in COUNTS.items() for i in range(n)]
    for id, _, ours in rows:
        assert NAMED.search(ours) or re.match(r"(later|not ours|no): \w", ours), id


def test_every_test_that_is_named_exists():
    named = NAMED.findall(README)
    assert len(named) > 100
    missing = [f"{file}::{name}" for file, name in named if name not in functions_of(file)]
    assert missing == []
    here = {f"parity/{p.stem}" for p in Path(__file__).parent.glob("test_*.py")}
    assert {file for file, _ in named if file.startswith("parity/")} == here - {
        "parity/test_gateway_readme"
    }
