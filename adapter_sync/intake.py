"""Takes an upload in: staged file, checks, blobs, registry row. On any error nothing stays.

Synchronous and thread-safe; the gateway calls it in a thread.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import structlog

from adapter_sync.blobs import BlobStore
from adapter_sync.errors import AdapterTooLargeError
from adapter_sync.record import Adapter, Revision, Tenant, check_adapter_name
from adapter_sync.registry import Registry
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

    def staging_file(self) -> AbstractContextManager[Path]:
        """An empty file to receive an upload in; removed at the end if it is still there."""
        return staged_file(self._uploads)

    def accept(
        self,
        *,
        tenant: Tenant,
        name: str,
        base_model: str,
        weights: Path,
        weights_sha256: str,
        config: bytes | None,
        lora_alpha: float | None,
    ) -> Adapter:
        """Check an upload and record it as an adapter that is to be loaded.

        Args:
            tenant: the owner.
            name: the adapter's name, unique for the tenant on the base model.
            base_model: the base model's name.
            weights: the received adapter_model.safetensors, a file from `staging_file`; it is
                moved away on success.
            weights_sha256: its SHA-256 (hex), taken while it was received.
            config: the received adapter_config.json, if there was one.
            lora_alpha: the sender's word on it, for an upload without a config.

        Raises:
            InvalidNameError, BaseModelNotFoundError, TierMissingError, AdapterTooLargeError,
            InvalidAdapterError, AdapterExistsError, AdapterLimitError.

        """
        check_adapter_name(name)
        base = self._registry.base_model(base_model)
        size_bytes = _check_size(weights, self._registry.tiers.of(tenant))
        facts = check_adapter(weights, config=config, lora_alpha=lora_alpha, base=base)
        served_config = _config_bytes(facts)
        revision = _revision(
            facts,
            config_blob=hashlib.sha256(served_config).hexdigest(),
            weights_blob=weights_sha256,
            size_bytes=size_bytes,
        )
        # Before the lock is taken, because it may take long for a large file.
        _sync(weights)
        with self.staging_file() as config_file:
            config_file.write_bytes(served_config)
            with blobs_lock(self._staging):
                adapter = self._record(tenant, name, base_model, revision, weights, config_file)
        log.info(
            "adapter.accepted",
            adapter_id=adapter.id,
            base_model=base_model,
            rank=revision.rank,
            size_bytes=size_bytes,
        )
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

    def _record(
        self,
        tenant: Tenant,
        name: str,
        base_model: str,
        revision: Revision,
        weights: Path,
        config_file: Path,
    ) -> Adapter:
        """Both blobs first, so that a row never names one that isn't there."""
        try:
            self._blobs.add(weights, revision.weights_blob)
            self._blobs.add(config_file, revision.config_blob)
            return self._registry.create_adapter(
                tenant=tenant, name=name, base_model=base_model, revision=revision
            )
        except BaseException:
            self._remove_unused([revision.weights_blob, revision.config_blob])
            raise

    def _remove_unused(self, digests: Sequence[str]) -> int:
        unused = [digest for digest in digests if not self._registry.blob_in_use(digest)]
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
    facts: AdapterFacts, *, config_blob: str, weights_blob: str, size_bytes: int
) -> Revision:
    return Revision(
        number=1,
        digest=hashlib.sha256((config_blob + weights_blob).encode()).hexdigest(),
        config_blob=config_blob,
        weights_blob=weights_blob,
        size_bytes=size_bytes,
        rank=facts.rank,
        lora_alpha=facts.lora_alpha,
        target_modules=facts.target_modules,
        warnings=facts.warnings,
    )


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
