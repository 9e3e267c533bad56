"""/admin/v1/nodes: each Triton with its adapter_sync, as it announced itself."""

from datetime import UTC, datetime

from anyio import to_thread
from starlette.responses import JSONResponse, Response

from gateway.list_object import list_object
from gateway.services import CurrentServices


async def list_nodes(services: CurrentServices) -> Response:
    """GET, sorted by host; a node that has been silent for too long is `lost`."""
    nodes = await to_thread.run_sync(services.registry.nodes)
    now = datetime.now(UTC)
    return JSONResponse(list_object([node.document(now) for node in nodes]))
