"""Figures that tests print at the end of a run, summed over the processes that run them."""

from collections import Counter
from typing import Any

import pytest

KEY = "figure"


@pytest.fixture
def figure(record_property: Any) -> Any:
    """`figure(suite, what, number)`: adds to a line of the summary."""

    def add(suite: str, what: str, number: int = 1) -> None:
        record_property(KEY, [suite, what, number])

    return add


def pytest_terminal_summary(terminalreporter: Any) -> None:
    totals: Counter[tuple[str, str]] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            for key, value in getattr(report, "user_properties", ()):
                if key == KEY and getattr(report, "when", "") == "call":
                    totals[value[0], value[1]] += value[2]
    suites: dict[str, list[str]] = {}
    for (suite, what), number in totals.items():
        suites.setdefault(suite, []).append(f"{number:,} {what}")
    if suites:
        terminalreporter.section("figures")
    for suite, parts in sorted(suites.items()):
        terminalreporter.line(f"{suite}: {', '.join(parts)}")
