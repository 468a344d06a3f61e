"""Which seals of a table with plain Parquet files were committed, as far as files tell.

An attempt whose commit never came leaves files as whole as those of one that was committed. Which
of a site's attempts was, `tiling` says, but for the last: nothing came after it. Two sites never
seal one event, so a last seal was not committed if it holds what another committed one holds. What
this site can still seal from its segments, it seals again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations

from lakestore import tiling
from lakestore.rebuild.repeats import Repeats
from lakestore.tiling import Tile, Untileable


@dataclass
class Seals:
    """The seals of one site."""

    whole: list[Tile] = field(default_factory=list)
    starts: set[int] = field(default_factory=set)
    """First segments of all, be they whole or not."""

    @property
    def plausible(self) -> list[Tile]:
        """Those that may have been committed."""
        return tiling.plausible(self.whole, self.starts)


@dataclass(frozen=True)
class Choice:
    """What makes up a table."""

    own: Sequence[Tile]
    """This site's, cold ones first."""
    others: Mapping[str, Sequence[Tile]]
    """The cold ones of other sites."""


Tiled = Callable[[Sequence[Tile]], list[Tile]]
"""Makes up this site's part of the table from its segments and these seals."""


def choose(
    seals: Mapping[str, Seals],
    own: str,
    listed: Sequence[str] | None,
    tiled: Tiled,
    repeats: Repeats,
    compacted: Sequence[str] = (),
) -> Choice:
    """Which seals were committed, and what of this site's part is hot.

    Args:
        listed: cold files of other sites that a catalog lists; None when files alone tell.
        compacted: files that took the place of others, and are of no seal.

    Raises:
        Untileable: files are missing, or cannot tell; says which.
        CorruptionError: a file cannot be read.
    """
    mine = seals.get(own, Seals())
    others = {site: seals[site] for site in sorted(seals) if site != own and listed is None}
    foreign = listed if listed is not None else _files(t for s in others.values() for t in s.whole)
    foreign = [*foreign, *compacted]
    last = max(mine.starts, default=0)
    unsure = [s for s in mine.plausible if s.first == last and not s.gone]
    doubtful = [s for s in unsure if repeats.share(s.files, foreign)]
    sure = [seal for seal in mine.plausible if seal not in doubtful]
    try:
        tiles = tiled(sure)
    except Untileable:
        if not doubtful or listed is not None:
            raise
        tiles = tiled(mine.plausible)  # its segments are gone, and only a commit lets them go
    beside = [*_files(tile for tile in tiles if tile.cold), *compacted]
    return Choice(tiles, _committed(others, beside, repeats))


def _committed(
    seals: Mapping[str, Seals], sure: Sequence[str], repeats: Repeats
) -> dict[str, list[Tile]]:
    """The seals of other sites beside files that are not in doubt."""
    chosen: dict[str, list[Tile]] = {}
    perhaps: dict[str, list[Tile]] = {}
    for site, found in seals.items():
        try:
            chosen[site], perhaps[site] = tiling.chain(found.plausible, found.starts)
        except Untileable as error:
            raise Untileable(f"of site {site} {error}") from error
    known = {site: _files(tiles) for site, tiles in chosen.items()}
    last: dict[str, Tile] = {}
    for site, tiles in perhaps.items():
        beside = [*sure, *chain(*(known[other] for other in known if other != site))]
        for tile in tiles:
            if not repeats.share(tile.files, beside):
                last[site] = tile
                break
    for (one, first), (two, second) in combinations(last.items(), 2):
        if repeats.share(first.files, second.files):
            raise Untileable(
                f"sites {one} and {two} have tried to seal the same rows, and only their own files "
                "say who did: run `lakestore rebuild` at the host of one of them first"
            )
    return {
        site: [*tiles, *([last[site]] if site in last else [])] for site, tiles in chosen.items()
    }


def _files(tiles: Iterable[Tile]) -> list[str]:
    return [name for tile in tiles for name in tile.files]
