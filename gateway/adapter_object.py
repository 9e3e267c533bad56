"""An adapter as the API shows it."""

from collections.abc import Sequence
from typing import Any

from adapter_sync.record import Adapter
from gateway.engine_errors import public_words


def adapter_object(adapter: Adapter) -> dict[str, Any]:
    """The adapter object; times are Unix seconds."""
    return {
        "id": adapter.id,
        "object": "adapter",
        "name": adapter.name,
        "base_model": adapter.base_model,
        "model": adapter.requested_model,
        "status": adapter.status.value,
        "error": _error(adapter),
        "revision": adapter.revision.number,
        "rank": adapter.revision.rank,
        "lora_alpha": adapter.revision.lora_alpha,
        "target_modules": list(adapter.revision.target_modules),
        "size_bytes": adapter.revision.size_bytes,
        "created_at": int(adapter.created_at.timestamp()),
        "updated_at": int(adapter.updated_at.timestamp()),
        "last_used_at": adapter.last_used_at and int(adapter.last_used_at.timestamp()),
        "warnings": list(adapter.revision.warnings),
    }


def adapter_list(adapters: Sequence[Adapter]) -> dict[str, Any]:
    """The list object."""
    return {
        "object": "list",
        "data": [adapter_object(adapter) for adapter in adapters],
        "has_more": False,
        "first_id": adapters[0].id if adapters else None,
        "last_id": adapters[-1].id if adapters else None,
    }


def _error(adapter: Adapter) -> dict[str, Any] | None:
    if adapter.error_code is None and adapter.error_message is None:
        return None
    message = public_words(
        adapter.error_message or "",
        lora_name=adapter.lora_name,
        served_name=adapter.requested_model,
    )
    return {"code": adapter.error_code, "message": message}
