"""What the routes work with, made once at start-up."""

from dataclasses import dataclass
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request

from adapter_sync.intake import Intake
from adapter_sync.registry import Registry
from gateway.base_models import BaseModels
from gateway.limits import Limits
from gateway.rate_limits import RateLimits
from gateway.triton import EngineClient
from gateway.usage_recorder import UsageRecorder


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The gateway's parts.

    `upload_threads` keeps uploads from taking the threads that authentication needs.
    """

    registry: Registry
    base_models: BaseModels
    intake: Intake
    engine: EngineClient
    cache_salt_key: bytes
    limits: Limits
    rate_limits: RateLimits
    usage: UsageRecorder
    upload_threads: CapacityLimiter
    started_at: int


async def _services(request: Request) -> Services:
    services: Services = request.state.services
    return services


CurrentServices = Annotated[Services, Depends(_services)]
