"""/admin/v1/adapters: every tenant's."""

from functools import partial

from anyio import to_thread
from pydantic import with_config
from starlette.responses import JSONResponse, Response

from adapter_sync.errors import AdapterNotFoundError, TenantNotFoundError, UnknownCursorError
from adapter_sync.record import Adapter, AdapterStatus, Page
from adapter_sync.registry import AdapterFilter, Registry
from gateway.adapter_object import AdapterIdInPath, AdapterObject, adapter_object
from gateway.admin.objects import DEFAULT_LIMIT, After, Limit
from gateway.list_object import (
    EXACT,
    DeletedObject,
    ListObject,
    deleted_object,
    list_object,
)
from gateway.openapi import Answer, Operation, described
from gateway.services import CurrentServices


@with_config(EXACT)
class OwnedAdapterObject(AdapterObject):
    """An adapter and its tenant's name, null when that was deleted and the adapter still drains."""

    tenant: str | None


@described(
    Operation(
        tag="Admin",
        summary="List every tenant's adapters, the newest first",
        answers={
            200: Answer(
                content={"application/json": ListObject[OwnedAdapterObject]}, description="A page."
            )
        },
        errors=(TenantNotFoundError, UnknownCursorError),
    )
)
async def list_adapters(
    services: CurrentServices,
    limit: Limit = DEFAULT_LIMIT,
    after: After = None,
    tenant: str | None = None,
    base_model: str | None = None,
    status: AdapterStatus | None = None,
) -> Response:
    """GET, the newest first; those being deleted only with `status=deleting`.

    Raises TenantNotFoundError, UnknownCursorError.
    """
    page, owners = await to_thread.run_sync(
        partial(
            _page,
            services.registry,
            limit=limit,
            after=after,
            tenant=tenant,
            base_model=base_model,
            status=status,
        )
    )
    adapters: list[OwnedAdapterObject] = [
        {**adapter_object(adapter), "tenant": owners.get(adapter.tenant_id)}
        for adapter in page.items
    ]
    return JSONResponse(list_object(adapters, has_more=page.has_more))


@described(
    Operation(
        tag="Admin",
        summary="Delete an adapter, whoever's it is",
        answers={200: Answer(content={"application/json": DeletedObject}, description="Deleted.")},
        errors=(AdapterNotFoundError,),
    )
)
async def delete_adapter(adapter_id: AdapterIdInPath, services: CurrentServices) -> Response:
    """DELETE, whoever's it is. Raises AdapterNotFoundError, also the second time."""
    adapter = await to_thread.run_sync(services.registry.delete_any_adapter, adapter_id)
    return JSONResponse(deleted_object(adapter.id, "adapter"))


def _page(
    registry: Registry,
    *,
    limit: int,
    after: str | None,
    tenant: str | None,
    base_model: str | None,
    status: AdapterStatus | None,
) -> tuple[Page[Adapter], dict[str, str]]:
    """The adapters, and the tenants' names by id."""
    where = AdapterFilter(
        tenant_id=None if tenant is None else registry.tenant(tenant).id,
        base_model=base_model,
        status=status,
    )
    page = registry.every_adapter_page(where, limit=limit, after=after)
    return page, {each.id: each.name for each in registry.tenants()}
