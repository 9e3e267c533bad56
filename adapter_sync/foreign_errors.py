"""What a fault of the disk or of the registry's database means: the one place that knows them.

Neither is the client's fault, and both pass: a full disk when somebody makes room, a locked
registry or a server that is away by themselves.
"""

import errno
import sqlite3

from psycopg import errors as postgresql
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from adapter_sync.errors import (
    RegistryUnavailableError,
    StorageFullError,
    StorageUnavailableError,
    TransientError,
)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_UNAVAILABLE = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE),
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EMFILE, errno.ENFILE),
    }
)
_SQLITE_PASSING = frozenset(
    {
        *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL),
        *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN),
    }
)


def passing_fault(error: BaseException) -> TransientError | None:
    """The fault as an error of ours; None for an error that is no fault of disk or database."""
    if isinstance(error, TransientError):
        return error
    if isinstance(error, PoolTimeoutError):
        return RegistryUnavailableError()
    if isinstance(error, DBAPIError):
        return _database_fault(error)
    if isinstance(error, OSError) and error.errno in _FULL:
        return StorageFullError()
    if isinstance(error, OSError) and error.errno in _UNAVAILABLE:
        return StorageUnavailableError()
    return None


def _database_fault(error: DBAPIError) -> TransientError | None:
    if isinstance(error.orig, sqlite3.Error):
        # https://www.sqlite.org/rescode.html; the low byte is the primary code.
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return StorageFullError()
        return RegistryUnavailableError() if code in _SQLITE_PASSING else None
    if isinstance(error.orig, postgresql.DiskFull):
        return StorageFullError()
    is_passing = isinstance(error, InterfaceError | OperationalError)
    return RegistryUnavailableError() if is_passing else None
