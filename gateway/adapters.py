"""/v1/adapters: list, show and delete a tenant's adapters."""

from typing import Annotated, Literal

from anyio import to_thread
from fastapi import Query
from starlette.responses import JSONResponse, Response

from adapter_sync.errors import AdapterNotFoundError
from adapter_sync.record import AdapterQuery, AdapterStatus
from gateway.adapter_object import adapter_list, adapter_object
from gateway.auth import CurrentTenant
from gateway.errors import InvalidRequestError
from gateway.services import CurrentServices

DEFAULT_LIMIT = 20
MAX_LIMIT = 100
_SHOWN = tuple(status for status in AdapterStatus if status is not AdapterStatus.DELETING)


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
    except AdapterNotFoundError as error:
        raise InvalidRequestError(
            f"Invalid 'after': {error} Begin again without 'after'.",
            param="after",
            code="invalid_value",
        ) from error
    return JSONResponse(adapter_list(page))


async def show_adapter(
    adapter_id: str, tenant: CurrentTenant, services: CurrentServices
) -> Response:
    """GET /v1/adapters/{adapter_id}. Raises AdapterNotFoundError."""
    adapter = await to_thread.run_sync(services.registry.adapter, tenant.id, adapter_id)
    return JSONResponse(adapter_object(adapter))


async def delete_adapter(
    adapter_id: str, tenant: CurrentTenant, services: CurrentServices
) -> Response:
    """DELETE /v1/adapters/{adapter_id}. Raises AdapterNotFoundError, also the second time."""
    adapter = await to_thread.run_sync(services.registry.delete_adapter, tenant.id, adapter_id)
    return JSONResponse({"id": adapter.id, "object": "adapter", "deleted": True})


def _shown_status(status: str) -> AdapterStatus:
    for shown in _SHOWN:
        if shown == status:
            return shown
    raise InvalidRequestError(
        f"Invalid 'status': expected one of {', '.join(_SHOWN)}, but got '{status}' instead.",
        param="status",
        code="invalid_value",
    )
