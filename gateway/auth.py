"""Who asks: a bearer key becomes a tenant, before anything else happens below /v1."""

from typing import TYPE_CHECKING, Annotated

from anyio import to_thread
from fastapi import Depends, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from adapter_sync.errors import InvalidApiKeyError
from adapter_sync.record import Tenant
from gateway.errors import handle_error

if TYPE_CHECKING:
    from gateway.services import Services

_PREFIX = "/v1"
_NO_KEY = (
    "You didn't provide an API key. Provide it in an Authorization header using Bearer auth, "
    "as in: Authorization: Bearer YOUR_KEY"
)


class Authentication:
    """ASGI middleware: no key, no /v1, not even a 404; `scope["state"]["tenant"]` is who asks.

    It decides on scope["path"], which is what routes are matched on; request.url.path is not.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what has a good key or needs none; answer the rest."""
        if scope["type"] == "http" and needs_key(scope["path"]):
            services: Services = scope["state"]["services"]
            try:
                key = bearer_key(Headers(scope=scope).getlist("authorization"))
                tenant = await to_thread.run_sync(services.registry.tenant_of_key, key)
            except InvalidApiKeyError as error:
                response = await handle_error(Request(scope), error)
                await response(scope, receive, send)
                return
            scope["state"]["tenant"] = tenant
            scope["state"]["log_fields"]["tenant_id"] = tenant.id
        await self._app(scope, receive, send)


def needs_key(path: str) -> bool:
    """Whether a path is for tenants only."""
    return path == _PREFIX or path.startswith(f"{_PREFIX}/")


def bearer_key(authorization: list[str]) -> str:
    """The key in the Authorization headers. Raises InvalidApiKeyError."""
    if len(authorization) != 1:
        raise InvalidApiKeyError(_NO_KEY)
    scheme, _, key = authorization[0].partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise InvalidApiKeyError(_NO_KEY)
    return key.strip()


async def _tenant(request: Request) -> Tenant:
    # A route mounted where Authentication does not look is closed, not open.
    tenant = getattr(request.state, "tenant", None)
    if not isinstance(tenant, Tenant):
        raise InvalidApiKeyError(_NO_KEY)
    return tenant


CurrentTenant = Annotated[Tenant, Depends(_tenant)]
