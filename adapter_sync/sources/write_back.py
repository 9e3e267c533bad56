"""A large file on its way to the disk while it still grows, so that the fsync at its end is short.

Imports nothing of the project.
"""

import ctypes
from typing import BinaryIO

PIECE_BYTES = 16 * 1024 * 1024
_SYNC_FILE_RANGE_WRITE = 2


class WriteBack:
    """A file being written, whose finished pieces the kernel is told to write out by and by.

    It only begins that, and does not wait: sync_file_range(2). Where there is no such call, or the
    file system has none, all is left to the fsync.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
        self._begun_bytes = 0
        self._written_bytes = 0

    def write(self, data: bytes) -> None:
        """Write the next bytes. Raises OSError."""
        self._file.write(data)
        self._written_bytes += len(data)
        size_bytes = self._written_bytes - self._begun_bytes
        if size_bytes >= PIECE_BYTES and self._sync_file_range is not None:
            begin, size = ctypes.c_int64(self._begun_bytes), ctypes.c_int64(size_bytes)
            self._sync_file_range(self._file.fileno(), begin, size, _SYNC_FILE_RANGE_WRITE)
            self._begun_bytes = self._written_bytes
