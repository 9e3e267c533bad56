"""GET /health/live, and /health/ready by its three names: no key, and no names but base models'."""

import asyncio
from dataclasses import dataclass
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
class BaseModelHealth(TypedDict):
    """How long ago the engine last showed that it is alive, in seconds."""

    proof_age_s: float


@with_config(EXACT)
class Ready(TypedDict):
    """Requests can be answered."""

    status: Literal["ready"]
    base_models: dict[str, BaseModelHealth]


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
    """The registry answers, and each base model's engine; 503 with what is missing."""
    missing, base_models = await _look(services)
    if missing:
        refusal: NotReady = {"status": "not_ready", "missing": missing}
        return JSONResponse(refusal, _UNAVAILABLE)
    answer: Ready = {"status": "ready", "base_models": base_models}
    return JSONResponse(answer)


@described(_READINESS)
async def health(services: CurrentServices) -> Response:
    """The same as `ready`, where vLLM's clients and load generators look."""
    return await ready(services)


@described(_READINESS)
async def ping(services: CurrentServices) -> Response:
    """The same as `ready`, where SageMaker looks."""
    return await ready(services)


async def _look(services: Services) -> tuple[list[str], dict[str, BaseModelHealth]]:
    """What is missing, in words, and the base models that answer."""
    if services.stopping.is_set:
        return ["the server is stopping"], {}
    try:
        names = await to_thread.run_sync(services.base_models.by_name)
    except (SQLAlchemyError, TransientError):
        return ["the registry does not answer"], {}
    if not names:
        return ["no base model is registered"], {}
    looks = await asyncio.gather(*(_look_at(services, name) for name in names))
    answering = {look.base_model: look.health for look in looks if look.health is not None}
    # One that loads for the first time holds up none of the others.
    missing = [
        look.missing
        for look in looks
        if look.missing is not None and not (look.is_starting and answering)
    ]
    return missing, answering


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What was seen of a base model: its health, or what is missing."""

    base_model: str
    health: BaseModelHealth | None = None
    missing: str | None = None
    is_starting: bool = False


async def _look_at(services: Services, base_model: str) -> _Look:
    within_s = services.limits.readiness_s
    try:
        if not await services.engine.is_ready(base_model, within_s=within_s):
            return _Look(
                base_model=base_model,
                missing=f"the base model '{base_model}' is not ready",
                is_starting=base_model not in services.has_answered,
            )
        health = await services.engine.health(base_model, within_s=within_s)
    except TransientError:
        missing = f"Triton does not answer for the base model '{base_model}'"
        return _Look(base_model=base_model, missing=missing)
    if not health.alive:
        missing = f"the engine of the base model '{base_model}' has died and is being restarted"
        return _Look(base_model=base_model, missing=missing)
    services.has_answered.add(base_model)
    return _Look(base_model=base_model, health={"proof_age_s": health.proof_age_s})
