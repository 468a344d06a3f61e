"""A catalog in Postgres, which several sites share; each lake has a schema of its own there.

A catalog that is made again has a schema of another name: a process that knew the old one by heart
finds nothing there, and writes nothing into the new one.

A transaction that writes takes the lake's advisory lock first: what it reads then is the newest,
and nobody else commits meanwhile, as with SQLite. A connection lost during COMMIT leaves it open
whether it was done: each commit leaves a token, which is looked for once the server answers.
"""

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from secrets import token_hex
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.engine import Connection

import lakestore.catalog.tables as t
from lakestore.catalog.database import Database, Kind
from lakestore.catalog.strict import damage
from lakestore.errors import (
    CommitUncertainError,
    ConflictError,
    CorruptionError,
    InvalidInputError,
    LakestoreError,
    LockedError,
    StorageError,
)

log = logging.getLogger("lakestore")

_SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")
_WAIT_S = 30
_UNCERTAIN_S = 90.0
"""How long the answer to a lost COMMIT is looked for; the server gives up after `_IDLE_S`."""
_IDLE_S = 60
"""A process that is stopped within a commit keeps the others waiting for this long at most."""
_TOKENS_KEPT = "1 hour"
_CONNECT = {
    "connect_timeout": 10,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "application_name": "lakestore",
    "prepare_threshold": None,  # or a pooler between us and the server could mix statements up
}
_LOCK_TIMEOUT, _NO_DATABASE, _NO_RELATION, _NO_COLUMN = "55P03", "3D000", "42P01", "42703"


