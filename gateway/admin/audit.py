"""/admin/v1/audit: who changed what, and when."""

import re
from functools import partial

from anyio import to_thread
from starlette.responses import JSONResponse, Response

from adapter_sync.errors import UnknownCursorError
from gateway.admin.objects import DEFAULT_LIMIT, After, AuditObject, Limit, audit_object
from gateway.list_object import ListObject, list_object
from gateway.openapi import Answer, Operation, described
from gateway.services import CurrentServices

_ID = re.compile(r"aud_([0-9]{1,18})")


@described(
    Operation(
        tag="Admin",
        summary="List the audit, the newest first",
        answers={
            200: Answer(
                content={"application/json": ListObject[AuditObject]}, description="A page."
            )
        },
        errors=(UnknownCursorError,),
    )
)
async def list_audit(
    services: CurrentServices, limit: Limit = DEFAULT_LIMIT, after: After = None
) -> Response:
    """GET, the newest first. Raises UnknownCursorError."""
    before = None if after is None else _number(after)
    page = await to_thread.run_sync(partial(services.registry.audit, limit=limit, before=before))
    entries = [audit_object(entry) for entry in page.items]
    return JSONResponse(list_object(entries, has_more=page.has_more))


def _number(entry_id: str) -> int:
    match = _ID.fullmatch(entry_id)
    if match is None:
        raise UnknownCursorError(after=entry_id)
    return int(match.group(1))
