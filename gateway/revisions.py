"""/v1/adapters/{adapter_id}: its revisions, and the way back to one."""

import json
from functools import partial

from anyio import to_thread
from fastapi import Request
from starlette.responses import JSONResponse, Response

from gateway.adapter_object import adapter_answer, revision_list
from gateway.auth import CurrentTenant
from gateway.body import read_body
from gateway.errors import InvalidRequestError
from gateway.if_match import if_match
from gateway.loading import loaded, wait_deadline
from gateway.services import CurrentServices

_REVISION = "revision"


async def list_revisions(
    adapter_id: str, tenant: CurrentTenant, services: CurrentServices
) -> Response:
    """GET /v1/adapters/{adapter_id}/revisions, the newest first. Raises AdapterNotFoundError."""
    kept = await to_thread.run_sync(services.registry.revisions, tenant.id, adapter_id)
    return JSONResponse(revision_list(kept))


async def roll_back_adapter(
    adapter_id: str, request: Request, tenant: CurrentTenant, services: CurrentServices
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
