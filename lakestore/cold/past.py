"""What was done to a Delta table, as far as it matters still: its log, read backwards."""

from collections.abc import Collection, Iterator

from lakestore.cold.entries import cold_file
from lakestore.delta.actions import Add, Remove
from lakestore.delta.log import DeltaLog, LogState
from lakestore.errors import NotFoundError
from lakestore.replacement import Pruning, nothing_pruned
from lakestore.schema import TableSchema
from lakestore.snapshot import ColdFile


def moments(state: LogState) -> Iterator[float]:
    """When files came and went, in Unix seconds."""
    yield from (add.modified_ms / 1000 for add in state.adds.values())
    yield from (remove.deleted_ms / 1000 for remove in state.removed.values())


def pruned(log: DeltaLog, schema: TableSchema, version: int | None) -> Pruning:
    """What a prune of ours took off the table.

    Args:
        version: that it made; by default the newest one that was not taken back.

    Raises:
        NotFoundError: there is none, or the log does not tell any more.
    """
    state = log.refresh()
    for number in range(state.version, -1, -1) if version is None else (version,):
        made = log.read(number)
        if made is None:
            break
        went = {action.path for action in made.actions if isinstance(action, Remove)}
        if made.summary.get("operation") == "prune" and not went & state.adds.keys():
            return Pruning(number, _added_before(log, schema, number, went))
    raise nothing_pruned(version)


def _added_before(
    log: DeltaLog, schema: TableSchema, version: int, names: Collection[str]
) -> tuple[ColdFile, ...]:
    """Files that a version removed, as the versions before it say."""
    found: dict[str, ColdFile] = {}
    while len(found) < len(names):
        version -= 1
        made = log.read(version) if version >= 0 else None
        if made is None:
            raise NotFoundError(
                "the log has been cleaned, and does not tell any more what expired files were"
            )
        for action in made.actions:
            if isinstance(action, Add) and action.path in names and action.path not in found:
                found[action.path] = cold_file(action, schema)
    return tuple(found[name] for name in sorted(found))
