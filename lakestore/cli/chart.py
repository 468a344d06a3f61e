"""The command `chart`: measures over time, as bars in the terminal, or as a picture."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer
from rich.cells import set_cell_size
from rich.text import Text

from lakestore.cli.bars import COLOURS, bar, clip, measured
from lakestore.cli.events import Measures
from lakestore.cli.filters import End, Start, Tier, Where, selection
from lakestore.cli.output import Json, LakeFolder, TableName, console, print_json
from lakestore.cli.place import open_lake
from lakestore.cli.values import plain, short, text
from lakestore.errors import InvalidInputError, StorageError
from lakestore.events.answers import Series

_PANEL = 18
"""Letters that a group's bars and numbers take at least."""
_PNG_SCALE = 2


def chart(
    lake: LakeFolder,
    table: TableName,
    measures: Measures = None,
    every: Annotated[str, typer.Option(metavar="WIDTH", help="Of a bucket: 15m, 1h, 1d.")] = "1h",
    by: Annotated[
        list[str] | None,
        typer.Option("--by", metavar="COLUMN", help="A group for each value (repeatable)."),
    ] = None,
    where: Where = None,
    start: Start = None,
    end: End = None,
    tz: Annotated[str, typer.Option(metavar="ZONE", help="Whose days: Europe/Berlin.")] = "UTC",
    source: Tier = "all",
    groups: Annotated[int, typer.Option(min=1, help="Groups shown, those with most first.")] = 8,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw a picture.")] = None,
    page: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Make a page of its own.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw measures over time: bars in the terminal, or a picture.

    Every bucket of the window is there, also with nothing in it.

    \b
    lakestore chart lake usage --every 1d --by model --start 7d
    lakestore chart lake usage 'p95(latency_ms)' -w model=gpt-5 --png latency.png
    """
    with open_lake(lake, mode="r") as opened:
        asked = opened[table]
        chosen = selection(asked.schema.stored, where, start, end, source)
        found = asked.series(measures or "count", every=every, by=by or (), tz=tz, **chosen)
    written = [path for path, form in ((png, "png"), (page, "html")) if _drawn(found, path, form)]
    if as_json:
        told = {"every": found.every, "by": found.by, "measures": found.measures}
        print_json(plain({"table": table, **told, "points": list(found)}))
    elif written:
        for path in written:
            print(f"wrote {path}")
    else:
        _print(found, tz, groups)


def _drawn(found: Series, path: Path | None, form: str) -> bool:
    """Whether the chart was wanted as a file, which is there then.

    Raises:
        InvalidInputError: what draws is not installed.
        StorageError: the file cannot be written.
    """
    if path is None:
        return False
    plot = found.plot()
    if find_spec("vl_convert") is None:
        raise InvalidInputError("plots need vl-convert: pip install 'lakestore[plot]'")
    drawn = io.BytesIO() if form == "png" else io.StringIO()
    if form == "png":
        plot.save(drawn, format="png", scale_factor=_PNG_SCALE)
    else:
        plot.save(drawn, format="html", inline=True)  # it is read where there is no network
    made = drawn.getvalue()
    try:
        path.write_bytes(made.encode() if isinstance(made, str) else made)
    except OSError as error:
        raise StorageError(f"cannot write {str(path)!r}: {error}") from error
    return True


@dataclass(frozen=True)
class _Group:
    """A group's name, and its measure in each bucket."""

    name: str
    values: Sequence[Any]

    @property
    def size(self) -> float:
        """What groups are ranked by."""
        return sum(map(measured, self.values))


def _print(found: Series, tz: str, most: int) -> None:
    out = console()
    if not len(found):
        out.print("no events")
        return
    moments = found.table["bucket"].cast(pa.timestamp("us", tz)).to_pylist()
    starts = sorted(set(moments))
    labels = list(_labels(starts))
    for label in found.measures:
        every = _groups(found, label, len(starts))
        shown = sorted(every, key=lambda group: -group.size)[:most]
        out.print(Text(f"{text(label)} by {found.every}, {tz}", style="bold"))
        fits = max(1, (out.width - len(labels[0])) // _PANEL)
        for first in range(0, len(shown), fits):
            for line in _panel(shown, first, fits, labels, out.width):
                out.print(line)
        if len(every) > most:
            out.print(f"{len(every) - most:,} more groups: --groups {len(every)}, or a filter")


def _groups(found: Series, label: str, count: int) -> list[_Group]:
    """The groups of a series, whose rows are ordered by group, then time."""
    values = found.table[label].to_pylist()
    keys = found.table.select(list(found.by)).to_pylist()
    return [
        _Group(
            ", ".join(text(key) for key in keys[at].values()) if found.by else "",
            values[at : at + count],
        )
        for at in range(0, len(values), count)
    ]


def _labels(starts: Sequence[datetime]) -> Iterator[str]:
    """What stands before each bucket: its day, where another begins, and its time of day."""
    daily = all(start.time().isoformat() == "00:00:00" for start in starts)
    precise = any(start.second or start.microsecond for start in starts)
    before = None
    for start in starts:
        day = start.strftime("%Y-%m-%d")
        if daily:
            yield day
            continue
        time = start.strftime("%H:%M:%S" if precise else "%H:%M")
        yield f"{day if day != before else '':10} {time}"
        before = day


def _panel(
    groups: Sequence[_Group], first: int, fits: int, labels: Sequence[str], width: int
) -> Iterator[Text]:
    """Lines of some groups side by side: a name each, then a line a bucket, all on one scale."""
    shown = groups[first : first + fits]
    most = max(measured(value) for group in groups for value in group.values)
    wide = max(len(short(value)) for group in groups for value in group.values)
    each = (width - len(labels[0])) // min(fits, len(groups))
    room = max(1, each - wide - 3)
    if shown[0].name:
        names = (set_cell_size(clip(group.name, each - 2), each - 2) for group in shown)
        yield Text(" " * len(labels[0]) + "  ".join(["", *names]).rstrip())
    for at, label in enumerate(labels):
        line = Text(label)
        for number, group in enumerate(shown, first):
            value = group.values[at]
            line.append(f"  {short(value):>{wide}} ")
            line.append(f"{bar(value, most, room):{room}}", COLOURS[number % len(COLOURS)])
        line.rstrip()
        yield line
