"""/admin/v1/tenants."""

from functools import partial

from anyio import to_thread
from fastapi import Request
from starlette.responses import JSONResponse, Response

from gateway.admin.bodies import NewTenant, TenantChange
from gateway.admin.objects import tenant_object
from gateway.json_body import read_json_body
from gateway.list_object import list_object
from gateway.services import CurrentServices


async def list_tenants(services: CurrentServices) -> Response:
    """GET: every tenant, sorted by name."""
    tenants = await to_thread.run_sync(services.registry.tenants)
    return JSONResponse(list_object([tenant_object(tenant) for tenant in tenants]))


async def create_tenant(request: Request, services: CurrentServices) -> Response:
    """POST. Raises InvalidRequestError, InvalidNameError, UnknownTierError, TenantExistsError."""
    body = await read_json_body(request, services.limits, NewTenant)
    tenant = await to_thread.run_sync(services.registry.create_tenant, body.name, body.tier)
    headers = {"location": f"/admin/v1/tenants/{tenant.name}"}
    return JSONResponse(tenant_object(tenant), 201, headers)


async def show_tenant(name: str, services: CurrentServices) -> Response:
    """GET one. Raises TenantNotFoundError."""
    return JSONResponse(tenant_object(await to_thread.run_sync(services.registry.tenant, name)))


async def change_tenant(name: str, request: Request, services: CurrentServices) -> Response:
    """PATCH: another tier, at once.

    Raises InvalidRequestError, TenantNotFoundError, UnknownTierError.
    """
    body = await read_json_body(request, services.limits, TenantChange)
    tenant = await to_thread.run_sync(services.registry.set_tier, name, body.tier)
    return JSONResponse(tenant_object(tenant))


async def delete_tenant(
    name: str,
    services: CurrentServices,
    with_adapters: bool = False,  # noqa: FBT001, FBT002  # a query parameter
) -> Response:
    """DELETE. Raises TenantNotFoundError, TenantHasAdaptersError."""
    tenant = await to_thread.run_sync(
        partial(services.registry.delete_tenant, name, with_adapters=with_adapters)
    )
    return JSONResponse({"id": tenant.id, "object": "tenant", "deleted": True})
