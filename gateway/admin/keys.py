"""/admin/v1/tenants/{name}/keys and /admin/v1/keys."""

from datetime import UTC, datetime
from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import Path, Request
from starlette.responses import JSONResponse, Response

from adapter_sync.errors import (
    InvalidNameError,
    KeyNotFoundError,
    TenantNotFoundError,
    UnknownCursorError,
)
from gateway.admin.bodies import NewKey
from gateway.admin.objects import (
    DEFAULT_LIMIT,
    After,
    KeyObject,
    Limit,
    NewKeyObject,
    TenantName,
    key_object,
)
from gateway.errors import InvalidRequestError
from gateway.json_body import read_json_body
from gateway.list_object import DeletedObject, ListObject, deleted_object, list_object
from gateway.openapi import Answer, Body, Operation, described
from gateway.services import CurrentServices


@described(
    Operation(
        tag="Admin",
        summary="List a tenant's keys, the newest first",
        answers={
            200: Answer(
                content={"application/json": ListObject[KeyObject]},
                description="A page; keys that ended are in it.",
            )
        },
        errors=(TenantNotFoundError, UnknownCursorError),
    )
)
async def list_keys(
    name: TenantName, services: CurrentServices, limit: Limit = DEFAULT_LIMIT, after: After = None
) -> Response:
    """GET: a tenant's keys, the newest first. Raises TenantNotFoundError, UnknownCursorError."""
    page = await to_thread.run_sync(partial(services.registry.keys, name, limit=limit, after=after))
    keys = [key_object(key, name) for key in page.items]
    return JSONResponse(list_object(keys, has_more=page.has_more))


@described(
    Operation(
        tag="Admin",
        summary="Make a key for a tenant",
        body=Body(
            shape=NewKey, example={"name": "laptop", "expires_at": 1830297600}, required=False
        ),
        answers={
            201: Answer(
                content={"application/json": NewKeyObject},
                description="The key, and its text.",
                links={"admin_revoke_key": {"key_id": "$response.body#/id"}},
            )
        },
        errors=(InvalidNameError, TenantNotFoundError),
    )
)
async def create_key(name: TenantName, request: Request, services: CurrentServices) -> Response:
    """POST: a new key, whose `api_key` is told only here.

    Raises InvalidRequestError, InvalidNameError, TenantNotFoundError.
    """
    body = await read_json_body(request, services.limits, NewKey)
    issued = await to_thread.run_sync(
        partial(
            services.registry.issue_key, name, name=body.name, expires_at=_expiry(body.expires_at)
        )
    )
    answer: NewKeyObject = {**key_object(issued.key, name), "api_key": issued.text}
    return JSONResponse(answer, 201)


@described(
    Operation(
        tag="Admin",
        summary="Revoke a key",
        answers={
            200: Answer(
                content={"application/json": DeletedObject},
                description="It ended; it stays in the lists.",
            )
        },
        errors=(KeyNotFoundError,),
    )
)
async def revoke_key(
    key_id: Annotated[str, Path(json_schema_extra={"pattern": "^[0-9a-f]{20}$"})],
    services: CurrentServices,
) -> Response:
    """DELETE: the key ends at once; it stays in the lists. Raises KeyNotFoundError."""
    key = await to_thread.run_sync(services.registry.revoke_key, key_id)
    return JSONResponse(deleted_object(key.id, "api_key"))


def _expiry(unix_s: int | None) -> datetime | None:
    if unix_s is None:
        return None
    moment = datetime.fromtimestamp(unix_s, UTC)
    if moment <= datetime.now(UTC):
        raise InvalidRequestError("Invalid 'expires_at': it is in the past.", param="expires_at")
    return moment
