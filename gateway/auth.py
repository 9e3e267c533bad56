"""Who asks: a bearer key becomes a tenant below /v1 and the operator below /admin, before all else.

What a request changes is later told by its actor: `key:<key_id>` or `admin`.
"""

from hmac import compare_digest
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
_ALSO_FOR_TENANTS = frozenset({"/tokenize", "/detokenize"})
_ADMIN_PREFIX = "/admin"
ADMIN = "admin"
_NO_KEY = (
    "You didn't provide an API key. Provide it in an Authorization header using Bearer auth, "
    "as in: Authorization: Bearer YOUR_KEY"
)
_WRONG_ADMIN_KEY = (
    "Incorrect admin key provided. Send the gateway's LORA_ADMIN_KEY as 'Authorization: Bearer …'; "
    "a tenant's key is none."
)


class Authentication:
    """ASGI middleware: no key, no /v1 and no /admin, not even a 404.

    `scope["state"]` then has the `actor`, and below /v1 the `caller` and its `tenant`.
    It decides on scope["path"], which is what routes are matched on; request.url.path is not.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what has a good key or needs none; answer the rest."""
        if scope["type"] == "http":
            try:
                await _identify(scope)
            except InvalidApiKeyError as error:
                response = await handle_error(Request(scope), error)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _identify(scope: Scope) -> None:
    if needs_key(scope["path"]):
        await _identify_tenant(scope, scope["state"]["services"])
    elif needs_admin_key(scope["path"]):
        _identify_admin(scope, scope["state"]["services"])


async def _identify_tenant(scope: Scope, services: "Services") -> None:
    key = tenant_key(Headers(scope=scope))
    caller = await to_thread.run_sync(services.registry.caller, key)
    services.key_uses.note(caller.key)
    scope["state"].update(caller=caller, tenant=caller.tenant, actor=caller.actor)
    scope["state"]["log_fields"].update(tenant_id=caller.tenant.id, key_id=caller.key.id)


def _identify_admin(scope: Scope, services: "Services") -> None:
    if services.admin_key is None:
        return
    key = bearer_key(Headers(scope=scope).getlist("authorization"))
    if not compare_digest(key.encode(), services.admin_key.get_secret_value().encode()):
        raise InvalidApiKeyError(_WRONG_ADMIN_KEY)
    scope["state"]["actor"] = scope["state"]["log_fields"]["actor"] = ADMIN


def needs_key(path: str) -> bool:
    """Whether a path is for tenants only."""
    return path == _PREFIX or path.startswith(f"{_PREFIX}/") or path in _ALSO_FOR_TENANTS


def needs_admin_key(path: str) -> bool:
    """Whether a path is for the operator only, if there is an admin API at all."""
    return path == _ADMIN_PREFIX or path.startswith(f"{_ADMIN_PREFIX}/")


def tenant_key(headers: Headers) -> str:
    """The key in the Authorization header, or in Anthropic's. Raises InvalidApiKeyError."""
    authorization, keys = headers.getlist("authorization"), headers.getlist("x-api-key")
    if not authorization and len(keys) == 1 and keys[0].strip():
        return keys[0].strip()
    return bearer_key(authorization)


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


async def require_admin(request: Request) -> None:
    """Closes a route to all but the operator. Raises InvalidApiKeyError."""
    if getattr(request.state, "actor", None) != ADMIN:
        raise InvalidApiKeyError(_WRONG_ADMIN_KEY)


CurrentTenant = Annotated[Tenant, Depends(_tenant)]
