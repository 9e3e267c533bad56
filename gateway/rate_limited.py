"""Keeps tenants within their tiers' rates, on the paths that ask an engine."""

from typing import TYPE_CHECKING

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapter_sync.errors import TierMissingError
from adapter_sync.record import Tenant
from adapter_sync.tiers import Tier
from gateway.errors import RateLimitError, handle_error
from gateway.inference.endpoints import INFERENCE_ENDPOINTS
from gateway.rate_limits import RateLimits

if TYPE_CHECKING:
    from gateway.services import Services

LIMITED = frozenset(("POST", endpoint.path) for endpoint in INFERENCE_ENDPOINTS)


class RateLimited:
    """ASGI middleware, inside Authentication. Each answer says what is left."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is within the limits; answer the rest."""
        if scope["type"] != "http" or (scope["method"], scope["path"]) not in LIMITED:
            await self._app(scope, receive, send)
            return
        services: Services = scope["state"]["services"]
        tenant: Tenant = scope["state"]["tenant"]
        try:
            tier = services.registry.tiers.of(tenant)
            send = _telling(send, services.rate_limits, tenant, tier)
            with services.rate_limits.admitted(tenant.id, tier):
                await self._app(scope, receive, send)
        except (RateLimitError, TierMissingError) as error:
            response = await handle_error(Request(scope), error)
            await response(scope, receive, send)


def _telling(send: Send, limits: RateLimits, tenant: Tenant, tier: Tier) -> Send:
    async def send_with_limits(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(limits.headers(tenant.id, tier))
        await send(message)

    return send_with_limits
