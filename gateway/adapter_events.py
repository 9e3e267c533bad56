"""GET /v1/adapters/{adapter_id}/events: an adapter's way into the engine as server-sent events."""

import json
import time
from collections.abc import AsyncIterator

import anyio
from anyio import to_thread
from starlette.responses import Response, StreamingResponse

from adapter_sync.errors import AdapterNotFoundError
from adapter_sync.fetches import Fetch, FetchStage
from adapter_sync.record import Adapter, AdapterStatus
from gateway.adapter_object import AdapterIdInPath, object_of
from gateway.auth import CurrentTenant
from gateway.inference.relay import KEEP_ALIVE, STREAM_HEADERS
from gateway.list_object import deleted_object
from gateway.openapi import Answer, Operation, described
from gateway.services import CurrentServices, Services

_Found = tuple[Adapter | None, Fetch | None]


@described(
    Operation(
        tag="Adapters",
        summary="Follow an adapter on its way into the engine",
        description="An `adapter` event with the adapter object now and after each change, until "
        "nothing is under way any more; a `deleted` event ends it too. Comments keep the "
        "connection open meanwhile.",
        answers={
            200: Answer(
                content={"text/event-stream": {"description": "Server-sent events."}},
                description="Events.",
            )
        },
        errors=(AdapterNotFoundError,),
    )
)
async def stream_adapter_events(
    adapter_id: AdapterIdInPath, tenant: CurrentTenant, services: CurrentServices
) -> Response:
    """The adapter object now and after each change, until nothing is under way any more.

    Raises AdapterNotFoundError.
    """
    found = await _find(services, tenant.id, adapter_id)
    events = _events(services, tenant.id, adapter_id, found)
    headers = {name.decode(): value.decode() for name, value in STREAM_HEADERS}
    return StreamingResponse(events, headers=headers)


async def _events(
    services: Services, tenant_id: str, adapter_id: str, found: _Found
) -> AsyncIterator[bytes]:
    limits = services.limits
    told: bytes | None = None
    told_at = time.monotonic()
    while True:
        event = _event("adapter", object_of(*found))
        if event != told:
            told, told_at = event, time.monotonic()
            yield event
        elif time.monotonic() - told_at >= limits.keep_alive_s:
            told_at = time.monotonic()
            yield KEEP_ALIVE
        if _is_settled(*found):
            return
        await anyio.sleep(limits.adapter_event_s)
        try:
            found = await _find(services, tenant_id, adapter_id)
        except AdapterNotFoundError:
            yield _event("deleted", deleted_object(adapter_id, "adapter"))
            return


async def _find(services: Services, tenant_id: str, adapter_id: str) -> _Found:
    return await to_thread.run_sync(services.registry.adapter_or_fetch, tenant_id, adapter_id)


def _is_settled(adapter: Adapter | None, fetch: Fetch | None) -> bool:
    loading = adapter is not None and adapter.status is AdapterStatus.LOADING
    return not loading and (fetch is None or fetch.stage is FetchStage.FAILED)


def _event(name: str, document: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps(document)}\n\n".encode()
