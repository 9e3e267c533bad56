"""/v1/adapters: list, show and delete a tenant's adapters."""

from functools import partial
from typing import Annotated, Literal

from anyio import to_thread
from fastapi import Query, Request
from starlette.responses import JSONResponse, Response

from adapter_sync.errors import AdapterNotFoundError, PreconditionFailedError
from adapter_sync.fetches import FetchStage
from adapter_sync.record import AdapterStatus
from adapter_sync.registry import AdapterQuery
from gateway.adapter_object import (
    ADAPTER_ANSWER,
    AdapterIdInPath,
    AdapterObject,
    adapter_answer,
    adapter_list,
)
from gateway.auth import CurrentTenant
from gateway.errors import InvalidRequestError
from gateway.if_match import if_match
from gateway.list_object import DeletedObject, ListObject, deleted_object
from gateway.openapi import Answer, Operation, described
from gateway.openapi.headers import IF_MATCH
from gateway.services import CurrentServices

DEFAULT_LIMIT = 20
MAX_LIMIT = 100
_SHOWN = sorted({*AdapterStatus, *FetchStage} - {AdapterStatus.DELETING})


@described(
    Operation(
        tag="Adapters",
        summary="List the adapters, by their time of creation",
        answers={
            200: Answer(
                content={"application/json": ListObject[AdapterObject]}, description="A page."
            )
        },
    )
)
async def list_adapters(
    tenant: CurrentTenant,
    services: CurrentServices,
    *,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
    after: Annotated[str | None, Query(description="The `last_id` of the page before.")] = None,
    order: Literal["asc", "desc"] = "desc",
    base_model: str | None = None,
    status: Annotated[str | None, Query(json_schema_extra={"enum": _SHOWN})] = None,
) -> Response:
    """GET /v1/adapters, a page of them, by their time of creation. Raises InvalidRequestError."""
    query = AdapterQuery(
        limit=limit,
        after=after,
        oldest_first=order == "asc",
        base_model=base_model,
        status=None if status is None else _shown_status(status),
    )
    try:
        page = await to_thread.run_sync(services.registry.adapter_page, tenant.id, query)
        fetches = await to_thread.run_sync(services.registry.fetches, tenant.id)
    except AdapterNotFoundError as error:
        raise InvalidRequestError(
            f"Invalid 'after': {error} Begin again without 'after'.",
            param="after",
            code="invalid_value",
        ) from error
    return JSONResponse(adapter_list(page, {fetch.id: fetch for fetch in fetches}))


@described(
    Operation(
        tag="Adapters",
        summary="Show an adapter",
        answers={
            200: Answer(
                content=ADAPTER_ANSWER, description="The adapter.", optional_headers=("etag",)
            )
        },
        errors=(AdapterNotFoundError,),
    )
)
async def show_adapter(
    adapter_id: AdapterIdInPath, tenant: CurrentTenant, services: CurrentServices
) -> Response:
    """GET /v1/adapters/{adapter_id}. Raises AdapterNotFoundError."""
    found = await to_thread.run_sync(services.registry.adapter_or_fetch, tenant.id, adapter_id)
    return adapter_answer(*found)


@described(
    Operation(
        tag="Adapters",
        summary="Delete an adapter",
        description="It is gone for new requests at once; those in flight finish.",
        parameters=(IF_MATCH,),
        answers={200: Answer(content={"application/json": DeletedObject}, description="Deleted.")},
        errors=(AdapterNotFoundError, PreconditionFailedError),
    )
)
async def delete_adapter(
    adapter_id: AdapterIdInPath, request: Request, tenant: CurrentTenant, services: CurrentServices
) -> Response:
    """DELETE /v1/adapters/{adapter_id}.

    Raises AdapterNotFoundError, also the second time, and PreconditionFailedError.
    """
    condition = if_match(request.headers.getlist("if-match"))
    await to_thread.run_sync(
        partial(services.registry.delete_adapter, tenant.id, adapter_id, if_match=condition)
    )
    return JSONResponse(deleted_object(adapter_id, "adapter"))


def _shown_status(status: str) -> str:
    if status in _SHOWN:
        return status
    raise InvalidRequestError(
        f"Invalid 'status': expected one of {', '.join(_SHOWN)}, but got '{status}' instead.",
        param="status",
        code="invalid_value",
    )
