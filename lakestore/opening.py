"""Open a lake: what its arguments may be."""

import os
from pathlib import Path
from typing import Literal

from lakestore.clock import Clock, SystemClock
from lakestore.engine import troubles
from lakestore.errors import InvalidInputError
from lakestore.lake import Lake
from lakestore.layout import SiteLayout
from lakestore.quoting import UNSPEAKABLE
from lakestore.settings import Settings


@troubles("cannot open the lake")
def open(
    root: str | os.PathLike[str],
    *,
    local: str | os.PathLike[str] | None = None,
    mode: Literal["rw", "r"] = "rw",
    upkeep: Literal["auto", "manual"] = "auto",
    settings: Settings | dict[str, object] | None = None,
    clock: Clock | None = None,
) -> Lake:
    """Open the lake in the folder `root`; in mode `rw` a new one is made when there is none.

    Args:
        root: a folder.
        local: where this host keeps journals, hot segments and the catalog; default
            `<root>/_site`.
        mode: `rw` to write too, `r` to read only.
        upkeep: `auto` flushes, seals and vacuums in threads of its own; `manual` leaves it to
            the caller's `flush()`, `seal()` and `maintain()`.
        settings: numbers that differ from the defaults.
        clock: the time, for tests.

    Raises:
        InvalidInputError: `root` is a file, or an argument is none of those above.
        NotFoundError: mode `r`, and there is no lake.
        FormatTooNewError: a newer lakestore wrote the lake.
        CorruptionError: bytes of the lake break a promise.
    """
    if mode not in ("rw", "r"):
        raise InvalidInputError(f"mode {mode!r} is neither 'rw' nor 'r'")
    if upkeep not in ("auto", "manual"):
        raise InvalidInputError(f"upkeep {upkeep!r} is neither 'auto' nor 'manual'")
    if "://" in str(root):
        raise InvalidInputError(f"{str(root)!r}: a lake is a folder of this machine")
    for folder in (root, local or ""):
        if UNSPEAKABLE.search(str(folder)):
            raise InvalidInputError(f"{str(folder)!r} is no path of UTF-8 text, as DuckDB needs it")
        if set(str(folder)) & set("*?[\\"):
            raise InvalidInputError(
                f"{str(folder)!r}: DuckDB takes '*', '?', '[' and backslashes in a path for "
                "something else; name the folder without them"
            )
    if local is not None and not SiteLayout(Path(local)).lies_apart_from(Path(root)):
        raise InvalidInputError(
            f"local={str(local)!r} and {str(root)!r} lie among each other's files: choose another"
        )
    return Lake(
        Path(root).absolute(),
        Path(local).absolute() if local is not None else None,
        mode,
        upkeep,
        Settings.of(settings),
        clock or SystemClock(),
    )
