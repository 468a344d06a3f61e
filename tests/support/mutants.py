"""Bugs to plant in a child process: each breaks one promise, and some suite must notice.

They replace functions of lakestore in memory, in that process alone.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lakestore as ls
from lakestore import coldfiles, flush, hot, payload, recover, retain
from lakestore.layout import journal_name


def plant(name: str | None) -> None:
    """Plant the mutant of that name; None for none."""
    if name is not None:
        MUTANTS[name]()


def _acknowledge_before_the_write() -> None:
    append = ls.Table.append

    def hasty(table: ls.Table, data: Any, **options: Any) -> Any:
        return append(table, data, **(options | {"level": "memory"}))

    ls.Table.append = hasty  # type: ignore[method-assign,assignment]


def _delete_journals_before_the_commit() -> None:
    commit = flush._commit

    def hasty(table: Any, taken: Any, *rest: Any) -> Any:
        for id in taken.covers:
            folder = table.site.layout.writer(table.entry.folder, id.writer)
            (folder / journal_name(id.number)).unlink()
        return commit(table, taken, *rest)

    flush._commit = hasty


def _commit_before_the_files_are_published() -> None:
    commit, publish, publish_payload = flush._commit, hot.publish, payload.publish

    def hasty(table: Any, taken: Any, staged: Any, *rest: Any) -> Any:
        later: list[tuple[Any, ...]] = []

        def payload_later(*arguments: Any) -> None:
            later.append((publish_payload, *arguments))

        def name_only(*arguments: Any) -> tuple[str, bool]:
            later.append((publish, *arguments))
            return str(hot.SegmentName(*arguments[2:], staged.segment.info.sha256[:12])), False

        with (
            _replaced(hot, "publish", name_only),
            _replaced(payload, "publish", payload_later),
        ):
            segment = commit(table, taken, staged, *rest)
        for function, *arguments in later:
            function(*arguments)
        return segment

    flush._commit = hasty


def _delete_journals_when_they_are_taken_over() -> None:
    take_over = recover.take_over

    def hasty(table: Any, appender: Any, writers: Any) -> None:
        take_over(table, appender, writers)
        for writer in writers:
            for path in table.site.layout.writer(table.entry.folder, writer).glob("*.journal"):
                path.unlink()

    _replace_everywhere("take_over", hasty)


def _skip_the_fsync_of_folders() -> None:
    _replace_everywhere("fsync_folder", lambda path: None)


def _skip_the_fsync_of_files() -> None:
    _replace_everywhere("fsync_file", lambda path: None)


def _skip_the_fdatasync_of_the_journal() -> None:
    os.fdatasync = lambda descriptor: None  # type: ignore[assignment,misc]


def _forget_before_the_delete() -> None:
    """Vacuum strikes files off the catalog, and does not make their removal durable."""
    retain.fsync_folder = lambda path: None


def _delete_replaced_files_before_the_commit() -> None:
    replace = coldfiles.replace

    def hasty(table: Any, replacement: Any, *rest: Any) -> None:
        for file in replacement.removed:
            table.cold_path(file).unlink()
        replace(table, replacement, *rest)

    coldfiles.replace = hasty


MUTANTS: dict[str, Callable[[], None]] = {
    "acknowledge before the write": _acknowledge_before_the_write,
    "delete journals before the commit": _delete_journals_before_the_commit,
    "commit before the files are published": _commit_before_the_files_are_published,
    "delete journals when they are taken over": _delete_journals_when_they_are_taken_over,
    "delete replaced files before the commit": _delete_replaced_files_before_the_commit,
    "skip the fsync of folders": _skip_the_fsync_of_folders,
    "skip the fsync of files": _skip_the_fsync_of_files,
    "skip the fdatasync of the journal": _skip_the_fdatasync_of_the_journal,
    "vacuum without the fsync of folders": _forget_before_the_delete,
}


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    old = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, old)


def _replace_everywhere(name: str, value: Any) -> None:
    """In the module that defines it and in all that imported it by name."""
    import sys

    found = [
        module
        for key, module in list(sys.modules.items())
        if key.startswith("lakestore") and hasattr(module, name)
    ]
    assert found, name
    for module in found:
        setattr(module, name, value)
