"""/admin/v1/tenants."""

from functools import partial

from anyio import to_thread
from fastapi import Request
from starlette.responses import JSONResponse, Response

from adapter_sync.errors import (
    InvalidNameError,
    TenantExistsError,
    TenantHasAdaptersError,
    TenantNotFoundError,
    UnknownTierError,
)
from gateway.admin.bodies import NewTenant, TenantChange
from gateway.admin.objects import TenantName, TenantObject, tenant_object
from gateway.json_body import read_json_body
from gateway.list_object import DeletedObject, ListObject, deleted_object, list_object
from gateway.openapi import Answer, Body, Operation, described
from gateway.services import CurrentServices

_LINKS = {
    f"admin_{name}": {"name": "$response.body#/name"}
    for name in ("show_tenant", "change_tenant", "delete_tenant", "list_keys", "create_key")
}


@described(
    Operation(
        tag="Admin",
        summary="List every tenant, sorted by name",
        answers={
            200: Answer(
                content={"application/json": ListObject[TenantObject]}, description="All of them."
            )
        },
    )
)
async def list_tenants(services: CurrentServices) -> Response:
    """GET: every tenant, sorted by name."""
    tenants = await to_thread.run_sync(services.registry.tenants)
    return JSONResponse(list_object([tenant_object(tenant) for tenant in tenants]))


@described(
    Operation(
        tag="Admin",
        summary="Make a tenant, without a key",
        body=Body(shape=NewTenant, example={"name": "acme", "tier": "shared"}),
        answers={
            201: Answer(
                content={"application/json": TenantObject},
                description="The tenant.",
                headers=("location",),
                links=_LINKS,
            )
        },
        errors=(InvalidNameError, TenantExistsError, UnknownTierError),
    )
)
async def create_tenant(request: Request, services: CurrentServices) -> Response:
    """POST. Raises InvalidRequestError, InvalidNameError, UnknownTierError, TenantExistsError."""
    body = await read_json_body(request, services.limits, NewTenant)
    tenant = await to_thread.run_sync(services.registry.create_tenant, body.name, body.tier)
    headers = {"location": f"/admin/v1/tenants/{tenant.name}"}
    return JSONResponse(tenant_object(tenant), 201, headers)


@described(
    Operation(
        tag="Admin",
        summary="Show a tenant",
        answers={
            200: Answer(content={"application/json": TenantObject}, description="The tenant.")
        },
        errors=(TenantNotFoundError,),
    )
)
async def show_tenant(name: TenantName, services: CurrentServices) -> Response:
    """GET one. Raises TenantNotFoundError."""
    return JSONResponse(tenant_object(await to_thread.run_sync(services.registry.tenant, name)))


@described(
    Operation(
        tag="Admin",
        summary="Give a tenant another tier, at once",
        body=Body(shape=TenantChange, example={"tier": "reserved"}),
        answers={
            200: Answer(content={"application/json": TenantObject}, description="The tenant.")
        },
        errors=(TenantNotFoundError, UnknownTierError),
    )
)
async def change_tenant(name: TenantName, request: Request, services: CurrentServices) -> Response:
    """PATCH: another tier, at once.

    Raises InvalidRequestError, TenantNotFoundError, UnknownTierError.
    """
    body = await read_json_body(request, services.limits, TenantChange)
    tenant = await to_thread.run_sync(services.registry.set_tier, name, body.tier)
    return JSONResponse(tenant_object(tenant))


@described(
    Operation(
        tag="Admin",
        summary="Delete a tenant, with its adapters if told so",
        answers={200: Answer(content={"application/json": DeletedObject}, description="Deleted.")},
        errors=(TenantHasAdaptersError, TenantNotFoundError),
    )
)
async def delete_tenant(
    name: TenantName,
    services: CurrentServices,
    with_adapters: bool = False,  # noqa: FBT001, FBT002  # a query parameter
) -> Response:
    """DELETE. Raises TenantNotFoundError, TenantHasAdaptersError."""
    tenant = await to_thread.run_sync(
        partial(services.registry.delete_tenant, name, with_adapters=with_adapters)
    )
    return JSONResponse(deleted_object(tenant.id, "tenant"))
