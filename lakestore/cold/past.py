"""What was done to a Delta table, as far as it matters still: its log, read backwards."""

from collections.abc import Iterator

from lakestore.delta.actions import Add, Remove
from lakestore.delta.log import DeltaLog, LogState
from lakestore.delta.past import files_at
from lakestore.errors import NotFoundError
from lakestore.replacement import Pruning, nothing_pruned


def moments(state: LogState) -> Iterator[float]:
    """When files came and went, in Unix seconds."""
    yield from (add.modified_ms / 1000 for add in state.adds.values())
    yield from (remove.deleted_ms / 1000 for remove in state.removed.values())


def pruned(log: DeltaLog, version: int | None) -> Pruning:
    """What a prune of ours took off the table.

    Args:
        version: that it made; by default the newest one that was not taken back.

    Raises:
        NotFoundError: there is none, or the log does not tell any more.
    """
    oldest, came_back = max(version or 0, 0), set[str]()
    for number in range(log.refresh().version, oldest - 1, -1):
        made = log.read(number)
        if made is None:
            break
        went = {action.path for action in made.actions if isinstance(action, Remove)}
        is_wanted = version in (None, number) and made.summary.get("operation") == "prune"
        if is_wanted and not went & came_back:
            files = files_at(log, number - 1) or {}
            if not went <= files.keys():
                raise NotFoundError(
                    "the log has been cleaned, and does not tell any more what expired files were"
                )
            return Pruning(number, tuple(files[name] for name in sorted(went)))
        came_back |= {action.path for action in made.actions if isinstance(action, Add)}
    raise nothing_pruned(version)
