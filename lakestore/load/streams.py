"""Sources that are in memory, or come from another library: Arrow streams, frames, datasets."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

import pyarrow as pa

from lakestore.coerce import FRAME_ROWS
from lakestore.errors import InvalidInputError
from lakestore.load.chunks import Source
from lakestore.quoting import UNSPEAKABLE
from lakestore.settings import MIB

_NAME_BYTES = 500
_PIECE_BYTES = 32 * MIB
_LITTLE_AHEAD = {"batch_size": FRAME_ROWS, "batch_readahead": 2, "fragment_readahead": 1}
"""pyarrow reads 64 batches ahead by itself."""


def producer_of(load_id: str | None) -> str:
    """The producer of a source that a caller names, or none.

    Raises:
        InvalidInputError: it is no name.
    """
    if load_id is None:
        return ""
    is_text = isinstance(load_id, str) and not UNSPEAKABLE.search(load_id)
    if not is_text or not 0 < len(load_id.encode()) <= _NAME_BYTES:
        raise InvalidInputError(f"load_id must be 1 to {_NAME_BYTES} bytes of text")
    return f"load:{load_id}"


def stream(data: Any, producer: str) -> Source:
    """Data as a source.

    Raises:
        InvalidInputError: it is nothing that events come in.
    """
    read, rows = _reading(data)
    return Source(type(data).__name__, producer, lambda after: pieces(read(), after), rows)


def _reading(data: Any) -> tuple[Callable[[], Iterable[Any]], int | None]:
    """What gives the pieces of data in order, and how many rows there are, if that is known."""
    if isinstance(data, pa.RecordBatchReader):
        return lambda: data, None
    if isinstance(data, pa.Table | pa.RecordBatch):
        return lambda: [data], data.num_rows
    if hasattr(data, "to_batches"):  # a pyarrow dataset, or a scanner of one
        options = _LITTLE_AHEAD if hasattr(data, "get_fragments") else {}
        return lambda: data.to_batches(**options), None
    if hasattr(data, "collect_batches"):  # a Polars LazyFrame
        return lambda: data.collect_batches(chunk_size=FRAME_ROWS, maintain_order=True), None
    if hasattr(data, "__arrow_c_stream__"):
        rows = data.height if isinstance(getattr(data, "height", None), int) else None
        return lambda: pa.RecordBatchReader.from_stream(data), rows
    if hasattr(data, "__arrow_c_array__"):
        return lambda: [pa.record_batch(data)], None
    if isinstance(data, Iterable) and not isinstance(data, str | bytes | Mapping):
        return lambda: _grouped(data), None
    raise InvalidInputError(
        f"cannot load {type(data).__name__}: pass a path, a glob or a list of these, an Arrow "
        "stream, table or dataset, a Polars frame, or an iterable of batches or mappings"
    )


def _grouped(data: Iterable[Any]) -> Iterator[Any]:
    """Batches as they come; mappings so many together."""
    found = iter(data)
    first = next(found, None)
    if first is None:
        return
    everything = chain([first], found)
    if not isinstance(first, Mapping):
        yield from everything
    while isinstance(first, Mapping) and (rows := list(islice(everything, FRAME_ROWS))):
        yield rows


def pieces(found: Iterable[Any], after: int = 0) -> Iterator[Any]:
    """The rows after so many, in tables or lists of a size that is worth one look."""
    for one in found:
        rows = one if isinstance(one, list) else _table(one)
        count = len(rows)
        if after >= count:
            after -= count
            continue
        step = FRAME_ROWS
        if isinstance(rows, pa.Table):
            step = max(1, min(FRAME_ROWS, _PIECE_BYTES * count // max(1, rows.nbytes)))
        for start in range(after, count, step):
            end = min(count, start + step)
            yield rows[start:end]
        after = 0


def _table(one: Any) -> pa.Table:
    if isinstance(one, pa.Table):
        return one
    if isinstance(one, pa.RecordBatch):
        return pa.Table.from_batches([one])
    if hasattr(one, "__arrow_c_stream__"):
        return pa.table(one)
    if hasattr(one, "__arrow_c_array__"):
        return pa.Table.from_batches([pa.record_batch(one)])
    raise InvalidInputError(f"cannot load {type(one).__name__}: it is no batch of events")
