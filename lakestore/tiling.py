"""Which files make up a table, told from the files alone. Pure.

A tile is what holds the rows of a run of segment numbers: a segment, a merged segment, or all the
cold files of one seal. Tiles of the same run hold the same rows, except where a flush was cut
short: its segment may have a number that another one has got. Each says which journals it took,
and that decides.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from itertools import pairwise

from lakestore.snapshot import GenerationId

_TRIES_MAX = 20_000


@dataclass(frozen=True)
class Tile:
    """Files that hold the rows of the segments first..last."""

    first: int
    last: int
    cold: bool
    files: tuple[str, ...]
    covers: frozenset[GenerationId] = frozenset()
    linked: int = field(default=0, compare=False)
    """Ascends with the time at which it was put in place, as far as the file system tells."""
    rows: int = field(default=0, compare=False)
    gone: tuple[str, ...] = ()
    """Files whose rows are in others by now, or expired: only a committed seal's are."""


class Untileable(ValueError):
    """No choice of tiles accounts for every segment number and every journal."""


def plausible(seals: Sequence[Tile], starts: Set[int]) -> list[Tile]:
    """Those of a site's whole seals that may have been committed.

    A seal begins where the last committed one ended, so none that was committed spans the start of
    another. And each leaves out what other sites have sealed by then: of several of one range, the
    one with the fewest rows is the committed one, or has the same rows. One of which files were
    replaced was committed.

    Args:
        starts: first segments of all seals that there are files of, be they whole or not.
    """
    ordered = sorted(starts)
    kept: dict[tuple[int, int], Tile] = {}
    sure = {seal.first: seal for seal in seals if seal.gone}
    for seal in sorted(seals, key=lambda t: (t.rows, t.files)):
        later = bisect_right(ordered, seal.first)
        if sure.get(seal.first, seal) is seal and (
            later == len(ordered) or ordered[later] > seal.last
        ):
            kept.setdefault((seal.first, seal.last), seal)
    return list(kept.values())


def chain(seals: Sequence[Tile], starts: Set[int]) -> tuple[list[Tile], list[Tile]]:
    """A site's plausible seals: those that were committed, and those that may be the last of them.

    The former are in order. Of the latter one or none was committed; the longest comes first.

    Raises:
        Untileable: there is no whole seal where there was a committed one.
    """
    committed: list[Tile] = []
    ordered = sorted(starts)
    for start, end in pairwise([1, *(s for s in ordered if s > 1)]):
        fitting = [seal for seal in seals if (seal.first, seal.last) == (start, end - 1)]
        if not fitting:
            raise Untileable(f"no whole seal holds the segments {start} to {end - 1}")
        committed += fitting
    last = [seal for seal in seals if seal.first == max(ordered, default=0)]
    if any(seal.gone for seal in last):
        return [*committed, *last], []
    return committed, sorted(last, key=lambda seal: -seal.last)


def choose(tiles: Sequence[Tile], last: int, journals: Set[GenerationId]) -> list[Tile]:
    """The tiles of a table in order: cold ones, then segments, each number once up to `last`.

    A journal's rows are in one tile at most, and a tile is left out only when all of its journals
    are in others, or still there to be flushed.

    Args:
        last: the highest segment number that any file is named after.
        journals: generations whose files are on the disk.

    Raises:
        Untileable: says from which number on there is no way.
    """
    if last == 0:
        return []
    search = _Search(tiles, last, journals)
    for path in search.paths():
        return path
    raise Untileable(search.reason())


class _Search:
    """Depth first, the likeliest tile first: cold before hot, the longest, the latest."""

    def __init__(self, tiles: Sequence[Tile], last: int, journals: Set[GenerationId]) -> None:
        order = sorted(tiles, key=lambda t: (not t.cold, -t.last, -t.linked, t.files))
        self._from: dict[int, list[Tile]] = {}
        for tile in order:
            self._from.setdefault(tile.first, []).append(tile)
        self._last = last
        self._needed = frozenset[GenerationId]().union(*(t.covers for t in tiles)) - journals
        self._ends = self._reaching(tiles)
        self._tries = 0
        self._furthest = 0

    def _reaching(self, tiles: Sequence[Tile]) -> set[tuple[int, bool]]:
        """Positions (last number so far, whether hot by now) from which the end can be reached."""
        reaching = {(self._last, False), (self._last, True)}
        for tile in sorted(tiles, key=lambda t: -t.first):
            if (tile.last, not tile.cold) in reaching:
                reaching.add((tile.first - 1, False))
                if not tile.cold:
                    reaching.add((tile.first - 1, True))
        return reaching

    def paths(self) -> Iterator[list[Tile]]:
        """Every choice that accounts for all."""
        path: list[Tile] = []
        taken: set[GenerationId] = set()
        stack = [iter(self._options(0, False))]
        while stack:
            tile = next(stack[-1], None)
            if tile is None:
                stack.pop()
                if path:
                    taken -= path.pop().covers
                continue
            self._tries += 1
            if self._tries > _TRIES_MAX:
                return
            if tile.covers & taken:
                continue
            self._furthest = max(self._furthest, tile.last)
            path.append(tile)
            taken |= tile.covers
            if tile.last == self._last:
                if taken >= self._needed:
                    yield list(path)
                taken -= path.pop().covers
                continue
            stack.append(iter(self._options(tile.last, not tile.cold)))

    def _options(self, end: int, is_hot: bool) -> list[Tile]:
        return [
            tile
            for tile in self._from.get(end + 1, ())
            if not (is_hot and tile.cold) and (tile.last, not tile.cold) in self._ends
        ]

    def reason(self) -> str:
        """Why there is no choice."""
        if (0, False) in self._ends:
            return "its segments contradict each other about which journals they took"
        reached = {0}
        for tile in sorted((t for ts in self._from.values() for t in ts), key=lambda t: t.first):
            if tile.first - 1 in reached:
                reached.add(tile.last)
        return f"no whole file holds segment {max(reached) + 1} of {self._last}"
