"""Every name on disk, built here and parsed back here; nothing else knows one.

    <root>/lakestore.json  lake.duckdb
    <root>/tables/<table>/schema/0001.toml  0001.parquet
    <root>/tables/<table>/dropped.json
    <root>/tables/<table>/data/day=2026-11-22/<site>-<first>-<last>-<part>-<sha12>.parquet
    <root>/tables/<table>/data/_delta_log/00000000000000000017.json
    <root>/tables/<table>/_rollups/<name of a cold file>.<rollup>-<definition>.parquet
    <root>/tables/<table>/_replaced/<uuid>.json
    <root>/tables/<table>/_payload/day=2026-11-22/<site>-<bytes>-<sha12>.parquet
    <local>/catalog.sqlite               or site.json, when sites share a catalog in Postgres
    <local>/writers/<writer>
    <local>/journal/<table>/<writer>/000017.journal
    <local>/hot/<table>/<first>-<last>-<sha12>.parquet  .duckdb
    <local>/payload/<table>/day=2026-11-22/<site>-<bytes>-<sha12>.parquet   until they are sealed
    <local>/ids/<table>/<cold file>.ids
    <local>/rollups/<table>/<segment or cold file>.<rollup>-<definition>.parquet
    <local>/files/                       copies of objects in a store
    <local>/staging/<writer>/
    <local>/quarantine/<time>-<number>/<where it was>

A name that does not parse is a `CorruptionError`, never a default.
"""

import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from lakestore.errors import CorruptionError, InvalidInputError

LAKE_FILE = "lakestore.json"
SITE_FILE = "site.json"
VIEWS_FILE = "lake.duckdb"
TABLE_NAME = re.compile(r"(?!(?i:lakestore_))[A-Za-z][A-Za-z0-9_]{0,62}")
WRITER_NAME = re.compile(r"[0-9a-f]{16}")
_JOURNAL = re.compile(r"(\d{6,})\.journal")
_SEGMENT = re.compile(r"(\d{6,})-(\d{6,})-([0-9a-f]{12})\.parquet")
_SCHEMA = re.compile(r"(\d{4,})\.(?:toml|parquet|payload\.parquet)")
_LOG_VERSION = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint(?:\.\d{10}\.(\d{10}))?\.parquet")
PARTITIONS = ("day", "event_day", "event_day_utc", "lakestore_day")
"""What a partition column may be called: the first that is no column of the table."""
_DAY = re.compile(rf"({'|'.join(PARTITIONS)})=(\d{{4}}-\d{{2}}-\d{{2}})")
_RECORD = re.compile(r"[0-9a-f]{32}\.json")
_PARTIAL = re.compile(r"(.+)\.([a-z][a-z0-9_]{0,62})-([0-9a-f]{8})\.parquet")
_PAYLOAD = re.compile(r"day=(\d{4}-\d{2}-\d{2})/([0-9a-f]{8})-(\d+)-([0-9a-f]{12})\.parquet")
_COLD = re.compile(r"([0-9a-f]{8})-(\d{6,})-(\d{6,})-(\d{4,})-([0-9a-f]{12})\.parquet")


def check_table_name(name: str) -> str:
    """`name`, when it can name a table.

    Raises:
        InvalidInputError: it is not a letter followed by at most 62 letters, digits or `_`.
    """
    if not isinstance(name, str) or not TABLE_NAME.fullmatch(name):
        shown = repr(name) if len(repr(name)) <= 80 else repr(name)[:77] + "…"
        raise InvalidInputError(
            f"table name {shown} is not allowed: "
            "use a letter, then at most 62 letters, digits or underscores, and no 'lakestore_'"
        )
    return name


def split_folder(folder: str) -> tuple[str, int]:
    """A table's name, and the how manieth folder of that name: `name`, `name-2`, …"""
    name, _, number = folder.partition("-")
    return name, int(number) if number.isdecimal() else 1


@dataclass(frozen=True)
class SegmentName:
    """Name of one hot segment: the numbers it covers and the head of its sha256."""

    first: int
    last: int
    sha12: str

    def __str__(self) -> str:
        return f"{self.first:06d}-{self.last:06d}-{self.sha12}.parquet"

    @classmethod
    def parse(cls, name: str) -> "SegmentName":
        """The inverse of `str`; raises `CorruptionError`."""
        match = _SEGMENT.fullmatch(name)
        if match is None:
            raise CorruptionError(f"{name!r} is not the name of a hot segment")
        return cls(int(match[1]), int(match[2]), match[3])


