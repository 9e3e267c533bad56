"""Does the fetches that the registry holds: downloads, checks, and hands over to the intake.

A process that is killed leaves its fetches to the next one, which begins them anew. A hub that is
away for some seconds is asked again by huggingface_hub itself.
"""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from adapter_sync.errors import FetchGoneError, LoraServerError, TransientError
from adapter_sync.fetches import Fetch, FetchStage
from adapter_sync.foreign_errors import passing_fault
from adapter_sync.intake import Intake
from adapter_sync.registry import Registry
from adapter_sync.registry.fetches import ClaimedFetch
from adapter_sync.secret_key import unseal
from adapter_sync.sources.files import AdapterFiles
from adapter_sync.sources.hub import download

log = structlog.get_logger(__name__)

FETCHES_AT_ONCE = 4
LOOK_PERIOD_S = 0.25
"""How often the registry is asked for fetches when nothing tells of one."""
STOP_PATIENCE_S = 5.0
PROGRESS_PERIOD_S = 0.5
RETRY_PERIOD_S = 1.0
_UNEXPECTED = "The server had an error while fetching the adapter. Delete it and try again."


class _StoppingError(Exception):
    """The process ends; the fetch stays for the next one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetcher:
    """Fetches into a folder of its own, on the blobs' file system."""

    registry: Registry
    intake: Intake
    folder: Path
    secret_key: bytes
    stopping: threading.Event
    endpoint: str | None = None

    def run(self) -> None:
        """Do what is pending, some at once, until `stopping` is set."""
        while not self._is_prepared():
            if self.stopping.wait(RETRY_PERIOD_S):
                return
        threads: list[threading.Thread] = []
        with closing(self.registry.watch()) as watch:
            while not self.stopping.is_set():
                threads = [thread for thread in threads if thread.is_alive()]
                claimed = self._claim() if len(threads) < FETCHES_AT_ONCE else None
                if claimed is None:
                    watch.wait(LOOK_PERIOD_S)
                else:
                    threads.append(self._start(claimed))
        deadline = time.monotonic() + STOP_PATIENCE_S
        for thread in threads:
            thread.join(max(0, deadline - time.monotonic()))

    def fetch(self, claimed: ClaimedFetch) -> None:
        """Do one fetch to its end: an adapter, a failure that says why, or nothing left of it."""
        fetch = claimed.fetch
        log.info("fetch.started", adapter_id=fetch.id, repo=fetch.pinned.source.repo)
        try:
            self._fetch_through_faults(claimed)
        except FetchGoneError:
            log.info("fetch.deleted", adapter_id=fetch.id)
        except _StoppingError:
            log.info("fetch.interrupted", adapter_id=fetch.id)
        except LoraServerError as error:
            log.info("fetch.failed", adapter_id=fetch.id, error=str(error))
            self._fail(fetch, error.code, str(error))
        except Exception:
            log.exception("fetch.broken", adapter_id=fetch.id)
            self._fail(fetch, "server_error", _UNEXPECTED)

    def _is_prepared(self) -> bool:
        """Clear what an earlier process left; whether that could be done."""
        try:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            self.registry.reopen_fetches()
        except (OSError, SQLAlchemyError):
            log.exception("fetches.not_prepared")
            return False
        return True

    def _fail(self, fetch: Fetch, code: str | None, message: str) -> None:
        """Keep why it failed, however long the registry is away: nobody else would end it."""
        while not self.stopping.is_set():
            try:
                self.registry.fail_fetch(fetch.id, code=code, message=message)
            except SQLAlchemyError:
                log.exception("fetch.failure_not_kept", adapter_id=fetch.id)
                self.stopping.wait(RETRY_PERIOD_S)
            else:
                return

    def _claim(self) -> ClaimedFetch | None:
        try:
            return self.registry.claim_fetch() if self.registry.has_pending_fetch() else None
        except (SQLAlchemyError, TransientError):
            log.exception("fetches.look_failed")
            return None

    def _start(self, claimed: ClaimedFetch) -> threading.Thread:
        # One that waits for the hub must not hold up the end: a fetch may break off anywhere.
        thread = threading.Thread(target=self.fetch, args=(claimed,), name="fetch", daemon=True)
        thread.start()
        return thread

    def _fetch_through_faults(self, claimed: ClaimedFetch) -> None:
        """Fetch, again as long as the disk or the registry fails: that is not the fetch's fault."""
        while True:
            try:
                return self._fetch(claimed)
            except (OSError, SQLAlchemyError) as error:
                fault = passing_fault(error)
                if fault is None:
                    raise
                log.warning("fetch.postponed", adapter_id=claimed.fetch.id, error=str(error))
            if self.stopping.wait(RETRY_PERIOD_S):
                raise _StoppingError

    def _fetch(self, claimed: ClaimedFetch) -> None:
        fetch, sealed = claimed.fetch, claimed.sealed_token
        token = None if sealed is None else unseal(self.secret_key, sealed)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            files = download(
                fetch.pinned,
                Path(folder),
                token=token,
                endpoint=self.endpoint,
                on_bytes=self._progress(fetch),
            )
            self.registry.set_fetch_progress(
                fetch.id, FetchStage.VALIDATING, fetch.pinned.total_bytes
            )
            with files.weights.open("rb") as weights:
                digest = file_digest(weights, "sha256").hexdigest()
            self.intake.accept(
                tenant=self.registry.tenant_with_id(fetch.tenant_id),
                name=fetch.name,
                base_model=fetch.base_model,
                files=AdapterFiles(
                    weights=files.weights,
                    weights_sha256=digest,
                    config=files.config.read_bytes(),
                    source=fetch.pinned.document(),
                ),
                overwrite=claimed.overwrite,
                fetched_id=fetch.id,
            )

    def _progress(self, fetch: Fetch) -> Callable[[int], None]:
        """Takes the bytes that came, and tells the registry now and then."""
        done_bytes, told_at = 0, time.monotonic()

        def tell(more_bytes: int) -> None:
            nonlocal done_bytes, told_at
            if self.stopping.is_set():
                raise _StoppingError
            done_bytes += more_bytes
            if time.monotonic() - told_at >= PROGRESS_PERIOD_S:
                told_at = time.monotonic()
                try:
                    self.registry.set_fetch_progress(fetch.id, FetchStage.FETCHING, done_bytes)
                except SQLAlchemyError as error:
                    log.warning("fetch.progress_not_kept", adapter_id=fetch.id, error=str(error))

        return tell
