"""/v1/aliases: a tenant's own names for models."""

from collections.abc import Mapping, Sequence
from typing import Any

from anyio import to_thread
from fastapi import Request
from starlette.responses import JSONResponse, Response

from adapter_sync.errors import AdapterNotFoundError
from adapter_sync.record import Alias, AliasTarget, BaseModel, Tenant
from adapter_sync.registry import Registry
from gateway.alias_request import RequestedTarget, parse_alias_request
from gateway.auth import CurrentTenant
from gateway.body import read_body
from gateway.errors import ModelNotFoundError
from gateway.list_object import list_object
from gateway.resolve import split_requested_model
from gateway.services import CurrentServices, Services


async def put_alias(
    request: Request, alias: str, tenant: CurrentTenant, services: CurrentServices
) -> Response:
    """PUT /v1/aliases/{alias}: 201 for a new one, 200 for one replaced.

    Raises InvalidRequestError, InvalidNameError, AliasNameTakenError, ModelNotFoundError,
    AliasLimitError.
    """
    limits = services.limits
    targets = parse_alias_request(
        await read_body(request, max_bytes=limits.max_body_bytes, idle_s=limits.body_idle_s)
    )
    put, is_new = await to_thread.run_sync(_put, services, tenant, alias, targets)
    return JSONResponse(alias_object(put), 201 if is_new else 200)


async def list_aliases(tenant: CurrentTenant, services: CurrentServices) -> Response:
    """GET /v1/aliases, sorted by name."""
    aliases = await to_thread.run_sync(services.registry.aliases, tenant.id)
    return JSONResponse(list_object([alias_object(alias) for alias in aliases]))


async def show_alias(alias: str, tenant: CurrentTenant, services: CurrentServices) -> Response:
    """GET /v1/aliases/{alias}. Raises AliasNotFoundError."""
    found = await to_thread.run_sync(services.registry.alias, tenant.id, alias)
    return JSONResponse(alias_object(found))


async def delete_alias(alias: str, tenant: CurrentTenant, services: CurrentServices) -> Response:
    """DELETE /v1/aliases/{alias}. Raises AliasNotFoundError, also the second time."""
    await to_thread.run_sync(services.registry.delete_alias, tenant.id, alias)
    return JSONResponse({"id": alias, "object": "alias", "deleted": True})


def alias_object(alias: Alias) -> dict[str, Any]:
    """The alias object; times are Unix seconds."""
    return {
        "id": alias.name,
        "object": "alias",
        "alias": alias.name,
        "targets": [
            {"model": target.requested_model, "weight": target.weight} for target in alias.targets
        ],
        "created_at": int(alias.created_at.timestamp()),
        "updated_at": int(alias.updated_at.timestamp()),
    }


def _put(
    services: Services, tenant: Tenant, alias: str, targets: Sequence[RequestedTarget]
) -> tuple[Alias, bool]:
    base_models = services.base_models.of(tenant)
    found = [_existing(services.registry, base_models, tenant, target) for target in targets]
    return services.registry.put_alias(tenant.id, alias, found)


def _existing(
    registry: Registry,
    base_models: Mapping[str, BaseModel],
    tenant: Tenant,
    target: RequestedTarget,
) -> AliasTarget:
    """A base model or the tenant's own adapter, whatever its status; never another alias."""
    base_model, adapter_name = split_requested_model(target.requested_model, base_models)
    if adapter_name is not None:
        try:
            registry.find_adapter(tenant.id, base_model, adapter_name)
        except AdapterNotFoundError as error:
            raise ModelNotFoundError(requested_model=target.requested_model) from error
    return AliasTarget(base_model=base_model, adapter_name=adapter_name, weight=target.weight)
