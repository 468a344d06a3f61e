"""Values bound to a statement's placeholders."""

from collections.abc import Mapping, Sequence
from typing import Any

from lakestore.errors import InvalidInputError
from lakestore.nesting import TooDeep, levels

Parameters = Sequence[Any] | Mapping[str, Any] | None


def check(parameters: Parameters) -> None:
    """Refuse what DuckDB cannot bind and does not refuse itself.

    Raises:
        InvalidInputError: a text with half a character (a lone surrogate), for which DuckDB 1.5
            raises a bare RuntimeError; or a value nested too deeply.
    """
    try:
        for level in levels([parameters]):
            for value in level:
                if isinstance(value, str):
                    value.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"{error.object!r} is not text: {error.reason}") from error
    except TooDeep as error:
        raise InvalidInputError(f"parameters: {error}") from error
