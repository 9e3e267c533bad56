"""/v1/adapters: list, show and delete a tenant's adapters."""

from anyio import to_thread
from starlette.responses import JSONResponse, Response

from gateway.adapter_object import adapter_list, adapter_object
from gateway.auth import CurrentTenant
from gateway.services import CurrentServices


async def list_adapters(tenant: CurrentTenant, services: CurrentServices) -> Response:
    """GET /v1/adapters, the newest first."""
    adapters = await to_thread.run_sync(services.registry.adapters, tenant.id)
    return JSONResponse(adapter_list(adapters))


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
