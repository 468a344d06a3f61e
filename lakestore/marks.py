"""Marks: what each site says of a table, which is before which moment all is cold that it accepted.

They are microseconds since 1970, and only grow, but for a site that was retired and joins anew.
"""

from collections.abc import Mapping

from lakestore.errors import ConflictError

UNKNOWN = 1
"""The mark of a site that has rows which it cannot tell the time of."""
RETIRED = 2**63 - 1
"""The mark of a site that is not waited for: the end of time, so the least of all still holds."""


def living(marks: Mapping[str, int]) -> dict[str, int]:
    """The marks of the sites that were not retired."""
    return {site: mark for site, mark in marks.items() if mark != RETIRED}


def least(marks: Mapping[str, int]) -> int:
    """The mark that holds for the table; 0 while a site never said."""
    return min(living(marks).values(), default=0)


def next_mark(marks: Mapping[str, int], site: str, said: int | None) -> int | None:
    """The mark of a site that says something, if only that it is there; None: as it was. Pure.

    One that was retired joins where the table's mark is: lower, and that would go back; higher,
    and it would go on without the rows that the site has not sealed.
    """
    before = marks.get(site, 0)
    if before == RETIRED:
        return max(said or 0, least(marks))
    return said if said is not None and said > before else None


def check_retirable(marks: Mapping[str, int], site: str, said: int) -> None:
    """Raise `ConflictError` when a site is not to be retired any more.

    Args:
        said: its mark when it was taken to be gone.
    """
    if marks.get(site) != said:
        raise ConflictError(f"site {site!r} said something meanwhile: it is not gone")
    if not living(marks).keys() - {site}:
        raise ConflictError(f"site {site!r} is the last one: there is nobody to go on without it")
