"""/v1/aliases: a tenant's own names for models."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from anyio import to_thread
from fastapi import Path, Request
from pydantic import with_config
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from adapter_sync.errors import (
    AdapterNotFoundError,
    AliasLimitError,
    AliasNameTakenError,
    AliasNotFoundError,
    InvalidNameError,
)
from adapter_sync.record import ADAPTER_NAME, Alias, AliasTarget, BaseModel, Tenant
from adapter_sync.registry import Registry
from gateway.alias_request import AliasBody, RequestedTarget, parse_alias_request
from gateway.auth import CurrentTenant
from gateway.body import read_body
from gateway.errors import ModelNotFoundError
from gateway.list_object import EXACT, DeletedObject, ListObject, deleted_object, list_object
from gateway.openapi import Answer, Body, Operation, described
from gateway.resolve import split_requested_model
from gateway.services import CurrentServices, Services

_AliasName = Annotated[
    str,
    Path(
        description="1 to 64 letters, digits, '.', '_' and '-', a letter or digit at both ends.",
        json_schema_extra={"pattern": f"^{ADAPTER_NAME.pattern}$"},
        examples=["base-llm-with-customerA-adapter"],
    ),
]


@with_config(EXACT)
class AliasTargetObject(TypedDict):
    """A model behind an alias, and its part of the requests."""

    model: str
    weight: int


@with_config(EXACT)
class AliasObject(TypedDict):
    """A tenant's own name for models; times are Unix seconds."""

    id: str
    object: Literal["alias"]
    alias: str
    targets: list[AliasTargetObject]
    created_at: int
    updated_at: int


_LINKS = {
    name: {"alias": "$response.body#/id"} for name in ("show_alias", "delete_alias", "put_alias")
}
_ANSWER = {"application/json": AliasObject}


@described(
    Operation(
        tag="Aliases",
        summary="Make an alias, or replace its targets",
        body=Body(
            shape=AliasBody,
            example={
                "targets": [
                    {"model": "smollm2-135m-instruct:finance", "weight": 90},
                    {"model": "smollm2-135m-instruct:finance-v2", "weight": 10},
                ]
            },
        ),
        answers={
            200: Answer(content=_ANSWER, description="Replaced.", links=_LINKS),
            201: Answer(content=_ANSWER, description="Made.", links=_LINKS),
        },
        errors=(InvalidNameError, AliasNameTakenError, ModelNotFoundError, AliasLimitError),
    )
)
async def put_alias(
    request: Request, alias: _AliasName, tenant: CurrentTenant, services: CurrentServices
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


@described(
    Operation(
        tag="Aliases",
        summary="List the aliases, sorted by name",
        answers={
            200: Answer(
                content={"application/json": ListObject[AliasObject]}, description="All of them."
            )
        },
    )
)
async def list_aliases(tenant: CurrentTenant, services: CurrentServices) -> Response:
    """GET /v1/aliases, sorted by name."""
    aliases = await to_thread.run_sync(services.registry.aliases, tenant.id)
    return JSONResponse(list_object([alias_object(alias) for alias in aliases]))


@described(
    Operation(
        tag="Aliases",
        summary="Show an alias",
        answers={200: Answer(content=_ANSWER, description="The alias.")},
        errors=(AliasNotFoundError,),
    )
)
async def show_alias(
    alias: _AliasName, tenant: CurrentTenant, services: CurrentServices
) -> Response:
    """GET /v1/aliases/{alias}. Raises AliasNotFoundError."""
    found = await to_thread.run_sync(services.registry.alias, tenant.id, alias)
    return JSONResponse(alias_object(found))


@described(
    Operation(
        tag="Aliases",
        summary="Delete an alias",
        answers={200: Answer(content={"application/json": DeletedObject}, description="Deleted.")},
        errors=(AliasNotFoundError,),
    )
)
async def delete_alias(
    alias: _AliasName, tenant: CurrentTenant, services: CurrentServices
) -> Response:
    """DELETE /v1/aliases/{alias}. Raises AliasNotFoundError, also the second time."""
    await to_thread.run_sync(services.registry.delete_alias, tenant.id, alias)
    return JSONResponse(deleted_object(alias, "alias"))


def alias_object(alias: Alias) -> AliasObject:
    """The alias as the API shows it."""
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
