"""The registry's connections: a database at the newest schema, and its three kinds of transaction.

Knows no table but the change counter.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Generic, Protocol, Self, TypeVar

from sqlalchemy import Connection, Engine, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError

from adapter_sync.errors import ConfigurationError
from adapter_sync.registry.migrations import upgrade
from adapter_sync.registry.patience import PATIENCE_S
from adapter_sync.registry.postgresql import PostgresqlBackend
from adapter_sync.registry.sqlite import SqliteBackend
from adapter_sync.registry.tables import change_counter

Value = TypeVar("Value")


class Watch(Protocol):
    """Wakes who waits for a change, whichever process makes it; used by one thread."""

    def wait(self, timeout_s: float) -> None:
        """Return soon after a write since the last wait, else after `timeout_s`.

        A write may be missed, and what wakes may be no change: whoever waits looks again.
        """

    def close(self) -> None:
        """Give back what it takes."""


class Backend(Protocol):
    """A kind of database: one engine, with the options of a reading and of a writing transaction.

    Writing transactions follow one another: each holds the database's write lock from its
    beginning. `place` names the database without its password.
    """

    place: str
    engine: Engine
    reading: Engine
    writing: Engine

    def schema_lock(self) -> AbstractContextManager[None]:
        """Held around the transaction that makes or upgrades the schema. Raises OSError."""

    def data_version(self) -> int | None:
        """Another one once anything was committed; None where a query is the only way to know."""

    def written(self) -> None:
        """Told after each writing transaction."""

    def opened(self) -> None:
        """Told once the schema is the newest."""

    def check_place(self) -> None:
        """Raise RegistryReplacedError when it is no longer the database that was opened."""

    def watch(self) -> Watch:
        """Wakes who waits for writing transactions."""

    def close(self) -> None:
        """Close every connection."""


class Database:
    """A pool of connections, safe to use from many threads."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @property
    def place(self) -> str:
        """Names the database, without its password."""
        return self._backend.place

    @classmethod
    def open(cls, url: str, *, patience_s: float = PATIENCE_S) -> Self:
        """The database at the newest schema; an SQLite file is created where there is none.

        Who finds it locked, or all of its connections taken, waits for `patience_s`.

        Raises ConfigurationError when it can't be opened.
        """
        backend = _backend(url, patience_s)
        database = cls(backend)
        try:
            with backend.schema_lock(), database.writing() as connection:
                upgrade(connection)
        except (DatabaseError, OSError) as error:
            database.close()
            reason = error.orig if isinstance(error, DatabaseError) else error
            raise ConfigurationError(
                f"The registry {backend.place} can't be opened: {reason}"
            ) from error
        except ConfigurationError:
            database.close()
            raise
        backend.opened()
        return database

    def close(self) -> None:
        """Close every connection."""
        self._backend.close()

    def check_place(self) -> None:
        """Raise RegistryReplacedError when it is no longer the database that was opened."""
        self._backend.check_place()

    def data_version(self) -> int | None:
        """Another one once anything was committed; None where a query is the only way to know."""
        return self._backend.data_version()

    def watch(self) -> Watch:
        """Wakes who waits for writing transactions."""
        return self._backend.watch()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A consistent view. Raises RegistryReplacedError."""
        self._backend.check_place()
        with self._backend.reading.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that commits at the end, unless an error leaves it.

        One at a time on every database: what it reads stays true until it commits, and the audit's
        numbers grow in the order of the commits. Raises RegistryReplacedError.
        """
        self._backend.check_place()
        with self._backend.writing.begin() as connection:
            yield connection
        self._backend.written()

    @contextmanager
    def changing(self) -> Iterator[Connection]:
        """A write that may change adapters or base models; it counts as a change.

        One that finds nothing to change rolls back and so isn't counted.
        """
        with self.writing() as connection:
            connection.execute(update(change_counter).values(value=change_counter.c.value + 1))
            yield connection


class Remembered(Generic[Value]):
    """What is asked many times a second: read anew only when something was committed since."""

    def __init__(self, database: Database, read: Callable[[Connection], Value]) -> None:
        self._database = database
        self._read = read
        self._known: tuple[int, Value] | None = None

    def value(self) -> Value:
        """The value now, whoever changed it."""
        version, known = self._database.data_version(), self._known
        if known is not None and known[0] == version:
            return known[1]
        with self._database.reading() as connection:
            value = self._read(connection)
        if version is not None:
            self._known = (version, value)
        return value


def select_change_counter(connection: Connection) -> int:
    """Grows with every transaction of Database.changing."""
    value: int = connection.execute(select(change_counter.c.value)).scalar_one()
    return value


def _backend(url: str, patience_s: float) -> Backend:
    """Raises ConfigurationError for a URL of no database that is known here."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigurationError(f"The registry's URL can't be read: {error}") from error
    match parsed.get_backend_name():
        case "sqlite":
            return SqliteBackend(parsed, patience_s=patience_s)
        case "postgresql":
            return PostgresqlBackend(parsed, patience_s=patience_s)
    raise ConfigurationError(
        "The registry's URL has to be postgresql+psycopg://USER:PASSWORD@HOST/DATABASE or "
        f"sqlite:///FILE; it is {parsed.render_as_string(hide_password=True)}."
    )
