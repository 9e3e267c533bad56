"""/admin/v1/tiers: the tiers and their limits, which are configuration and not changed here."""

from starlette.responses import JSONResponse, Response

from gateway.admin.objects import TierObject, tier_object
from gateway.list_object import ListObject, list_object
from gateway.openapi import Answer, Operation, described
from gateway.services import CurrentServices


@described(
    Operation(
        tag="Admin",
        summary="List the tiers, sorted by name",
        answers={
            200: Answer(
                content={"application/json": ListObject[TierObject]}, description="All of them."
            )
        },
    )
)
async def list_tiers(services: CurrentServices) -> Response:
    """GET, sorted by name; a tier's name is its id."""
    known = services.registry.tiers
    tiers = [known.named(name) for name in known.names]
    return JSONResponse(list_object([tier_object(tier) for tier in tiers]))
