"""A file written while the kernel writes it out."""

import ctypes
import os
import time
from pathlib import Path

import pytest

from adapter_sync.sources.write_back import PIECE_BYTES, WriteBack

MEBIBYTE = 1024 * 1024
SYS_CACHESTAT = 451
PATIENCE_S = 10


def test_what_was_written_is_in_the_file_and_all_but_the_last_piece_on_the_disk(
    tmp_path: Path,
) -> None:
    pieces = [bytes([number]) * MEBIBYTE for number in range(2 * PIECE_BYTES // MEBIBYTE + 3)]
    with (tmp_path / "file").open("wb") as file:
        target = WriteBack(file)
        for piece in pieces:
            target.write(piece)
        file.flush()
        deadline = time.monotonic() + PATIENCE_S
        # By itself the kernel waits for 30 s, or for many more dirty pages.
        while (dirty_bytes := not_written_out(file.fileno())) > PIECE_BYTES:
            assert time.monotonic() < deadline, f"{dirty_bytes} bytes are not on the disk"
            time.sleep(0.05)
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)


def not_written_out(descriptor: int) -> int:
    """The bytes of a file's pages that are dirty: cachestat(2), of Linux 6.5."""
    whole = (ctypes.c_uint64 * 2)(0, 0)
    counts = (ctypes.c_uint64 * 5)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(SYS_CACHESTAT, descriptor, whole, counts, 0) != 0:
        pytest.skip(f"no cachestat: {os.strerror(ctypes.get_errno())}")
    _, dirty_pages, *_ = counts
    return dirty_pages * os.sysconf("SC_PAGESIZE")
