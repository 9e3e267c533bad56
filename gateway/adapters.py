"""/v1/adapters: list, show and delete a tenant's adapters."""

from functools import partial

from anyio import to_thread
from fastapi import Request
from starlette.responses import JSONResponse, Response

from gateway.adapter_object import adapter_answer, adapter_list
from gateway.auth import CurrentTenant
from gateway.if_match import if_match
from gateway.services import CurrentServices


async def list_adapters(tenant: CurrentTenant, services: CurrentServices) -> Response:
    """GET /v1/adapters, the newest first."""
    adapters = await to_thread.run_sync(services.registry.adapters, tenant.id)
    return JSONResponse(adapter_list(adapters))


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
