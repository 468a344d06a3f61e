"""Where a command's lake is: a folder or an S3 URL, with options that every command takes."""

import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import Annotated, Any

import typer

import lakestore
from lakestore.errors import NotFoundError
from lakestore.layout import LAKE_FILE
from lakestore.opening import place
from lakestore.storage.local import LocalStorage

_Options = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="For S3, such as AWS_ENDPOINT_URL=…; secrets are better in the environment "
        "(repeatable).",
    ),
]
_Local = Annotated[
    str | None, typer.Option(metavar="DIR", help="Where this host keeps its part of the lake.")
]
_Catalog = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Postgres for the catalog, if hosts share it; or $LAKESTORE_CATALOG. Leave the "
        "password to PGPASSWORD.",
    ),
]
_given: ContextVar[dict[str, Any]] = ContextVar("given")


def placed(verb: Callable[..., None]) -> Callable[..., None]:
    """A command that, when it takes a lake, takes the options above too."""
    signature = inspect.signature(verb)
    if "lake" not in signature.parameters:
        return verb

    @functools.wraps(verb)
    def taking(
        *arguments: Any,
        storage_option: list[str] | None,
        local: str | None,
        catalog: str | None,
        **more: Any,
    ) -> None:
        options = _parsed(storage_option or ())
        given = {"storage_options": options, "local": local, "catalog": catalog}
        token = _given.set({name: value for name, value in given.items() if value})
        try:
            verb(*arguments, **more)
        finally:
            _given.reset(token)

    kind = inspect.Parameter.KEYWORD_ONLY
    extra = [
        inspect.Parameter("storage_option", kind, default=None, annotation=_Options),
        inspect.Parameter("local", kind, default=None, annotation=_Local),
        inspect.Parameter("catalog", kind, default=None, annotation=_Catalog),
    ]
    parameters = [*signature.parameters.values(), *extra]
    taking.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    taking.__annotations__ = verb.__annotations__ | {
        "storage_option": _Options,
        "local": _Local,
        "catalog": _Catalog,
    }
    return taking


def open_lake(lake: str, **options: Any) -> lakestore.Lake:
    """Open the lake that a command was given; raises as `lakestore.open`."""
    return lakestore.open(lake, **(given() | options))


def open_existing(lake: str, **options: Any) -> lakestore.Lake:
    """Open a lake to write, and never make one by a mistyped path.

    Raises:
        NotFoundError: there is no lake.
    """
    if not exists(lake):
        raise NotFoundError(f"no lake at {lake!r}: `lakestore init` makes one")
    return open_lake(lake, **({"upkeep": "manual"} | options))


def exists(lake: str) -> bool:
    """Whether there is a lake; a file is left to `open`, which says what is wrong with it."""
    storage = place(lake, **given()).storage
    if isinstance(storage, LocalStorage) and storage.folder.is_file():
        return True
    return storage.size(LAKE_FILE) is not None


def given() -> dict[str, Any]:
    """The options of this command, as `lakestore.open` takes them."""
    return dict(_given.get({}))


def _parsed(values: list[str] | tuple[()]) -> dict[str, str]:
    options = {}
    for one in values:
        key, equals, value = one.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{key!r} is not KEY=VALUE", param_hint="--storage-option")
        options[key] = value
    return options
