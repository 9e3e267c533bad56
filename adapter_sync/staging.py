"""The staging folder: files on their way in, and the lock that guards the blobs.

Imports nothing of the project. Locks are flock's, which end with the process that holds them,
however it ends.
"""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_BLOBS_LOCK = "blobs.lock"


@contextmanager
def blobs_lock(staging: Path) -> Iterator[None]:
    """Hold the one lock around every change of the blobs together with the rows that use them.

    Without it an upload could find its content among the blobs, and somebody who has just found
    the same blob unused could remove it before the upload's row is there. So "add the blobs and
    create the row" and "forget the row and remove the blobs" each happen as a whole. It waits for
    other processes and threads, and is not reentrant.
    """
    staging.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(staging / _BLOBS_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def staged_file(folder: Path) -> Iterator[Path]:
    """Give an empty file of one's own, locked, and removed at the end if it is still there."""
    folder.mkdir(parents=True, exist_ok=True)
    path, descriptor = _create_locked(folder)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def try_lock(path: Path) -> IO[str] | None:
    """Hold a lock file, made if need be, until it is closed; None when another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def remove_unheld_files(folder: Path) -> int:
    """Remove the files that no living process holds, and say how many."""
    return sum(_remove_unheld(path) for path in sorted(folder.glob("*")) if path.is_file())


def _create_locked(folder: Path) -> tuple[Path, int]:
    while True:
        path = folder / secrets.token_hex(16)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Somebody who clears leftovers may have removed the file before it was locked.
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)


def _remove_unheld(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
