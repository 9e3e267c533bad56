"""An adapter as the API shows it."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from starlette.responses import JSONResponse, Response

from adapter_sync.record import Adapter, KeptRevision
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
        "serving_revision": None if adapter.serving is None else adapter.serving.number,
        "etag": adapter.etag,
        "rank": adapter.revision.rank,
        "lora_alpha": adapter.revision.lora_alpha,
        "target_modules": list(adapter.revision.target_modules),
        "size_bytes": adapter.revision.size_bytes,
        "created_at": int(adapter.created_at.timestamp()),
        "updated_at": int(adapter.updated_at.timestamp()),
        "warnings": list(adapter.revision.warnings),
    }


def adapter_answer(
    adapter: Adapter, status: int = 200, headers: Mapping[str, str] = MappingProxyType({})
) -> Response:
    """The adapter object as an answer, with its ETag."""
    return JSONResponse(adapter_object(adapter), status, {**headers, "etag": adapter.etag})


def adapter_list(adapters: Sequence[Adapter]) -> dict[str, Any]:
    """The list object."""
    return {
        "object": "list",
        "data": [adapter_object(adapter) for adapter in adapters],
        "has_more": False,
        "first_id": adapters[0].id if adapters else None,
        "last_id": adapters[-1].id if adapters else None,
    }


def revision_list(kept: Sequence[KeptRevision]) -> dict[str, Any]:
    """The list object of an adapter's revisions."""
    return {
        "object": "list",
        "data": [_revision_object(each) for each in kept],
        "has_more": False,
    }


def _revision_object(kept: KeptRevision) -> dict[str, Any]:
    revision = kept.revision
    return {
        "object": "adapter.revision",
        "number": revision.number,
        "etag": kept.etag,
        "rank": revision.rank,
        "lora_alpha": revision.lora_alpha,
        "target_modules": list(revision.target_modules),
        "size_bytes": revision.size_bytes,
        "created_at": int(kept.created_at.timestamp()),
        "serving": kept.serving,
        "warnings": list(revision.warnings),
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
