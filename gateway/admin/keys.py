"""/admin/v1/tenants/{name}/keys and /admin/v1/keys."""

from datetime import UTC, datetime
from functools import partial

from anyio import to_thread
from fastapi import Request
from starlette.responses import JSONResponse, Response

from gateway.admin.bodies import NewKey
from gateway.admin.objects import DEFAULT_LIMIT, Limit, key_object
from gateway.errors import InvalidRequestError
from gateway.json_body import read_json_body
from gateway.list_object import list_object
from gateway.services import CurrentServices


async def list_keys(
    name: str, services: CurrentServices, limit: Limit = DEFAULT_LIMIT, after: str | None = None
) -> Response:
    """GET: a tenant's keys, the newest first. Raises TenantNotFoundError, UnknownCursorError."""
    page = await to_thread.run_sync(partial(services.registry.keys, name, limit=limit, after=after))
    keys = [key_object(key, name) for key in page.items]
    return JSONResponse(list_object(keys, has_more=page.has_more))


async def create_key(name: str, request: Request, services: CurrentServices) -> Response:
    """POST: a new key, whose `api_key` is told only here.

    Raises InvalidRequestError, InvalidNameError, TenantNotFoundError.
    """
    body = await read_json_body(request, services.limits, NewKey)
    issued = await to_thread.run_sync(
        partial(
            services.registry.issue_key, name, name=body.name, expires_at=_expiry(body.expires_at)
        )
    )
    return JSONResponse({**key_object(issued.key, name), "api_key": issued.text}, 201)


async def revoke_key(key_id: str, services: CurrentServices) -> Response:
    """DELETE: the key ends at once; it stays in the lists. Raises KeyNotFoundError."""
    key = await to_thread.run_sync(services.registry.revoke_key, key_id)
    return JSONResponse({"id": key.id, "object": "api_key", "deleted": True})


def _expiry(unix_s: int | None) -> datetime | None:
    if unix_s is None:
        return None
    moment = datetime.fromtimestamp(unix_s, UTC)
    if moment <= datetime.now(UTC):
        raise InvalidRequestError("Invalid 'expires_at': it is in the past.", param="expires_at")
    return moment
