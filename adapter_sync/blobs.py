"""The blob store: immutable files, each named by the SHA-256 of its content.

Imports nothing of the project. Whoever adds a blob has hashed it while receiving it; the store
doesn't read it again, but reads the blob that is there already under that name.
"""

import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

_DIGEST = re.compile(r"[0-9a-f]{64}")
_WRITE_BITS = 0o222
_LEAST_FREE = 0.05
_PIECE_BYTES = 1 << 20


class BlobCorruptError(Exception):
    """A blob's content is no longer what its name says."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"The blob {digest} is corrupt.")
        self.digest = digest


class BlobStore(Protocol):
    """Where the adapters' files are kept."""

    def add(self, file: Path, digest: str) -> bool:
        """Move a staged file in, unless the blob is there already and whole.

        Returns whether a corrupt one was in its place.
        """

    def path(self, digest: str) -> Path:
        """Where the blob can be read, and hard-linked from; one in the trash is taken back.

        Raises FileNotFoundError.
        """

    def check(self, digest: str) -> None:
        """Read the blob if its file has changed since somebody did.

        Raises BlobCorruptError, FileNotFoundError.
        """

    def remove(self, digest: str) -> None:
        """Move the blob to the trash, if it is there."""

    def digests(self) -> Iterator[str]:
        """Every blob's digest, sorted."""


class FolderBlobStore:
    """Blobs as files, `<folder>/<2 hex>/<64 hex>`.

    A blob comes in by rename, after its bytes are on the disk, so it is whole or not there. It
    loses its write permission: its hard links share its bytes. Each method raises ValueError for
    a digest that is not 64 lower-case hex digits.

    `<folder>/verified` has a small file for each blob: which file it was, by inode, size and time
    of its last change, when its content was last found to be what its name says.

    A removed blob lies in `<folder>/trash` until `empty_trash`, so that a registry restored from
    an older back-up finds its blobs again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._trash = folder / "trash"
        self._verified = folder / "verified"

    def add(self, file: Path, digest: str) -> bool:
        """Move a staged file in, durably; it stays where it is when the blob is there already.

        A blob whose content is no longer what its name says goes to the trash and is replaced, so
        that uploading an adapter again heals it; True when it was so. Its hard links stay corrupt.
        The file has to be on the store's file system. Raises OSError.
        """
        blob = self._blob(digest)
        was_corrupt = blob.is_file() and not has_digest(blob, digest)
        if was_corrupt:
            self.set_aside(digest)
        if not blob.is_file():
            blob.parent.mkdir(parents=True, exist_ok=True)
            _settle(file)
            file.rename(blob)
        self._note_verified(digest)
        # Also for a blob that is there: another process may have renamed it in just now, and its
        # name has to be on the disk before an adapter counts on it.
        for folder in (blob.parent, self._folder, self._folder.parent):
            _sync_folder(folder)
        return was_corrupt

    def path(self, digest: str) -> Path:
        """The blob's file. Raises FileNotFoundError."""
        blob = self._blob(digest)
        if not blob.is_file():
            blob.parent.mkdir(parents=True, exist_ok=True)
            try:
                (self._trash / digest).rename(blob)
            except FileNotFoundError as error:
                # Another process may have taken it back in between.
                if not blob.is_file():
                    raise FileNotFoundError(f"There is no blob {digest}.") from error
        return blob

    def check(self, digest: str) -> None:
        """Read the blob if its file is not the one that was last read, or was written to since.

        Raises BlobCorruptError, FileNotFoundError.
        """
        if not self.is_verified(digest):
            self.read(digest)

    def is_verified(self, digest: str) -> bool:
        """Whether the file is still the one that was last read. Raises FileNotFoundError."""
        try:
            known = (self._verified / digest).read_text()
        except FileNotFoundError:
            known = ""
        return known == _identity(self.path(digest))

    def read(self, digest: str, *, pause: Callable[[int], object] = lambda _size: None) -> None:
        """Read the blob; `pause` is called with the size of each piece, in bytes.

        Raises BlobCorruptError, FileNotFoundError.
        """
        found = hashlib.sha256()
        with self.path(digest).open("rb") as blob:
            while piece := blob.read(_PIECE_BYTES):
                found.update(piece)
                pause(len(piece))
        if found.hexdigest() != digest:
            raise BlobCorruptError(digest)
        self._note_verified(digest)

    def size_bytes(self, digest: str) -> int:
        """The blob's size. Raises FileNotFoundError."""
        return self.path(digest).stat().st_size

    def set_aside(self, digest: str) -> None:
        """Move a corrupt blob to the trash, under a name from which nobody takes it back."""
        self._trash.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            self._blob(digest).rename(self._trash / f"{digest}.corrupt")

    def _note_verified(self, digest: str) -> None:
        self._verified.mkdir(exist_ok=True)
        note = self._verified / digest
        new = note.with_name(f".{digest}.{os.getpid()}.{threading.get_ident()}")
        new.write_text(_identity(self._blob(digest)))
        new.replace(note)

    def remove(self, digest: str) -> None:
        """Move the blob to the trash, if it is there; its hard links stay."""
        blob = self._blob(digest)
        self._trash.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            blob.rename(self._trash / digest)
        (self._verified / digest).unlink(missing_ok=True)

    def find(self, digest: str) -> Path:
        """The blob's file, where it is, be it in the trash. Raises FileNotFoundError."""
        for file in (self._blob(digest), self._trash / digest):
            if file.is_file():
                return file
        raise FileNotFoundError(f"There is no blob {digest}.")

    def empty_trash(self, grace_s: float) -> int:
        """Delete what has been in the trash for `grace_s`, and say how many.

        While the disk is nearly full, the oldest go before their time.
        """
        count = 0
        for removed_at, file in sorted(self._trashed()):
            if time.time() - removed_at < grace_s and not _is_nearly_full(self._folder):
                break
            file.unlink(missing_ok=True)
            count += 1
        return count

    def _trashed(self) -> Iterator[tuple[float, Path]]:
        for file in self._trash.glob("*"):
            with suppress(FileNotFoundError):
                # The rename changed the ctime; the mtime is still the upload's.
                yield file.stat().st_ctime, file

    def digests(self) -> Iterator[str]:
        """Every blob's digest, sorted; files that are no blobs are passed over."""
        for file in sorted(self._folder.glob("??/*")):
            if _DIGEST.fullmatch(file.name) and self._blob(file.name) == file and file.is_file():
                yield file.name

    def _blob(self, digest: str) -> Path:
        if _DIGEST.fullmatch(digest) is None:
            raise ValueError(f"{digest!r} is not a SHA-256 in lower-case hex")
        return self._folder / digest[:2] / digest


def has_digest(file: Path, digest: str) -> bool:
    """Whether the file's SHA-256 is the digest. Raises FileNotFoundError."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == digest


def _identity(file: Path) -> str:
    status = file.stat()
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"


def _is_nearly_full(folder: Path) -> bool:
    usage = shutil.disk_usage(folder)
    return usage.free < usage.total * _LEAST_FREE


def _settle(file: Path) -> None:
    with file.open("rb") as opened:
        os.fchmod(opened.fileno(), os.fstat(opened.fileno()).st_mode & ~_WRITE_BITS)
        os.fsync(opened.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
