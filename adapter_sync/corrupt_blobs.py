"""What a corrupt blob means for the adapters that it belongs to: they fail, and serve no more."""

import structlog

from adapter_sync.record import AdapterStatus
from adapter_sync.registry import Registry

log = structlog.get_logger()

BLOB_CORRUPT = "blob_corrupt"
MESSAGE = "The adapter's file is damaged on the server's disk. Upload it again."


def fail_adapters_with(registry: Registry, digest: str) -> None:
    """Fail every adapter that has the blob in one of its contents."""
    for adapter_id, content in registry.contents_with_blob(digest):
        failed = registry.set_adapter_status(
            adapter_id,
            content,
            AdapterStatus.FAILED,
            error_code=BLOB_CORRUPT,
            error_message=MESSAGE,
        )
        if failed:
            log.error("adapter.blob_corrupt", adapter_id=adapter_id, blob=digest)
