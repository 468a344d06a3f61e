"""What a Delta log says of a site that has lost its catalog."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, NoReturn

from lakestore.delta.log import APP, LAKE_PROPERTY, DeltaLog, LogState
from lakestore.errors import CorruptionError
from lakestore.layout import ColdName, log_prefix
from lakestore.snapshot import GenerationId
from lakestore.storage import Storage
from lakestore.tiling import Tile


@dataclass(frozen=True)
class Sealed:
    """What a site has sealed of a table: up to which segment, and in which files that are left."""

    lake: str
    site: str | None
    through: int
    files: tuple[str, ...]
    elsewhere: Mapping[str, int] = field(default_factory=dict)
    """Up to which segment other sites have."""

    def tile(self, covers: frozenset[GenerationId]) -> Tile:
        """All that is sealed, as one tile; its files are the log's to name."""
        return Tile(1, self.through, True, (), covers)


def read_log(storage: Storage, folder: str) -> LogState:
    """A table's log; raises `CorruptionError`, `FormatTooNewError` and `StorageError`."""

    def refuse(*_: object) -> NoReturn:
        raise AssertionError("a rebuild does not write to a log")

    return DeltaLog(storage, log_prefix(folder), None, None, refuse, refuse).refresh()


def sealed(
    state: LogState,
    footer_of: Callable[[str], Mapping[str, Any]],
    hot_sites: Set[str],
    journals: Set[GenerationId],
) -> Sealed:
    """Which of the sites that a log knows this is, and what it has sealed.

    It is the site of the segments that are here, or whose cold files took journals that are here;
    with neither, the only one that the log knows, if there is but one.

    Args:
        footer_of: a live cold file's footer, by its name.
        hot_sites: sites that the segments' footers name.
    """
    assert state.metadata is not None
    lake = state.metadata.configuration[LAKE_PROPERTY]
    prefix = f"{APP}{lake}/"
    named = {a: n for a, n in state.transactions.items() if a.startswith(prefix)}
    apps = {app.removeprefix(prefix): through for app, through in named.items()}
    ours: dict[str, list[str]] = {}
    sites = set(hot_sites)
    for path in sorted(state.adds):
        try:
            site = ColdName.parse(path).site
        except CorruptionError:
            continue
        ours.setdefault(site, []).append(path)
        if site not in sites and journals:
            took = footer_of(path).get("covers", ())
            if any(GenerationId(str(w), int(n)) in journals for w, n in took):
                sites.add(site)
    if not sites and len(apps) == 1:
        sites = set(apps)
    if len(sites) > 1:
        raise CorruptionError(f"the files here are of several sites: {', '.join(sorted(sites))}")
    if not sites:
        return Sealed(lake, None, 0, ())
    (site,) = sites
    others = {other: through for other, through in apps.items() if other != site}
    return Sealed(lake, site, apps.get(site, 0), tuple(ours.get(site, ())), others)
