"""Tests run again with a planted bug, which they must notice."""

import inspect
from collections.abc import Callable
from typing import Any

import duckdb
import pytest

import lakestore as ls

_FAILURES = (AssertionError, ls.LakestoreError, duckdb.Error, pytest.fail.Exception)
"""How a test fails of a bug in lakestore; not of one in the test."""


def assert_caught(
    request: pytest.FixtureRequest,
    figure: Callable[..., None],
    suite: str,
    plant: Callable[[pytest.MonkeyPatch], None],
    test: Callable[..., object],
    **arguments: Any,
) -> None:
    """That `test`, given its fixtures and these arguments, fails once the bug is planted."""
    names = inspect.signature(test).parameters.keys() - arguments.keys()
    found = {name: request.getfixturevalue(name) for name in names}
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        figure(suite, "mutants planted")
        with pytest.raises(_FAILURES):
            test(**found, **arguments)
    figure(suite, "mutants caught")
