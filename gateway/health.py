"""GET /health/live and /health/ready, which need no key and tell no names but base models'."""

import asyncio

from anyio import to_thread
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import JSONResponse, Response

from adapter_sync.errors import TransientError
from gateway.services import CurrentServices, Services

_UNAVAILABLE = 503


async def live() -> Response:
    """The process answers."""
    return JSONResponse({"status": "live"})


async def ready(services: CurrentServices) -> Response:
    """The registry answers and Triton has a base model to ask; 503 with what is missing."""
    missing = await _missing(services)
    if missing:
        return JSONResponse({"status": "not_ready", "missing": missing}, _UNAVAILABLE)
    return JSONResponse({"status": "ready"})


async def _missing(services: Services) -> list[str]:
    try:
        base_models = await to_thread.run_sync(services.base_models.by_name)
    except SQLAlchemyError:
        return ["the registry does not answer"]
    if not base_models:
        return ["no base model is registered"]
    states = await asyncio.gather(*(_state(services, name) for name in base_models))
    return [] if None in states else [state for state in states if state is not None]


async def _state(services: Services, base_model: str) -> str | None:
    try:
        is_ready = await services.engine.is_ready(base_model, within_s=services.limits.readiness_s)
    except TransientError:
        return f"Triton does not answer for the base model '{base_model}'"
    return None if is_ready else f"the base model '{base_model}' is not ready"
