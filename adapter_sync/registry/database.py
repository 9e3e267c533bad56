"""The registry's connections: a database at the newest schema, and its three kinds of transaction.

Knows no table but the change counter.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from sqlalchemy import Connection, Engine, update
from sqlalchemy.exc import DatabaseError

from adapter_sync.errors import ConfigurationError
from adapter_sync.registry.migrations import upgrade
from adapter_sync.registry.sqlite import schema_lock, sqlite_engine, sqlite_file, writing
from adapter_sync.registry.tables import change_counter


class Database:
    """A pool of connections, safe to use from many threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writing_engine = writing(engine)

    @classmethod
    def open(cls, url: str) -> Self:
        """The database at the newest schema; an SQLite file is created where there is none.

        Raises ConfigurationError when it can't be opened.
        """
        file = sqlite_file(url)
        engine = sqlite_engine(file)
        database = cls(engine)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with schema_lock(file), database.writing() as connection:
                upgrade(connection)
        except (DatabaseError, OSError) as error:
            engine.dispose()
            reason = error.orig if isinstance(error, DatabaseError) else error
            raise ConfigurationError(f"The registry {file} can't be opened: {reason}") from error
        except ConfigurationError:
            engine.dispose()
            raise
        return database

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A consistent view."""
        with self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that commits at the end, unless an error leaves it."""
        with self._writing_engine.begin() as connection:
            yield connection

    @contextmanager
    def changing(self) -> Iterator[Connection]:
        """A write that may change adapters or base models; it counts as a change.

        Counting comes first, because it also locks: the counter's row lets one change at a time
        through on every database, so what a change reads stays true until it commits. One that
        finds nothing to change rolls back and so isn't counted.
        """
        with self.writing() as connection:
            connection.execute(update(change_counter).values(value=change_counter.c.value + 1))
            yield connection
