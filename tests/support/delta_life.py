"""deltalake alone, for the same checker: a few appends by it to a local table, and their judge."""

import json
import traceback
from pathlib import Path

from support.oracle import Ledger, Oracle
from support.small_life import SCHEMA, events


def live(root: str, ledger: str) -> None:
    """Four appends, each acknowledged once deltalake has returned."""
    from deltalake import write_deltalake

    book = Ledger(Path(ledger), SCHEMA.arrow, sync=False)
    for start in range(0, 80, 20):
        rows = events(start, start + 20)
        batch = book.submit(rows, level="disk")
        write_deltalake(root, rows, mode="append")
        book.ack(batch)


def judge(tables: list[list[str]], level: str, report: str) -> None:
    """As `small_life.judge`; a table that cannot be read has lost its rows."""
    from deltalake import DeltaTable

    wrong = {}
    for root, ledger in tables:
        rows = None
        why = ""
        try:
            if DeltaTable.is_deltatable(root):
                rows = DeltaTable(root).to_pyarrow_table()
        except Exception:
            why = traceback.format_exc(limit=-1)
        findings = Oracle(Path(ledger)).check(rows, level)
        if not findings.ok:
            wrong[root] = f"{findings} {why}"
    Path(report).write_text(json.dumps(wrong))
