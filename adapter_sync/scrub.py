"""Finds blobs whose content has changed, and fails the adapters that they belong to.

A blob whose file was written to is found within LOOK_PERIOD_S and at each start. One whose bits
have changed below the file system is found by reading all of them, slowly, once in a period.
"""

import threading
import time
from pathlib import Path

import structlog

from adapter_sync.blobs import BlobCorruptError, FolderBlobStore
from adapter_sync.corrupt_blobs import fail_adapters_with
from adapter_sync.registry import Registry
from adapter_sync.staging import blobs_lock

log = structlog.get_logger()

LOOK_PERIOD_S = 30.0
LEAST_BYTES_S = 1 << 20
"""How fast blobs are read at least, so that few of them are not read byte by byte."""


class Scrub:
    """One for each blob store, in two threads of its process."""

    def __init__(
        self,
        registry: Registry,
        blobs: FolderBlobStore,
        staging: Path,
        *,
        period_s: float,
        stopping: threading.Event,
    ) -> None:
        self._registry = registry
        self._blobs = blobs
        self._staging = staging
        self._period_s = period_s
        self._stopping = stopping

    def start(self) -> None:
        """Look and read until `stopping` is set."""
        for run, name in ((self._keep_looking, "blob-look"), (self._keep_reading, "blob-scrub")):
            threading.Thread(target=run, name=name, daemon=True).start()

    def look(self) -> None:
        """Read the blobs whose files have changed since they were last read."""
        for digest in self._blobs.digests():
            if self._stopping.is_set():
                return
            try:
                self._blobs.check(digest)
            except FileNotFoundError:
                # It was removed meanwhile.
                continue
            except BlobCorruptError:
                self._fail(digest)

    def read_all(self) -> None:
        """Read every blob, so slowly that it takes the period."""
        digests = list(self._blobs.digests())
        sizes = {digest: self._size_of(digest) for digest in digests}
        bytes_s = max(sum(sizes.values()) / self._period_s, LEAST_BYTES_S)
        for digest in digests:
            if self._stopping.is_set():
                return
            try:
                self._blobs.read(digest, pause=lambda size: self._stopping.wait(size / bytes_s))
            except FileNotFoundError:
                continue
            except BlobCorruptError:
                self._fail(digest)

    def _size_of(self, digest: str) -> int:
        try:
            return self._blobs.size_bytes(digest)
        except FileNotFoundError:
            return 0

    def _fail(self, digest: str) -> None:
        """Set the blob aside and tell so of its adapters, unless an upload has replaced it."""
        with blobs_lock(self._staging):
            try:
                self._blobs.read(digest)
            except FileNotFoundError:
                return
            except BlobCorruptError:
                self._blobs.set_aside(digest)
            else:
                return
            fail_adapters_with(self._registry, digest)

    def _keep_looking(self) -> None:
        while True:
            try:
                self.look()
            except Exception:
                log.exception("blobs.not_looked_at")
            if self._stopping.wait(LOOK_PERIOD_S):
                return

    def _keep_reading(self) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self.read_all()
            except Exception:
                log.exception("blobs.not_read")
            self._stopping.wait(max(LOOK_PERIOD_S, self._period_s - (time.monotonic() - began)))
