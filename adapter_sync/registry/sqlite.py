"""All that is special to SQLite: how its engine is opened, its transactions, its schema lock."""

import contextlib
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from inotify_simple import INotify, flags
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL

from adapter_sync.errors import ConfigurationError, RegistryReplacedError
from adapter_sync.registry.patience import PATIENCE_S

log = structlog.get_logger(__name__)

# As many as the gateway's thread pool has threads, so that none waits for a connection.
CONNECTIONS = 40
_WRITES = "registry_writes"


class SqliteBackend:
    """A registry in one file, made where there is none."""

    def __init__(self, url: URL, *, patience_s: float) -> None:
        """Raise ConfigurationError for a URL that names no file.

        Who finds the database locked waits for `patience_s`.
        """
        if url.database in (None, "", ":memory:"):
            raise ConfigurationError(
                f"The registry's URL has to name a file, sqlite:///FILE; it is {url}."
            )
        self._file = Path(str(url.database))
        self.place = str(self._file)
        self.engine = self.reading = sqlite_engine(self._file, patience_s=patience_s)
        self.writing = writing(self.engine)
        self._looking = threading.Lock()
        self._looker: sqlite3.Connection | None = None
        self._opened: int | None = None

    def opened(self) -> None:
        """Hold on to the file that it is, so that no other one gets its inode.

        By a descriptor that only names it: closing any other one would end SQLite's locks.
        https://www.sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_
        """
        self._opened = os.open(self._file, os.O_PATH | os.O_CLOEXEC)

    def check_place(self) -> None:
        """Raise RegistryReplacedError when the path no longer leads to the file that was opened.

        SQLite would go on in the old one, and lose with its last process all that was written.
        """
        if self._opened is None:
            return
        try:
            is_the_same = os.path.samestat(os.fstat(self._opened), self._file.stat())
        except FileNotFoundError:
            is_the_same = False
        if not is_the_same:
            raise RegistryReplacedError(place=self.place)

    @contextmanager
    def schema_lock(self) -> Iterator[None]:
        """Held while the schema is upgraded. Raises OSError."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with schema_lock(self._file):
            yield

    def data_version(self) -> int | None:
        """https://www.sqlite.org/pragma.html#pragma_data_version of a connection that only looks.

        It takes a few microseconds, a transaction tens of them. None when the file can't be asked.
        Raises RegistryReplacedError.
        """
        self.check_place()
        with self._looking:
            try:
                if self._looker is None:
                    # Never making a file: one that is gone is not to come back empty.
                    uri = f"{self._file.resolve().as_uri()}?mode=rw"
                    self._looker = sqlite3.connect(uri, uri=True, check_same_thread=False)
                version: int = self._looker.execute("PRAGMA data_version").fetchone()[0]
            except sqlite3.Error:
                return None
            return version

    def written(self) -> None:
        """Touch a file beside the database, which every Watch looks at.

        SQLite's own files do not tell: what is in them counts only when the index in shared memory
        says so.
        """
        with contextlib.suppress(OSError):
            _bell(self._file).touch()

    def watch(self) -> "FileWatch":
        """Wakes who waits for writing transactions."""
        return FileWatch(_bell(self._file))

    def close(self) -> None:
        """Close every connection."""
        with self._looking:
            if self._looker is not None:
                self._looker.close()
                self._looker = None
        self.engine.dispose()
        if self._opened is not None:
            os.close(self._opened)
            self._opened = None


class FileWatch:
    """Wakes when the file is touched; where inotify has no room for it, after the time-out only.

    https://man7.org/linux/man-pages/man7/inotify.7.html
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._inotify: INotify | None = None
        try:
            self._inotify = INotify()
            self._begin(self._inotify)
        except OSError as error:
            self.close()
            log.warning("registry.not_watched", file=str(file), error=str(error))

    def wait(self, timeout_s: float) -> None:
        """Return soon after a touch since the last wait, else after `timeout_s`."""
        if self._inotify is None:
            time.sleep(timeout_s)
            return
        events = self._inotify.read(timeout=int(timeout_s * 1000))
        if any(event.mask & flags.IGNORED for event in events):
            # The file was deleted: with the folder, or to be replaced by a backup's.
            with contextlib.suppress(OSError):
                self._begin(self._inotify)

    def _begin(self, inotify: INotify) -> None:
        self._file.touch()
        inotify.add_watch(self._file, flags.ATTRIB)

    def close(self) -> None:
        """Give back the inotify instance."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None


def _bell(database: Path) -> Path:
    return database.with_name(f"{database.name}.written")


def sqlite_engine(file: Path, *, patience_s: float = PATIENCE_S) -> Engine:
    """An engine in WAL mode with foreign keys on.

    The driver's own transactions are off, because they begin too late: a write that begins with
    a read would fail as soon as another process writes in between, whatever the time-out.
    """
    engine = create_engine(
        URL.create("sqlite", database=str(file)),
        connect_args={"timeout": patience_s},
        pool_timeout=patience_s,
        pool_size=CONNECTIONS,
        max_overflow=0,
    )
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def writing(engine: Engine) -> Engine:
    """The same engine, whose transactions take the write lock when they begin."""
    return engine.execution_options(**{_WRITES: True})


@contextmanager
def schema_lock(file: Path) -> Iterator[None]:
    """Held while the schema is looked at and upgraded: one process at a time.

    A file beside the database, because switching to WAL mode is not covered by SQLite's own
    time-out. The system frees it when its process dies.
    """
    with file.with_name(f"{file.name}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _prepare(connection: sqlite3.Connection, record: object) -> None:
    del record
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode = WAL").close()
    connection.execute("PRAGMA foreign_keys = ON").close()


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN DEFERRED")
