"""/admin/v1/base-models: whom each is for."""

from collections.abc import Mapping
from functools import partial

from anyio import to_thread
from fastapi import Request
from starlette.responses import JSONResponse, Response

from adapter_sync.errors import BaseModelNotFoundError, OwnBaseModelError, TenantNotFoundError
from adapter_sync.record import BaseModel
from adapter_sync.registry import Registry
from gateway.admin.bodies import Reservation
from gateway.admin.objects import BaseModelObject
from gateway.json_body import read_json_body
from gateway.list_object import ListObject, list_object
from gateway.openapi import Answer, Body, Operation, described
from gateway.services import CurrentServices

_ANSWER = {"application/json": BaseModelObject}


@described(
    Operation(
        tag="Admin",
        summary="List the base models, sorted by name",
        answers={
            200: Answer(
                content={"application/json": ListObject[BaseModelObject]},
                description="All of them.",
            )
        },
    )
)
async def list_base_models(services: CurrentServices) -> Response:
    """GET: every base model, sorted by name, with the tenants that it is reserved to."""
    return JSONResponse(list_object(await to_thread.run_sync(_listed, services.registry)))


@described(
    Operation(
        tag="Admin",
        summary="Reserve a base model to tenants",
        body=Body(shape=Reservation, example={"tenants": ["acme"]}),
        answers={200: Answer(content=_ANSWER, description="The base model.")},
        errors=(BaseModelNotFoundError, OwnBaseModelError, TenantNotFoundError),
    )
)
async def reserve_base_model(name: str, request: Request, services: CurrentServices) -> Response:
    """PUT: reserve it to these tenants alone.

    Raises InvalidRequestError, BaseModelNotFoundError, TenantNotFoundError, OwnBaseModelError.
    """
    body = await read_json_body(request, services.limits, Reservation)
    change = partial(services.registry.reserve_base_model, name, body.tenants)
    return JSONResponse(await to_thread.run_sync(_changed, services.registry, change))


@described(
    Operation(
        tag="Admin",
        summary="Let every tenant have a base model",
        answers={200: Answer(content=_ANSWER, description="The base model.")},
        errors=(BaseModelNotFoundError,),
    )
)
async def release_base_model(name: str, services: CurrentServices) -> Response:
    """DELETE: it is for all tenants. Raises BaseModelNotFoundError."""
    change = partial(services.registry.release_base_model, name)
    return JSONResponse(await to_thread.run_sync(_changed, services.registry, change))


def _listed(registry: Registry) -> list[BaseModelObject]:
    names = _tenant_names(registry)
    return [_object(base, names) for base in registry.base_models()]


def _changed(registry: Registry, change: partial[BaseModel]) -> BaseModelObject:
    return _object(change(), _tenant_names(registry))


def _tenant_names(registry: Registry) -> Mapping[str, str]:
    return {tenant.id: tenant.name for tenant in registry.tenants()}


def _object(base: BaseModel, tenant_names: Mapping[str, str]) -> BaseModelObject:
    """`reserved_for` has no names left when all of its tenants were deleted: it is nobody's."""
    reserved_for = (
        None
        if base.reserved_for is None
        else sorted(tenant_names[each] for each in base.reserved_for if each in tenant_names)
    )
    return {
        "id": base.name,
        "object": "base_model",
        "takes_adapters": base.takes_adapters,
        "max_model_len": base.max_model_len,
        "reserved_for": reserved_for,
    }
