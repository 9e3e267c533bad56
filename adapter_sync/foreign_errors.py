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


def passing_fault(error: BaseException) -> TransientError | None:
    """The fault as an error of ours; None for an error that is no fault of disk or database."""
    if isinstance(error, TransientError):
        return error
    if isinstance(error, DBAPIError) and _is_full(error.orig):
        return StorageFullError()
    if isinstance(error, PoolTimeoutError | InterfaceError | OperationalError):
        return RegistryUnavailableError()
    if isinstance(error, OSError) and error.errno in _FULL:
        return StorageFullError()
    if isinstance(error, OSError) and error.errno in _UNAVAILABLE:
        return StorageUnavailableError()
    return None


def _is_full(error: BaseException | None) -> bool:
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return isinstance(error, postgresql.DiskFull)
