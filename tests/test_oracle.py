"""The oracle finds each kind of breakage, and nothing in what is right."""

from pathlib import Path

import pyarrow as pa
import pytest
from conftest import SCHEMA, events
from support.oracle import Ledger, Oracle, append_recorded

NONE = {"lost": 0, "doubled": 0, "phantom": 0, "wrong": 0, "torn": 0, "disordered": 0}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger", SCHEMA.arrow)


@pytest.fixture
def oracle(tmp_path: Path) -> Oracle:
    return Oracle(tmp_path / "ledger")


def test_a_lake_without_faults_breaks_nothing(table, ledger, oracle):
    append_recorded(table, ledger, events(0, 10), producer="p", seq=1)
    append_recorded(table, ledger, events(5, 15), level="os")
    append_recorded(table, ledger, events(0, 10), producer="p", seq=1)
    table.flush()
    append_recorded(table, ledger, events(20, 25), level="memory")
    for level, acknowledged in (("disk", 10), ("os", 15), ("memory", 20)):
        findings = oracle.check(table.to_arrow(), level)
        assert findings.broken == NONE, findings
        assert (findings.visible, findings.acknowledged) == (20, acknowledged)


def test_rows_of_a_known_pair_are_not_accepted(table, ledger, oracle):
    append_recorded(table, ledger, events(0, 10), producer="p", seq=1)
    append_recorded(table, ledger, events(10, 20), producer="p", seq=1)
    assert oracle.check(table.to_arrow(), "disk").broken == NONE
    assert oracle.check(events(0, 20), "disk").broken == NONE | {"phantom": 10}


@pytest.mark.parametrize(
    ("rows", "broken"),
    [
        (events(0, 30), {}),
        (events(0, 20), {}),  # the last batch was not acknowledged
        (events(0, 10), {"lost": 10}),
        (events(10, 30), {"lost": 10, "disordered": 1}),
        (events(0, 25), {"torn": 1}),
        (events(0, 31), {"phantom": 1}),
        (pa.concat_tables([events(0, 20), events(3, 5)]), {"doubled": 2}),
        (events(0, 20).set_column(3, "x", pa.array([-1.0] + [i / 4 for i in range(1, 20)])),
         {"wrong": 1}),
        (None, {"lost": 20}),
    ],
)  # fmt: skip
def test_what_is_broken_is_found(ledger, oracle, rows, broken):
    ledger.ack(ledger.submit(events(0, 10), level="disk", producer="p", seq=1))
    ledger.ack(ledger.submit(events(10, 20), level="disk", producer="p", seq=2))
    ledger.submit(events(20, 30), level="disk", producer="p", seq=3)
    assert oracle.check(rows, "disk").broken == NONE | broken


def test_levels(ledger, oracle):
    first = ledger.submit(events(0, 10), level="memory")
    ledger.ack(first)
    assert oracle.check(None, "os").broken == NONE
    assert oracle.check(None, "memory").broken == NONE | {"lost": 10}
    ledger.ack(first, level="disk")
    assert oracle.check(None, "disk").broken == NONE | {"lost": 10}


def test_rows_of_two_batches_share_the_fate_of_both(ledger, oracle):
    """Batches 0..10 and 5..15, neither acknowledged: four outcomes are whole."""
    ledger.submit(events(0, 10), level="disk")
    ledger.submit(events(5, 15), level="disk")
    for rows in (None, events(0, 10), events(5, 15), events(0, 15)):
        assert oracle.check(rows, "disk").broken == NONE
    assert oracle.check(events(0, 5), "disk").broken == NONE | {"torn": 1}
    assert oracle.check(events(5, 10), "disk").broken == NONE | {"torn": 1}
    assert oracle.check(events(0, 12), "disk").broken == NONE | {"torn": 1}


def test_a_refused_batch_must_not_be_there(ledger, oracle):
    ledger.refuse(ledger.submit(events(0, 10), level="disk"))
    assert oracle.check(None, "disk").broken == NONE
    assert oracle.check(events(0, 10), "disk").broken == NONE | {"phantom": 10}


def test_half_a_line_is_waited_for(ledger, oracle):
    ledger.ack(ledger.submit(events(0, 10), level="disk"))
    with ledger.path.open("ab") as file:
        file.write(b'{"submit": 1, "level"')
    assert oracle.check(events(0, 10), "disk").broken == NONE


def test_rows_that_leave_and_come_back(ledger, oracle):
    """Of two acknowledged batches of a producer, half of the first leaves."""
    ledger.ack(ledger.submit(events(0, 10), level="disk", producer="p", seq=1))
    ledger.ack(ledger.submit(events(10, 20), level="disk", producer="p", seq=2))
    some = events(0, 5).column("id").to_pylist()
    lacks_one = NONE | {"lost": 1, "torn": 1, "disordered": 1}
    ledger.leaving(some)
    for rows in (events(0, 20), events(3, 20), events(5, 20)):
        assert oracle.check(rows, "disk").broken == NONE
    assert oracle.check(events(6, 20), "disk").broken == lacks_one
    ledger.left(some)
    assert oracle.check(events(5, 20), "disk").broken == NONE
    assert oracle.check(events(4, 20), "disk").broken == NONE | {"phantom": 1}
    ledger.leaving(some)
    assert oracle.check(events(4, 20), "disk").broken == NONE
    ledger.returned(some)
    assert oracle.check(events(0, 20), "disk").broken == NONE
    assert oracle.check(events(1, 20), "disk").broken == lacks_one
