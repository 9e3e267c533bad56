"""/admin/v1/nodes: each Triton with its adapter_sync, as it announced itself."""

from datetime import UTC, datetime

from anyio import to_thread
from starlette.responses import JSONResponse, Response

from gateway.admin.objects import NodeObject
from gateway.list_object import ListObject, list_object
from gateway.openapi import Answer, Operation, described
from gateway.services import CurrentServices


@described(
    Operation(
        tag="Admin",
        summary="List the nodes, sorted by host",
        answers={
            200: Answer(
                content={"application/json": ListObject[NodeObject]}, description="All of them."
            )
        },
    )
)
async def list_nodes(services: CurrentServices) -> Response:
    """GET, sorted by host; a node that has been silent for too long is `lost`."""
    nodes = await to_thread.run_sync(services.registry.nodes)
    now = datetime.now(UTC)
    return JSONResponse(list_object([node.document(now) for node in nodes]))
