"""/v1/adapters/{adapter_id}: its revisions, and the way back to one."""

import json
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from anyio import to_thread
from fastapi import Request
from starlette.responses import JSONResponse, Response

from adapter_sync.errors import (
    AdapterNotFoundError,
    NoEarlierRevisionError,
    PreconditionFailedError,
    RevisionNotFoundError,
)
from gateway.adapter_object import (
    ADAPTER_ANSWER,
    AdapterIdInPath,
    RevisionObject,
    adapter_answer,
    revision_list,
)
from gateway.auth import CurrentTenant
from gateway.body import read_body
from gateway.errors import InvalidRequestError
from gateway.if_match import if_match
from gateway.list_object import PlainList
from gateway.loading import loaded, wait_deadline
from gateway.openapi import Answer, Body, Operation, described
from gateway.openapi.headers import IF_MATCH, PREFER
from gateway.services import CurrentServices

_REVISION = "revision"
_BODY_SCHEMA: Mapping[str, Any] = MappingProxyType(
    {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            _REVISION: {
                "type": ["integer", "null"],
                "description": "A revision kept; the one before the newest without it.",
            }
        },
    }
)


@described(
    Operation(
        tag="Adapters",
        summary="List an adapter's revisions, the newest first",
        answers={
            200: Answer(
                content={"application/json": PlainList[RevisionObject]},
                description="Those that can be gone back to.",
            )
        },
        errors=(AdapterNotFoundError,),
    )
)
async def list_revisions(
    adapter_id: AdapterIdInPath, tenant: CurrentTenant, services: CurrentServices
) -> Response:
    """GET /v1/adapters/{adapter_id}/revisions, the newest first. Raises AdapterNotFoundError."""
    kept = await to_thread.run_sync(services.registry.revisions, tenant.id, adapter_id)
    return JSONResponse(revision_list(kept))


@described(
    Operation(
        tag="Adapters",
        summary="Go back to an earlier revision",
        description="Its content becomes a new revision.",
        parameters=(IF_MATCH, PREFER),
        body=Body(shape=_BODY_SCHEMA, example={_REVISION: 1}, required=False),
        answers={
            200: Answer(content=ADAPTER_ANSWER, description="The adapter.", headers=("etag",))
        },
        errors=(
            AdapterNotFoundError,
            NoEarlierRevisionError,
            PreconditionFailedError,
            RevisionNotFoundError,
        ),
    )
)
async def roll_back_adapter(
    adapter_id: AdapterIdInPath, request: Request, tenant: CurrentTenant, services: CurrentServices
) -> Response:
    """POST /v1/adapters/{adapter_id}/rollback: an earlier content as a new revision.

    Raises InvalidRequestError, AdapterNotFoundError, PreconditionFailedError,
    RevisionNotFoundError, NoEarlierRevisionError.
    """
    limits = services.limits
    number = parse_revision(
        await read_body(request, max_bytes=limits.max_field_bytes, idle_s=limits.body_idle_s)
    )
    condition = if_match(request.headers.getlist("if-match"))
    adapter = await to_thread.run_sync(
        partial(services.intake.roll_back, tenant, adapter_id, number, if_match=condition),
        limiter=services.upload_threads,
    )
    return adapter_answer(await loaded(services, adapter, wait_deadline(request, limits)))


def parse_revision(body: bytes) -> int | None:
    """The number in `{"revision": N}`; None when it isn't said. Raises InvalidRequestError."""
    try:
        document = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(
            'The body is not valid JSON. Send {"revision": N}, or no body.', param=None
        ) from error
    if not isinstance(document, dict):
        raise InvalidRequestError(
            'The body is no JSON object. Send {"revision": N}, or no body.',
            param=None,
            code="invalid_type",
        )
    for name in sorted(document.keys() - {_REVISION}):
        raise InvalidRequestError(
            f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter"
        )
    number = document.get(_REVISION)
    # A bool is an int to Python.
    if number is not None and type(number) is not int:
        raise InvalidRequestError(
            f"Invalid '{_REVISION}': expected a whole number, the `number` of a revision kept.",
            param=_REVISION,
            code="invalid_type",
        )
    return number
