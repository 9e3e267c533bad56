"""GET /health/live, and /health/ready by its three names: no key, and no names but base models'."""

import asyncio
from typing import Literal

from anyio import to_thread
from pydantic import with_config
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from adapter_sync.errors import TransientError
from gateway.list_object import EXACT
from gateway.openapi import Answer, Operation, described
from gateway.services import CurrentServices, Services

_UNAVAILABLE = 503


@with_config(EXACT)
class Live(TypedDict):
    """The process answers."""

    status: Literal["live"]


@with_config(EXACT)
class Ready(TypedDict):
    """Requests can be answered."""

    status: Literal["ready"]


@with_config(EXACT)
class NotReady(TypedDict):
    """Requests can't be answered, and why."""

    status: Literal["not_ready"]
    missing: list[str]


@described(
    Operation(
        tag="Health",
        summary="Whether the process answers",
        answers={200: Answer(content={"application/json": Live}, description="It does.")},
    )
)
async def live() -> Response:
    """The process answers."""
    answer: Live = {"status": "live"}
    return JSONResponse(answer)


_READINESS = Operation(
    tag="Health",
    summary="Whether requests can be answered",
    answers={
        200: Answer(content={"application/json": Ready}, description="They can."),
        _UNAVAILABLE: Answer(
            content={"application/json": NotReady}, description="They can't, and why."
        ),
    },
)


@described(_READINESS)
async def ready(services: CurrentServices) -> Response:
    """The registry answers and Triton has a base model to ask; 503 with what is missing."""
    missing = await _missing(services)
    if missing:
        refusal: NotReady = {"status": "not_ready", "missing": missing}
        return JSONResponse(refusal, _UNAVAILABLE)
    answer: Ready = {"status": "ready"}
    return JSONResponse(answer)


@described(_READINESS)
async def health(services: CurrentServices) -> Response:
    """The same as `ready`, where vLLM's clients and load generators look."""
    return await ready(services)


@described(_READINESS)
async def ping(services: CurrentServices) -> Response:
    """The same as `ready`, where SageMaker looks."""
    return await ready(services)


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
