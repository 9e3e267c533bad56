"""Takes an upload in: staged file, checks, blobs, registry row. On any error nothing stays.

Synchronous and thread-safe; the gateway calls it in a thread.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Self

import structlog

from adapter_sync.blobs import BlobStore
from adapter_sync.corrupt_blobs import fail_adapters_with
from adapter_sync.errors import AdapterTooLargeError
from adapter_sync.record import (
    CREATE_ONLY,
    Adapter,
    Overwrite,
    Revision,
    Tenant,
    check_adapter_name,
)
from adapter_sync.registry import Registry
from adapter_sync.sources.files import AdapterFiles
from adapter_sync.staging import blobs_lock, remove_unheld_files, staged_file
from adapter_sync.tiers import Tier
from adapter_sync.validation import AdapterFacts, check_adapter

log = structlog.get_logger(__name__)


class Intake:
    """The way in for adapters, the same for every sender."""

    def __init__(self, registry: Registry, blobs: BlobStore, staging: Path) -> None:
        self._registry = registry
        self._blobs = blobs
        self._staging = staging
        self._uploads = staging / "uploads"

    def acting_as(self, actor: str) -> Self:
        """The same way in, for what this actor sends."""
        return type(self)(self._registry.acting_as(actor), self._blobs, self._staging)

    def staging_file(self) -> AbstractContextManager[Path]:
        """An empty file to receive an upload in; removed at the end if it is still there."""
        return staged_file(self._uploads)

    def accept(
        self,
        *,
        tenant: Tenant,
        name: str,
        base_model: str,
        files: AdapterFiles,
        overwrite: Overwrite = CREATE_ONLY,
        fetched_id: str | None = None,
    ) -> Adapter:
        """Check what came and record it as an adapter, or a revision of one, that is to be loaded.

        Args:
            tenant: the owner.
            name: the adapter's name, unique for the tenant on the base model.
            base_model: the base model's name.
            files: what came; an uploaded file is one from `staging_file`.
            overwrite: what may be done to an adapter of that name.
            fetched_id: the adapter_id of the fetch that this ends.

        Raises:
            InvalidNameError, TenantNotFoundError, BaseModelNotFoundError,
            AdaptersNotSupportedError, TierMissingError, AdapterTooLargeError,
            InvalidAdapterError, AdapterExistsError, AdapterLimitError, PreconditionFailedError,
            FetchGoneError.

        """
        check_adapter_name(name)
        base = self._registry.base_model_for_adapters(base_model, tenant)
        size_bytes = _check_size(files.weights, self._registry.tiers.of(tenant))
        began = time.monotonic()
        facts = check_adapter(
            files.weights, config=files.config, lora_alpha=files.lora_alpha, base=base
        )
        checked = time.monotonic()
        served_config = _config_bytes(facts)
        revision = _revision(
            facts,
            config_blob=hashlib.sha256(served_config).hexdigest(),
            files=files,
            size_bytes=size_bytes,
        )
        # Before the lock is taken, because it may take long for a large file.
        _sync(files.weights)
        with self.staging_file() as config_file:
            config_file.write_bytes(served_config)
            with blobs_lock(self._staging):
                with self._added_blobs(revision, files.weights, config_file):
                    adapter = self._registry.create_adapter(
                        tenant=tenant,
                        name=name,
                        base_model=base_model,
                        revision=revision,
                        overwrite=overwrite,
                        fetched_id=fetched_id,
                    )
                self._prune(adapter)
        log.info(
            "adapter.accepted",
            adapter_id=adapter.id,
            base_model=base_model,
            revision=adapter.revision.number,
            rank=revision.rank,
            size_bytes=size_bytes,
            check_s=round(checked - began, 3),
            store_s=round(time.monotonic() - checked, 3),
        )
        return adapter

    def roll_back(
        self,
        tenant: Tenant,
        adapter_id: str,
        number: int | None = None,
        *,
        if_match: frozenset[str] | None = None,
    ) -> Adapter:
        """Make a new revision with an earlier one's content, the last but one's if None.

        Raises AdapterNotFoundError, PreconditionFailedError, RevisionNotFoundError,
        NoEarlierRevisionError.
        """
        # Locked, or the earlier one's blobs could go between its pruning and this.
        with blobs_lock(self._staging):
            adapter = self._registry.roll_back_adapter(
                tenant.id, adapter_id, number, if_match=if_match
            )
            self._prune(adapter)
        log.info("adapter.rolled_back", adapter_id=adapter.id, revision=adapter.revision.number)
        return adapter

    def remove_leftovers(self) -> int:
        """Remove staging files whose process is gone, and say how many; live ones stay."""
        count = remove_unheld_files(self._uploads)
        if count:
            log.info("staging.leftovers_removed", count=count)
        return count

    def remove_unused_blobs(self) -> int:
        """Remove the blobs that no revision uses, and say how many.

        A process killed between adding blobs and creating the row leaves some behind.
        """
        with blobs_lock(self._staging):
            count = self._remove_unused(list(self._blobs.digests()))
        if count:
            log.info("blobs.unused_removed", count=count)
        return count

    @contextmanager
    def _added_blobs(self, revision: Revision, weights: Path, config_file: Path) -> Iterator[None]:
        """Both blobs first, so that a row never names one that isn't there."""
        try:
            for file, digest in (
                (weights, revision.weights_blob),
                (config_file, revision.config_blob),
            ):
                if self._blobs.add(file, digest):
                    # What was made of the corrupt one has to leave the engine first.
                    fail_adapters_with(self._registry, digest)
            yield
        except BaseException:
            self._remove_unused([revision.weights_blob, revision.config_blob])
            raise

    def _prune(self, adapter: Adapter) -> None:
        """Forget the revisions that are too old, with what only they used."""
        for digest in self._registry.prune_revisions(adapter.id):
            self._blobs.remove(digest)

    def _remove_unused(self, digests: Sequence[str]) -> int:
        unused = self._registry.unused_blobs(digests)
        for digest in unused:
            self._blobs.remove(digest)
        return len(unused)


def _check_size(weights: Path, tier: Tier) -> int:
    size_bytes = weights.stat().st_size
    if size_bytes > tier.max_adapter_bytes:
        raise AdapterTooLargeError(limit_bytes=tier.max_adapter_bytes, tier=tier.name)
    return size_bytes


def _config_bytes(facts: AdapterFacts) -> bytes:
    # Keys keep their order: in rank_pattern and alpha_pattern the first match counts.
    return (json.dumps(facts.config, indent=2) + "\n").encode()


def _revision(
    facts: AdapterFacts, *, config_blob: str, files: AdapterFiles, size_bytes: int
) -> Revision:
    return Revision(
        number=1,
        digest=hashlib.sha256((config_blob + files.weights_sha256).encode()).hexdigest(),
        config_blob=config_blob,
        weights_blob=files.weights_sha256,
        size_bytes=size_bytes,
        rank=facts.rank,
        lora_alpha=facts.lora_alpha,
        target_modules=facts.target_modules,
        warnings=facts.warnings,
        source=files.source,
    )


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