@dataclass(frozen=True)
class ColdName:
    """Name of one cold file, relative to its table's `data` folder."""

    day: date
    site: str
    first: int
    last: int
    part: int
    sha12: str
    partition: str = "day"
    """What the folder calls the day; a Delta table with a column `day` needs another name."""

    def __str__(self) -> str:
        return (
            f"{self.partition}={self.day.isoformat()}/"
            f"{self.site}-{self.first:06d}-{self.last:06d}-{self.part:04d}-{self.sha12}.parquet"
        )

    @classmethod
    def parse(cls, name: str) -> "ColdName":
        """The inverse of `str`; raises `CorruptionError`."""
        folder, _, file = name.partition("/")
        day, match = _DAY.fullmatch(folder), _COLD.fullmatch(file)
        if day is None or match is None:
            raise CorruptionError(f"{name!r} is not the name of a cold file")
        try:
            parsed = date.fromisoformat(day[2])
        except ValueError as error:
            raise CorruptionError(f"{name!r} names no day") from error
        site, first, last, part, sha12 = match.groups()
        return cls(parsed, site, int(first), int(last), int(part), sha12, day[1])


def is_cold_name(name: str) -> bool:
    """Whether that is the name of a cold file of ours."""
    try:
        ColdName.parse(name)
    except CorruptionError:
        return False
    return True


@dataclass(frozen=True)
class PartialName:
    """Name of a data file's partial; one of another definition has another name."""

    file: str
    """Name of the segment or cold file."""
    rollup: str
    definition: str

    def __str__(self) -> str:
        return f"{self.file.removesuffix('.parquet')}.{self.rollup}-{self.definition}.parquet"

    @property
    def flat(self) -> str:
        """The same as the name of a file that is in no folder."""
        return str(self).replace("/", "-")

    @classmethod
    def parse(cls, name: str) -> "PartialName":
        """The inverse of `str`; raises `CorruptionError`."""
        match = _PARTIAL.fullmatch(name)
        if match is None:
            raise CorruptionError(f"{name!r} is not the name of a partial")
        return cls(f"{match[1]}.parquet", match[2], match[3])


@dataclass(frozen=True)
class PayloadName:
    """Name of one payload file, the same beside segments and in the root.

    It says how long the file is, so that nobody has to ask a store.
    """

    day: date
    site: str
    bytes: int
    sha12: str

    def __str__(self) -> str:
        return f"day={self.day.isoformat()}/{self.site}-{self.bytes}-{self.sha12}.parquet"

    @classmethod
    def parse(cls, name: str) -> "PayloadName":
        """The inverse of `str`; raises `CorruptionError`."""
        match = _PAYLOAD.fullmatch(name)
        try:
            if match is not None:
                day, site, size, sha12 = match.groups()
                parsed = cls(date.fromisoformat(day), site, int(size), sha12)
                if str(parsed) == name:
                    return parsed
        except ValueError:
            pass
        raise CorruptionError(f"{name!r} is not the name of a payload file")


@dataclass(frozen=True)
class PayloadReference:
    """Where the payload of an event is: a payload file, and the number of a row in it."""

    name: PayloadName
    row: int

    def __str__(self) -> str:
        return f"{self.name}#{self.row}"

    @classmethod
    def parse(cls, text: str) -> "PayloadReference":
        """The inverse of `str`; raises `CorruptionError`."""
        name, _, row = text.rpartition("#")
        if not (row.isascii() and row.isdecimal()):
            raise CorruptionError(f"{text!r} refers to no payload")
        return cls(PayloadName.parse(name), int(row))


def journal_name(generation: int) -> str:
    """File name of a journal generation."""
    return f"{generation:06d}.journal"


def parse_journal_name(name: str) -> int | None:
    """The generation, or None when `name` is not that of a journal."""
    match = _JOURNAL.fullmatch(name)
    return int(match[1]) if match else None


