"""GET /v1/models: the base models and the tenant's adapters that serve."""

from collections.abc import Sequence
from typing import Any

from anyio import to_thread
from starlette.responses import JSONResponse, Response

from adapter_sync.record import Adapter, BaseModel, Tenant
from gateway.auth import CurrentTenant
from gateway.services import CurrentServices, Services

_OWNER_OF_BASE_MODELS = "system"


async def list_models(tenant: CurrentTenant, services: CurrentServices) -> Response:
    """What the tenant may put into `model`."""
    models = await to_thread.run_sync(_models, services, tenant)
    return JSONResponse({"object": "list", "data": models})


def _models(services: Services, tenant: Tenant) -> list[dict[str, Any]]:
    base_models = services.base_models.by_name()
    serving = [
        adapter
        for adapter in services.registry.adapters(tenant.id)
        if adapter.serving is not None and adapter.base_model in base_models
    ]
    return [
        *(base_model_object(base, services.started_at) for base in base_models.values()),
        *(
            adapter_model_object(adapter, base_models[adapter.base_model], tenant)
            for adapter in _by_requested_model(serving)
        ),
    ]


def base_model_object(base: BaseModel, created: int) -> dict[str, Any]:
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


def adapter_model_object(adapter: Adapter, base: BaseModel, tenant: Tenant) -> dict[str, Any]:
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


def _by_requested_model(adapters: Sequence[Adapter]) -> list[Adapter]:
    return sorted(adapters, key=lambda adapter: adapter.requested_model)
