"""/v1/adapters: list, show and delete a tenant's adapters."""

from functools import partial
from typing import Annotated, Literal

from anyio import to_thread
from fastapi import Query, Request
from starlette.responses import JSONResponse, Response

from adapter_sync.errors import AdapterNotFoundError
from adapter_sync.fetches import FetchStage
from adapter_sync.record import AdapterStatus
from adapter_sync.registry import AdapterQuery
from gateway.adapter_object import adapter_answer, adapter_list
from gateway.auth import CurrentTenant
from gateway.errors import InvalidRequestError
from gateway.if_match import if_match
from gateway.services import CurrentServices

DEFAULT_LIMIT = 20
MAX_LIMIT = 100
_SHOWN = sorted({*AdapterStatus, *FetchStage} - {AdapterStatus.DELETING})


async def list_adapters(
    tenant: CurrentTenant,
    services: CurrentServices,
    *,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
    after: str | None = None,
    order: Literal["asc", "desc"] = "desc",
    base_model: str | None = None,
    status: str | None = None,
) -> Response:
    """GET /v1/adapters, a page of them, by their time of creation. Raises InvalidRequestError."""
    query = AdapterQuery(
        limit=limit,
        after=after,
        oldest_first=order == "asc",
        base_model=base_model,
        status=None if status is None else _shown_status(status),
    )
    try:
        page = await to_thread.run_sync(services.registry.adapter_page, tenant.id, query)
        fetches = await to_thread.run_sync(services.registry.fetches, tenant.id)
    except AdapterNotFoundError as error:
        raise InvalidRequestError(
            f"Invalid 'after': {error} Begin again without 'after'.",
            param="after",
            code="invalid_value",
        ) from error
    return JSONResponse(adapter_list(page, {fetch.id: fetch for fetch in fetches}))


async def show_adapter(
    adapter_id: str, tenant: CurrentTenant, services: CurrentServices
) -> Response:
    """GET /v1/adapters/{adapter_id}. Raises AdapterNotFoundError."""
    found = await to_thread.run_sync(services.registry.adapter_or_fetch, tenant.id, adapter_id)
    return adapter_answer(*found)


async def delete_adapter(
    adapter_id: str, request: Request, tenant: CurrentTenant, services: CurrentServices
) -> Response:
    """DELETE /v1/adapters/{adapter_id}.

    Raises AdapterNotFoundError, also the second time, and PreconditionFailedError.
    """
    condition = if_match(request.headers.getlist("if-match"))
    await to_thread.run_sync(
        partial(services.registry.delete_adapter, tenant.id, adapter_id, if_match=condition)
    )
    return JSONResponse({"id": adapter_id, "object": "adapter", "deleted": True})


def _shown_status(status: str) -> str:
    if status in _SHOWN:
        return status
    raise InvalidRequestError(
        f"Invalid 'status': expected one of {', '.join(_SHOWN)}, but got '{status}' instead.",
        param="status",
        code="invalid_value",
    )