@dataclass(frozen=True)
class SiteLayout:
    """Folders of one site: the local state of one host."""

    local: Path

    @property
    def catalog(self) -> Path:
        """The SQLite catalog."""
        return self.local / "catalog.sqlite"

    @property
    def writers(self) -> Path:
        """Folder of the writers' locks."""
        return self.local / "writers"

    def lies_apart_from(self, root: Path) -> bool:
        """Whether neither the site is among the tables of the lake in `root`, nor the lake in it.

        Dropping a table would delete the one, and a sweep the other. Links are followed.
        """
        lake, site = root.resolve(), self.local.resolve()
        names = ("hot", "payload", "journal", "ids", "rollups", "staging", "writers", "quarantine")
        inside = any(lake.is_relative_to(site / name) for name in names)
        return not inside and not site.is_relative_to(lake / "tables")

    def staging_of(self, writer: str) -> Path:
        """Files that a writer has not yet published; swept when it is dead."""
        return self.local / "staging" / writer

    @property
    def quarantine(self) -> Path:
        """Where `verify --repair` and `rebuild` move files; nothing reads or deletes them there."""
        return self.local / "quarantine"

    def journals(self, table: str) -> Path:
        """Folder of a table's writers."""
        return self.local / "journal" / table

    def writer(self, table: str, writer: str) -> Path:
        """Folder of one writer's journals."""
        return self.journals(table) / writer

    def hot(self, table: str) -> Path:
        """Folder of a table's segments."""
        return self.local / "hot" / table

    def payload(self, table: str) -> Path:
        """Folder of the payload files of a table's segments."""
        return self.local / "payload" / table

    @property
    def files(self) -> Path:
        """Copies of objects that lie in a store; a cache."""
        return self.local / "files"

    def ids(self, table: str) -> Path:
        """Folder of cached id hashes of cold files."""
        return self.local / "ids" / table

    def rollups(self, table: str) -> Path:
        """Folder of partials that only this site needs: of its segments, and copies."""
        return self.local / "rollups" / table


def schema_key(table: str, version: int, suffix: str = "toml") -> str:
    """Key of a schema version's document, or of a zero-row file.

    Suffix `parquet`: of one like its data files, `payload.parquet`: like its payload files.
    """
    return f"tables/{table}/schema/{version:04d}.{suffix}"


def parse_schema_name(name: str) -> int | None:
    """The schema version of a document or a zero-row file, or None."""
    match = _SCHEMA.fullmatch(name)
    return int(match[1]) if match else None


def tombstone_key(table: str) -> str:
    """Key of the file that says that a table was dropped."""
    return f"tables/{table}/dropped.json"


def ids_name(cold_file: str) -> str:
    """File name of the cached id hashes of a cold file."""
    return cold_file.replace("/", "-") + ".ids"


def data_prefix(table: str) -> str:
    """Key prefix of a table's cold files."""
    return f"tables/{table}/data/"


def data_name(name: str) -> str:
    """`name`, when it can be that of a cold file, be it another engine's: one inside its folder.

    Raises:
        CorruptionError: it cannot.
    """
    parts = name.split("/")
    inside = all(part not in ("", ".", "..") for part in parts) and parts[0] != "_delta_log"
    if not inside or not name.endswith(".parquet"):
        raise CorruptionError(f"{name!r} is not the name of a cold file")
    return name


def rollups_prefix(table: str) -> str:
    """Key prefix of the partials of a table's cold files."""
    return f"tables/{table}/_rollups/"


def record_key(table: str, id: str = "") -> str:
    """Key of the record of a replacement; with no id, the prefix of all."""
    return f"tables/{table}/_replaced/{f'{id}.json' if id else ''}"


def is_record_name(name: str) -> bool:
    """Whether that is the name of a record of a replacement."""
    return _RECORD.fullmatch(name) is not None


def payload_key(table: str, name: str) -> str:
    """Key of a payload file; with no name, the prefix of all."""
    return f"tables/{table}/_payload/{name}"


def log_prefix(table: str) -> str:
    """Key prefix of a Delta table's log."""
    return f"{data_prefix(table)}_delta_log/"


def log_version_name(version: int) -> str:
    """Name of a version in a Delta log."""
    return f"{version:020d}.json"


def parse_log_version(name: str) -> int | None:
    """The version, or None when `name` is not that of one."""
    match = _LOG_VERSION.fullmatch(name)
    return int(match[1]) if match else None


def past_name(name: str) -> str:
    """`name`, when it is that of a version of a log, or of a checkpoint, that others stand for.

    Version 0 is none of these: it says that there is a log.

    Raises:
        CorruptionError: it is not.
    """
    if not (parse_log_version(name) or parse_checkpoint(name)):
        raise CorruptionError(f"{name!r} is no past version of a log")
    return name


def parse_checkpoint(name: str) -> tuple[int, int] | None:
    """The version and the parts of the checkpoint that a file is of, as `checkpoint_names` takes
    them; None when `name` is not that of one.
    """
    match = _CHECKPOINT.fullmatch(name)
    return (int(match[1]), int(match[2] or 0)) if match else None


def checkpoint_names(version: int, parts: int) -> list[str]:
    """Names of the files of a checkpoint; `parts` is 0 for one that is a single file."""
    stem = f"{version:020d}.checkpoint"
    if not parts:
        return [f"{stem}.parquet"]
    return [f"{stem}.{part + 1:010d}.{parts:010d}.parquet" for part in range(parts)]