class Postgres:
    """`Database` on a server that several hosts reach."""

    remedy = (
        "correct catalog= if it names another database, restore the server's backup, or let "
        "`lakestore rebuild` make the catalog again from the lake's files"
    )

    def __init__(self, url: str, lake: str, site: str) -> None:
        """The catalog of a lake; nothing is asked of the server yet.

        Args:
            url: `postgresql://user@host/database`; the password may be left to `PGPASSWORD` or
                `~/.pgpass`.
            site: which site asks; empty for a reader that has none.

        Raises:
            InvalidInputError: no such URL, or the extra `postgres` is not installed.
        """
        self._url = parse(url)
        self._lake = lake
        self._closed = False
        self.name = shown(self._url)
        self.site: str | None = site
        self._first_name = f"lakestore_{lake}"
        self._schema = self._first_name
        self._opened: str | None = None
        digest = hashlib.sha256(lake.encode()).digest()
        lock = int.from_bytes(digest[:8], "big", signed=True)
        self._begin = {
            "read": "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; ",
            # READ COMMITTED: each statement sees what was committed before the lock was had.
            "write": "BEGIN ISOLATION LEVEL READ COMMITTED; "
            f"SET LOCAL lock_timeout = '{_WAIT_S}s'; "
            f"SET LOCAL idle_in_transaction_session_timeout = '{_IDLE_S}s'; "
            "SELECT set_config('synchronous_commit', 'on', true) "
            "WHERE current_setting('synchronous_commit') = 'off'; "
            f"SELECT pg_advisory_xact_lock({lock}); ",
        }
        try:
            self._engine = sa.create_engine(
                self._url,
                isolation_level="AUTOCOMMIT",  # BEGIN and COMMIT are ours
                connect_args=_CONNECT,
                use_native_hstore=False,
            )
        except ImportError as error:
            raise InvalidInputError(
                "a catalog in Postgres needs psycopg: pip install 'lakestore[postgres]'"
            ) from error

    def __repr__(self) -> str:
        return f"<Postgres {self.name!r}>"  # the URL may have a password in it

    def open(self, *, write: bool, is_filled: Callable[[], bool]) -> None:
        """Find the lake's schema; raises as `begin`."""
        with self.begin("read") as con:
            self._opened = self._found(con)
        self._schema = self._opened or self._first_name

    def _found(self, con: Connection) -> str | None:
        """The lake's schema; None when there is none.

        Raises:
            CorruptionError: there are several, such as a backup beside what was made again.
        """
        query = sa.text(
            "SELECT CAST(nspname AS TEXT) FROM pg_namespace WHERE starts_with(nspname, :name)"
        )
        names = con.execute(query, {"name": self._first_name}).scalars()
        ours = re.compile(re.escape(self._first_name) + "(_[0-9a-f]{8})?")
        found = sorted(name for name in names if ours.fullmatch(name))
        if len(found) > 1:
            raise CorruptionError(
                f"{self.name!r} has several catalogs of one lake, {', '.join(found)}: rename or "
                "drop all of these schemas but one"
            )
        return found[0] if found else None

    def renew(self, con: Connection) -> str | None:
        """Within a commit: set the schema aside that there is, and go on in a new one.

        Returns:
            What the old one is called from then on; None when there was none.

        Raises:
            ConflictError: another one was made since this one was opened.
        """
        if self._found(con) != self._opened:
            raise ConflictError("another host has made the catalog again meanwhile")
        number, aside = token_hex(4), None
        if self._opened is not None:
            aside = f"lakestore_old_{number}_{self._lake}"
            con.exec_driver_sql(f'ALTER SCHEMA "{self._opened}" RENAME TO "{aside}"')
        self._schema = f"{self._first_name}_{number}"
        con.exec_driver_sql(self._path)
        return aside

    @property
    def _path(self) -> str:
        return f'SET LOCAL search_path = "{self._schema}"'

    def prepare(self, con: Connection) -> None:
        """Make the lake's schema, and in it what only Postgres needs."""
        con.exec_driver_sql(f'CREATE SCHEMA IF NOT EXISTS "{self._schema}"')
        con.exec_driver_sql(
            "CREATE TABLE IF NOT EXISTS commits (token TEXT PRIMARY KEY,"
            " committed_at TIMESTAMPTZ NOT NULL DEFAULT now())"
        )
        con.exec_driver_sql("CREATE INDEX IF NOT EXISTS commits_at ON commits (committed_at)")

    def scrub(self) -> str | None:
        """Nothing: that is the server's to do, which other lakes share."""
        return f"deleted lines of {self.name} stay there until its VACUUM, and in its log"

    def is_in_place(self) -> bool:
        """Whether the schema that was opened, or made, is still the lake's."""
        with self.begin("read") as con:
            return self._found(con) == self._schema

    def check(self, con: Connection) -> list[str]:
        """Relations and columns that are not as they were made."""
        inspector = sa.inspect(con)
        wrong = []
        for name, relation in t.metadata.tables.items():
            made = {column.name: bool(column.nullable) for column in relation.columns}
            there = inspector.has_table(name)
            columns = inspector.get_columns(name) if there else []
            if {column["name"]: column["nullable"] for column in columns} != made:
                wrong.append(f"relation {name!r} is not as it was made")
        return wrong

    def again(self) -> Database:
        """The same, with connections of its own."""
        url = self._url.render_as_string(hide_password=False)
        return Postgres(url, self._lake, self.site or "")

    def close(self) -> None:
        """Let every connection go."""
        self._closed = True
        self._engine.dispose()

    def begin(self, kind: Kind) -> AbstractContextManager[Connection]:
        """One transaction; raises as `Database.begin`."""
        commit = self._commit if kind == "write" else _end
        return self._transaction(self._begin[kind] + self._path, commit)

    @contextmanager
    def _transaction(
        self, begin: str, commit: Callable[[Connection], None]
    ) -> Iterator[Connection]:
        try:
            with self._begun(begin) as con:
                try:
                    yield con
                except BaseException:
                    if not con.invalidated:  # a lost connection has rolled it back
                        with suppress(sa.exc.DBAPIError):
                            con.exec_driver_sql("ROLLBACK")
                    raise
                commit(con)
                if (
                    self._closed and not con.invalidated
                ):  # meanwhile, by another thread: the pool would keep it
                    con.detach()
        except sa.exc.DBAPIError as error:
            raise self._translated(error) from error
        except (sa.exc.NoResultFound, sa.exc.MultipleResultsFound) as error:
            raise damage(repr(error)) from error

    def _begun(self, statement: str, tries: int = 2) -> Connection:
        """A connection with a transaction begun; one that the pool had may be dead by now."""
        con = self._engine.connect()
        try:
            con.exec_driver_sql(statement)
        except sa.exc.DBAPIError as error:
            con.close()
            if error.connection_invalidated and tries > 1:  # and with it all that the pool had
                return self._begun(statement, tries - 1)
            raise
        except BaseException:
            con.close()
            raise
        return con

    def _commit(self, con: Connection) -> None:
        """Commit, and know whether it was done."""
        token = uuid4().hex
        con.execute(sa.text("INSERT INTO commits (token) VALUES (:token)"), {"token": token})
        con.exec_driver_sql(
            f"DELETE FROM commits WHERE committed_at < now() - interval '{_TOKENS_KEPT}'"
        )
        try:
            _commit(con)
        except sa.exc.DBAPIError as error:
            if not error.connection_invalidated:
                raise
            if not self._is_committed(token, error):
                raise StorageError(
                    f"the connection to {self.name!r} was lost; nothing was committed"
                ) from error

    def _is_committed(self, token: str, lost: Exception) -> bool:
        """Whether the commit that left a token was done.

        The lock is taken first: a server that has not missed us yet may be at it still.
        """
        log.warning("the catalog's server was lost during a commit; looking whether it was done")
        deadline, pause = time.monotonic() + _UNCERTAIN_S, 0.05
        query = sa.text("SELECT count(*) FROM commits WHERE token = :token")
        while True:
            try:
                with self._begun(self._begin["write"] + self._path) as con:
                    found = con.execute(query, {"token": token}).scalar_one()
                    con.exec_driver_sql("ROLLBACK")
                    return bool(found)
            except sa.exc.DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) == _NO_RELATION:
                    return False  # it was to make the relation
                if time.monotonic() > deadline:
                    raise CommitUncertainError(
                        f"it is not known whether a commit at {self.name!r} was done: {error.orig}"
                    ) from lost
            time.sleep(pause)
            pause = min(2.0, pause * 2)

    def _translated(self, error: sa.exc.DBAPIError) -> LakestoreError:
        """What an error of Postgres means."""
        state = getattr(error.orig, "sqlstate", None)
        told = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else repr(state)
        if state == _LOCK_TIMEOUT:
            return LockedError(f"the catalog {self.name!r} stayed busy for {_WAIT_S} s: {told}")
        if state in (_NO_RELATION, _NO_COLUMN):
            return CorruptionError(
                f"the catalog {self.name!r} is damaged, or was made again meanwhile: {told}; open "
                f"the lake again, {self.remedy}"
            )
        if state == _NO_DATABASE:
            return StorageError(f"{told}: make it with `createdb`, or correct catalog=")
        return StorageError(f"the catalog {self.name!r} cannot be used: {told}")


