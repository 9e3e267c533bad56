"""An adapter as the API shows it."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Literal, TypeAlias, cast

from fastapi import Path
from pydantic import Field, with_config
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from adapter_sync.fetches import Fetch, FetchStage
from adapter_sync.record import Adapter, KeptRevision, Page
from gateway.engine_errors import public_words
from gateway.list_object import EXACT, ListObject, PlainList, list_object, plain_list

_ID_PATTERN = "^adp_[0-9a-f]{20}$"
ADAPTER_LINKS = MappingProxyType(
    {
        name: {"adapter_id": "$response.body#/id"}
        for name in (
            "show_adapter",
            "delete_adapter",
            "list_revisions",
            "roll_back_adapter",
            "stream_adapter_events",
        )
    }
)
AdapterIdInPath: TypeAlias = Annotated[
    str,
    Path(
        description="The adapter's id.",
        json_schema_extra={"pattern": _ID_PATTERN},
        examples=["adp_0123456789abcdef0123"],
    ),
]
_Stage: TypeAlias = Literal[
    "pending", "fetching", "validating", "loading", "ready", "failed", "deleting"
]


@with_config(EXACT)
class AdapterError(TypedDict):
    """Why an adapter is not ready, and won't be."""

    code: str | None
    message: str | None


@with_config(EXACT)
class AdapterProgress(TypedDict):
    """How far an adapter is on its way here."""

    stage: _Stage
    bytes_done: int
    bytes_total: int


@with_config(EXACT)
class UploadSource(TypedDict):
    """The files were uploaded."""

    type: Literal["upload"]


@with_config(EXACT)
class HubSource(TypedDict):
    """The files are of a Hugging Face repo, at one commit."""

    type: Literal["huggingface"]
    repo: str
    revision: str
    commit: str
    subfolder: str | None


@with_config(EXACT)
class AdapterObject(TypedDict):
    """An adapter; times are Unix seconds. What is not known before its files are here is null."""

    id: Annotated[str, Field(pattern=_ID_PATTERN)]
    object: Literal["adapter"]
    name: str
    base_model: str
    model: str
    status: _Stage
    error: AdapterError | None
    progress: AdapterProgress
    source: UploadSource | HubSource
    revision: int | None
    serving_revision: int | None
    etag: str | None
    rank: int | None
    lora_alpha: float | None
    target_modules: list[str] | None
    size_bytes: int
    created_at: int
    updated_at: int
    last_used_at: int | None
    residency: Literal["gpu", "cpu", "disk"] | None
    warnings: list[str]


ADAPTER_ANSWER = MappingProxyType({"application/json": AdapterObject})


@with_config(EXACT)
class RevisionObject(TypedDict):
    """A revision that can be gone back to."""

    object: Literal["adapter.revision"]
    number: int
    etag: str
    rank: int
    lora_alpha: float
    target_modules: list[str]
    size_bytes: int
    created_at: int
    serving: bool
    warnings: list[str]


def adapter_object(adapter: Adapter, fetch: Fetch | None = None) -> AdapterObject:
    """The adapter object; times are Unix seconds. The fetch is its next revision's, on its way."""
    size_bytes = adapter.revision.size_bytes
    return {
        "id": adapter.id,
        "object": "adapter",
        "name": adapter.name,
        "base_model": adapter.base_model,
        "model": adapter.requested_model,
        "status": adapter.status.value,
        "error": _error(adapter) or (None if fetch is None else _fetch_error(fetch)),
        "progress": (
            _progress(adapter.status.value, size_bytes, size_bytes)
            if fetch is None
            else _fetch_progress(fetch)
        ),
        "source": _source(adapter.revision.source),
        "revision": adapter.revision.number,
        "serving_revision": None if adapter.serving is None else adapter.serving.number,
        "etag": adapter.etag,
        "rank": adapter.revision.rank,
        "lora_alpha": adapter.revision.lora_alpha,
        "target_modules": list(adapter.revision.target_modules),
        "size_bytes": size_bytes,
        "created_at": int(adapter.created_at.timestamp()),
        "updated_at": int(adapter.updated_at.timestamp()),
        "last_used_at": (
            None if adapter.last_used_at is None else int(adapter.last_used_at.timestamp())
        ),
        "residency": None if adapter.residency is None else adapter.residency.value,
        "warnings": list(adapter.revision.warnings),
    }


def fetch_object(fetch: Fetch) -> AdapterObject:
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
        "source": _source(fetch.pinned.document()),
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


def object_of(adapter: Adapter | None, fetch: Fetch | None) -> AdapterObject | None:
    """The adapter object of an adapter, of a fetch, or of both; None of neither."""
    if adapter is not None:
        return adapter_object(adapter, fetch)
    return None if fetch is None else fetch_object(fetch)


def adapter_list(
    page: Page[Adapter | Fetch], fetches: Mapping[str, Fetch]
) -> ListObject[AdapterObject]:
    """The list object; `fetches` has those of the adapters' next revisions, by adapter id."""
    data = [
        fetch_object(each)
        if isinstance(each, Fetch)
        else adapter_object(each, fetches.get(each.id))
        for each in page.items
    ]
    return list_object(data, has_more=page.has_more)


def revision_list(kept: Sequence[KeptRevision]) -> PlainList[RevisionObject]:
    """The list object of an adapter's revisions."""
    return plain_list([_revision_object(each) for each in kept])


def _revision_object(kept: KeptRevision) -> RevisionObject:
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


def _source(document: Mapping[str, object]) -> UploadSource | HubSource:
    return cast("UploadSource | HubSource", dict(document))


def _progress(stage: _Stage, bytes_done: int, bytes_total: int) -> AdapterProgress:
    return {"stage": stage, "bytes_done": bytes_done, "bytes_total": bytes_total}


def _fetch_progress(fetch: Fetch) -> AdapterProgress:
    return _progress(fetch.stage.value, fetch.bytes_done, fetch.pinned.total_bytes)


def _fetch_error(fetch: Fetch) -> AdapterError | None:
    if fetch.stage is not FetchStage.FAILED:
        return None
    return {"code": fetch.error_code, "message": fetch.error_message}


def _error(adapter: Adapter) -> AdapterError | None:
    if adapter.error_code is None and adapter.error_message is None:
        return None
    message = public_words(
        adapter.error_message or "",
        lora_name=adapter.lora_name,
        served_name=adapter.requested_model,
    )
    return {"code": adapter.error_code, "message": message}
