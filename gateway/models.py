"""GET /v1/models and /v1/models/{id}: base models, the adapters that serve, the aliases."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from itertools import compress
from typing import Annotated, Literal

from anyio import to_thread
from fastapi import Path
from pydantic import with_config
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from adapter_sync.errors import TransientError
from adapter_sync.record import Adapter, Alias, BaseModel, Tenant
from gateway.auth import CurrentTenant
from gateway.errors import ModelNotFoundError
from gateway.list_object import EXACT
from gateway.openapi import Answer, Operation, described
from gateway.services import CurrentServices, Services

_OWNER_OF_BASE_MODELS = "system"


@with_config(EXACT)
class ModelObject(TypedDict):
    """A model as vLLM shows it; `created` is in Unix seconds, `max_model_len` in tokens."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int


@with_config(EXACT)
class ModelList(TypedDict):
    """The models, in OpenAI's words."""

    object: Literal["list"]
    data: list[ModelObject]


@described(
    Operation(
        tag="Models",
        summary="List what may be put into `model`",
        answers={
            200: Answer(
                content={"application/json": ModelList},
                description="Base models, the tenant's adapters that serve, its aliases.",
            )
        },
    )
)
async def list_models(tenant: CurrentTenant, services: CurrentServices) -> Response:
    """What the tenant may put into `model`."""
    models = await _listed(services, tenant)
    listed: ModelList = {"object": "list", "data": models}
    return JSONResponse(listed)


@described(
    Operation(
        tag="Models",
        summary="Show a model",
        answers={200: Answer(content={"application/json": ModelObject}, description="The model.")},
        errors=(ModelNotFoundError,),
    )
)
async def show_model(
    model_id: Annotated[
        str,
        Path(
            description="A model's id; its '/' and ':' may be escaped.",
            examples=["smollm2-135m-instruct:my-finetuned-v3"],
        ),
    ],
    tenant: CurrentTenant,
    services: CurrentServices,
) -> Response:
    """One of those that `list_models` lists. Raises ModelNotFoundError."""
    if not model_id:
        raise HTTPException(404)
    for model in await _listed(services, tenant):
        if model["id"] == model_id:
            return JSONResponse(model)
    raise ModelNotFoundError(requested_model=model_id)


async def _listed(services: Services, tenant: Tenant) -> list[ModelObject]:
    base_models = await to_thread.run_sync(services.base_models.of, tenant)
    can_answer = await asyncio.gather(*(_can_be_asked(services, name) for name in base_models))
    ready = dict(compress(base_models.items(), can_answer))
    return await to_thread.run_sync(_models, services, tenant, ready)


async def _can_be_asked(services: Services, base_model: str) -> bool:
    """Whether its engine runs: not while it starts, or when it failed to.

    A Triton that is away, as while it restarts, leaves the list as it was.
    """
    try:
        return await services.engine.is_ready(base_model, within_s=services.limits.readiness_s)
    except TransientError:
        return True


def _models(
    services: Services, tenant: Tenant, base_models: Mapping[str, BaseModel]
) -> list[ModelObject]:
    serving = [
        adapter
        for adapter in services.registry.adapters(tenant.id)
        if adapter.serving is not None
        and adapter.base_model in base_models
        and base_models[adapter.base_model].takes_adapters
    ]
    served = {*base_models, *(adapter.requested_model for adapter in serving)}
    aliases = [
        alias
        for alias in services.registry.aliases(tenant.id)
        if alias.name not in base_models and _can_answer(alias, served)
    ]
    return [
        *(base_model_object(base, services.started_at) for base in base_models.values()),
        *(
            adapter_model_object(adapter, base_models[adapter.base_model], tenant)
            for adapter in _by_requested_model(serving)
        ),
        *(alias_model_object(alias, base_models, tenant) for alias in aliases),
    ]


def base_model_object(base: BaseModel, created: int) -> ModelObject:
    """A base model as vLLM lists it; `root` is its name, never a path. `created` is Unix time."""
    return {
        "id": base.name,
        "object": "model",
        "created": created,
        "owned_by": _OWNER_OF_BASE_MODELS,
        "root": base.name,
        "parent": None,
        "max_model_len": base.max_model_len,
    }


def adapter_model_object(adapter: Adapter, base: BaseModel, tenant: Tenant) -> ModelObject:
    """An adapter as vLLM lists it; `root` is its public name, never a path."""
    return {
        "id": adapter.requested_model,
        "object": "model",
        "created": int(adapter.created_at.timestamp()),
        "owned_by": tenant.name,
        "root": adapter.requested_model,
        "parent": base.name,
        "max_model_len": base.max_model_len,
    }


def alias_model_object(
    alias: Alias, base_models: Mapping[str, BaseModel], tenant: Tenant
) -> ModelObject:
    """An alias in vLLM's words; its length is that of the target with the smallest one."""
    bases = sorted({target.base_model for target in alias.targets})
    models = [target.requested_model for target in alias.targets]
    return {
        "id": alias.name,
        "object": "model",
        "created": int(alias.created_at.timestamp()),
        "owned_by": tenant.name,
        "root": models[0] if len(models) == 1 else alias.name,
        "parent": bases[0] if len(bases) == 1 else None,
        "max_model_len": min(
            base_models[name].max_model_len for name in bases if name in base_models
        ),
    }


def _can_answer(alias: Alias, served: Collection[str]) -> bool:
    return any(target.requested_model in served for target in alias.targets)


def _by_requested_model(adapters: Sequence[Adapter]) -> list[Adapter]:
    return sorted(adapters, key=lambda adapter: adapter.requested_model)
