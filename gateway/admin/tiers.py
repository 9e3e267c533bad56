"""/admin/v1/tiers: the tiers and their limits, which are configuration and not changed here."""

from dataclasses import asdict

from starlette.responses import JSONResponse, Response

from gateway.list_object import list_object
from gateway.services import CurrentServices


async def list_tiers(services: CurrentServices) -> Response:
    """GET, sorted by name; a tier's name is its id."""
    known = services.registry.tiers
    tiers = [known.named(name) for name in known.names]
    return JSONResponse(
        list_object([{"id": tier.name, "object": "tier", **asdict(tier)} for tier in tiers])
    )