def _end(con: Connection) -> None:
    """Of what was only read: the pool rolls it back, and nothing can fail any more."""


def _commit(con: Connection) -> None:
    con.exec_driver_sql("COMMIT")


def examine(url: str) -> tuple[str, bool]:
    """What the server of a URL is, and whether this user may make schemas there.

    Raises:
        InvalidInputError, StorageError: as `Postgres`.
    """
    database = Postgres(url, "none", "")
    query = (
        "SELECT current_setting('server_version'), "
        "has_database_privilege(current_database(), 'CREATE')"
    )
    try:
        with database.begin("read") as con:
            began = time.perf_counter()
            version, may_create = con.exec_driver_sql(query).one()
            took = 1000 * (time.perf_counter() - began)
    finally:
        database.close()
    return f"{database.name}, PostgreSQL {version}; {took:.1f} ms a request", bool(may_create)


def parse(url: str) -> sa.URL:
    """The URL of a database; raises `InvalidInputError`, which shows nothing of it."""
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        parsed = None
    if parsed is None or parsed.drivername not in _SCHEMES:
        raise InvalidInputError(
            "catalog= is a URL such as postgresql://user@host/database; without it, SQLite keeps "
            "the catalog"
        )
    return parsed.set(drivername="postgresql+psycopg")


def shown(url: sa.URL) -> str:
    """A URL for messages: where the server is, and no secret."""
    host = url.host or url.query.get("host") or "localhost"
    port = f":{url.port}" if url.port else ""
    return f"postgresql://{host}{port}/{url.database or ''}"
