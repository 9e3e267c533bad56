"""What the routes work with, made once at start-up."""

from dataclasses import dataclass, replace
from random import Random
from typing import Annotated, Self

from anyio import CapacityLimiter
from fastapi import Depends, Request
from pydantic import SecretStr

from adapter_sync.intake import Intake
from adapter_sync.registry import Registry
from gateway.base_models import BaseModels
from gateway.engine_client import EngineClient
from gateway.key_uses import KeyUses
from gateway.limits import Limits
from gateway.rate_limits import RateLimits
from gateway.stopping import Stopping
from gateway.usage_recorder import UsageRecorder


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The gateway's parts.

    `upload_threads` keeps uploads from taking the threads that authentication needs, `hub_threads`
    a slow hub from taking those of the uploads. `random`
    draws an alias's target for each request.
    """

    registry: Registry
    base_models: BaseModels
    intake: Intake
    engine: EngineClient
    secret_key: bytes
    limits: Limits
    rate_limits: RateLimits
    usage: UsageRecorder
    upload_threads: CapacityLimiter
    hub_threads: CapacityLimiter
    started_at: int
    random: Random
    admin_key: SecretStr | None
    key_uses: KeyUses
    stopping: Stopping
    has_answered: set[str]
    """The base models whose engines were alive at some look of /health/ready."""

    def acting_as(self, actor: str) -> Self:
        """The same parts, whose changes are in the audit as this actor's."""
        return replace(
            self, registry=self.registry.acting_as(actor), intake=self.intake.acting_as(actor)
        )


async def _services(request: Request) -> Services:
    # Here, so that no route can forget it. What needs no key changes nothing.
    services: Services = request.state.services
    actor: str | None = getattr(request.state, "actor", None)
    return services if actor is None else services.acting_as(actor)


CurrentServices = Annotated[Services, Depends(_services)]
