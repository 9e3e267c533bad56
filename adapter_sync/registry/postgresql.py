"""All that is special to PostgreSQL: how its engine is opened, and its transactions."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import structlog
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL

from adapter_sync.registry.patience import PATIENCE_S

log = structlog.get_logger(__name__)

# Of each process, and few: a server takes 100 connections unless told otherwise.
CONNECTIONS = 10
ANSWER_S = 5.0
"""How much longer than for a lock a statement's answer may take. A server that was stopped never
says that it is not there: only the client's clock tells."""
IDLE_TIMEOUT_S = 60
"""A process that is stopped in mid-transaction must not hold up the others for ever."""
WRITE_LOCK = 0x4C6F5241
"""The advisory lock's number in the registry's database: "LoRA"."""
CHANNEL = "lora_registry_written"
_LISTENING = {
    "autocommit": True,
    "connect_timeout": 10,
    # It says nothing itself: what lies between must not forget it, or it would never notice.
    "keepalives_idle": 60,
}
"""Unless the URL says otherwise."""
_WRITES = "registry_writes"


class _ImpatientConnection(psycopg.Connection[Any]):
    """A connection that is given up when the server does not answer in time."""

    answer_within_s = 2 * PATIENCE_S

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """Raise OperationalError when the server has not answered in time."""
        try:
            return super().wait(gen, interval, timeout or self.answer_within_s)
        except psycopg.errors._WaitTimeout as error:  # noqa: SLF001 - it has no public name
            self.pgconn.finish()
            waited = f"within {self.answer_within_s:g} s"
            raise psycopg.OperationalError(f"the server did not answer {waited}") from error


class PostgresqlBackend:
    """A registry in a database of its own on a PostgreSQL server, through psycopg."""

    def __init__(self, url: URL, *, patience_s: float) -> None:
        """Who finds the database locked, or all connections taken, waits for `patience_s`."""
        self._patience_s = patience_s
        self._is_open = False
        self.place = url.render_as_string(hide_password=True)
        self.engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args={
                "connect_timeout": max(2, round(patience_s)),
                "options": f"-c lock_timeout={patience_s:g}s "
                f"-c idle_in_transaction_session_timeout={IDLE_TIMEOUT_S}s",
            },
            pool_size=CONNECTIONS,
            pool_timeout=patience_s,
            max_overflow=0,
            # The server may have been started anew since the connection was used last.
            pool_pre_ping=True,
        )
        event.listen(self.engine, "do_connect", self._connect)
        event.listen(self.engine, "begin", _begin)
        event.listen(self.engine, "before_cursor_execute", _without_nul, retval=True)
        self.reading: Engine = self.engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        self.writing: Engine = self.engine.execution_options(**{_WRITES: True})

    def _connect(
        self, _dialect: object, _record: object, arguments: Any, options: Any
    ) -> psycopg.Connection[Any]:
        connection = _ImpatientConnection.connect(*arguments, **options)
        if self._is_open:
            connection.answer_within_s = self._patience_s + ANSWER_S
        return connection

    @contextmanager
    def schema_lock(self) -> Iterator[None]:
        """Nothing more than a writing transaction: its lock and its DDL are the server's."""
        yield

    def data_version(self) -> None:
        """Only a query tells."""

    def written(self) -> None:
        """The server has told every Watch already."""

    def opened(self) -> None:
        """From now on statements are short ones: those of an upgrade may take long."""
        self._is_open = True
        self.engine.dispose()

    def check_place(self) -> None:
        """Nothing to check: the server tells where its database is."""

    def watch(self) -> "ChannelWatch":
        """Wakes who waits for writing transactions."""
        return ChannelWatch(self.engine)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


class ChannelWatch:
    """Wakes when the server tells of a write, and keeps to the time-outs while it is away.

    A connection of its own, outside the pool, from the first wait on.
    https://www.postgresql.org/docs/current/sql-listen.html
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: psycopg.Connection | None = None

    def wait(self, timeout_s: float) -> None:
        """Return soon after a write since the last wait, else after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        try:
            if self._connection is None:
                arguments, options = self._engine.dialect.create_connect_args(self._engine.url)
                self._connection = psycopg.connect(*arguments, **{**_LISTENING, **options})
                self._connection.execute(f"LISTEN {CHANNEL}")
            for _ in self._connection.notifies(timeout=timeout_s, stop_after=1):
                return
        except psycopg.Error as error:
            if self._connection is not None:
                log.warning("registry.not_listening", error=str(error))
            self.close()
            time.sleep(max(0, deadline - time.monotonic()))

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _begin(connection: Connection) -> None:
    """One write at a time, as on SQLite: what a write reads stays true until it commits.

    With the commit the server tells every ChannelWatch.

    Each statement after the lock sees what was committed before it (READ COMMITTED).
    """
    if connection.get_execution_options().get(_WRITES, False):
        connection.execute(
            text("SELECT pg_advisory_xact_lock(:key), pg_notify(:channel, '')"),
            {"key": WRITE_LOCK, "channel": CHANNEL},
        )


def _without_nul(
    connection: Connection,  # noqa: ARG001 - SQLAlchemy looks at the names
    cursor: Any,  # noqa: ARG001
    statement: str,
    parameters: Any,
    context: Any,  # noqa: ARG001
    executemany: bool,  # noqa: ARG001, FBT001
) -> tuple[str, Any]:
    """PostgreSQL's text can't hold NUL, which a client may put into an id: no row has it."""
    if isinstance(parameters, dict):
        return statement, _mended(parameters)
    return statement, [_mended(each) for each in parameters] if parameters else parameters


def _mended(parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.replace("\0", "\ufffd") if isinstance(value, str) else value
        for name, value in parameters.items()
    }
