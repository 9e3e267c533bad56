"""An adapter as the API shows it."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from starlette.responses import JSONResponse, Response

from adapter_sync.fetches import Fetch, FetchStage
from adapter_sync.record import Adapter, KeptRevision, Page
from gateway.engine_errors import public_words
from gateway.list_object import list_object


def adapter_object(adapter: Adapter, fetch: Fetch | None = None) -> dict[str, Any]:
    """The adapter object; times are Unix seconds. The fetch is its next revision's, on its way."""
    size_bytes = adapter.revision.size_bytes
    return {
        "id": adapter.id,
        "object": "adapter",
        "name": adapter.name,
        "base_model": adapter.base_model,
        "model": adapter.requested_model,
        "status": adapter.status.value,
        "error": _error(adapter) or (fetch and _fetch_error(fetch)),
        "progress": (
            _progress(adapter.status.value, size_bytes, size_bytes)
            if fetch is None
            else _fetch_progress(fetch)
        ),
        "source": dict(adapter.revision.source),
        "revision": adapter.revision.number,
        "serving_revision": None if adapter.serving is None else adapter.serving.number,
        "etag": adapter.etag,
        "rank": adapter.revision.rank,
        "lora_alpha": adapter.revision.lora_alpha,
        "target_modules": list(adapter.revision.target_modules),
        "size_bytes": size_bytes,
        "created_at": int(adapter.created_at.timestamp()),
        "updated_at": int(adapter.updated_at.timestamp()),
        "last_used_at": adapter.last_used_at and int(adapter.last_used_at.timestamp()),
        "residency": adapter.residency,
        "warnings": list(adapter.revision.warnings),
    }


def fetch_object(fetch: Fetch) -> dict[str, Any]:
    """An adapter that is not here yet, in the same form; what is not known yet is null."""
    return {
        "id": fetch.id,
        "object": "adapter",
        "name": fetch.name,
        "base_model": fetch.base_model,
        "model": fetch.requested_model,
        "status": fetch.stage.value,
        "error": _fetch_error(fetch),
        "progress": _fetch_progress(fetch),
        "source": fetch.pinned.document(),
        "revision": None,
        "serving_revision": None,
        "etag": None,
        "rank": None,
        "lora_alpha": None,
        "target_modules": None,
        "size_bytes": fetch.pinned.weights_bytes,
        "created_at": int(fetch.created_at.timestamp()),
        "updated_at": int(fetch.updated_at.timestamp()),
        "last_used_at": None,
        "residency": None,
        "warnings": [],
    }


def adapter_answer(
    adapter: Adapter | None,
    fetch: Fetch | None = None,
    *,
    status: int = 200,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Response:
    """The adapter object as an answer, with its ETag when the adapter is here."""
    etag = {} if adapter is None else {"etag": adapter.etag}
    return JSONResponse(object_of(adapter, fetch), status, {**headers, **etag})


def object_of(adapter: Adapter | None, fetch: Fetch | None) -> dict[str, Any] | None:
    """The adapter object of an adapter, of a fetch, or of both; None of neither."""
    if adapter is not None:
        return adapter_object(adapter, fetch)
    return None if fetch is None else fetch_object(fetch)


def adapter_list(page: Page[Adapter | Fetch], fetches: Mapping[str, Fetch]) -> dict[str, Any]:
    """The list object; `fetches` has those of the adapters' next revisions, by adapter id."""
    data = [
        fetch_object(each)
        if isinstance(each, Fetch)
        else adapter_object(each, fetches.get(each.id))
        for each in page.items
    ]
    return list_object(data, has_more=page.has_more)


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


def _progress(stage: str, bytes_done: int, bytes_total: int) -> dict[str, Any]:
    return {"stage": stage, "bytes_done": bytes_done, "bytes_total": bytes_total}


def _fetch_progress(fetch: Fetch) -> dict[str, Any]:
    return _progress(fetch.stage.value, fetch.bytes_done, fetch.pinned.total_bytes)


def _fetch_error(fetch: Fetch) -> dict[str, Any] | None:
    if fetch.stage is not FetchStage.FAILED:
        return None
    return {"code": fetch.error_code, "message": fetch.error_message}


def _error(adapter: Adapter) -> dict[str, Any] | None:
    if adapter.error_code is None and adapter.error_message is None:
        return None
    message = public_words(
        adapter.error_message or "",
        lora_name=adapter.lora_name,
        served_name=adapter.requested_model,
    )
    return {"code": adapter.error_code, "message": message}
