"""/admin/v1/tiers: the tiers and their limits, which are configuration and not changed here."""

from dataclasses import asdict

from starlette.responses import JSONResponse, Response

from adapter_sync.tiers import TIERS
from gateway.admin.objects import list_object


async def list_tiers() -> Response:
    """GET, sorted by name; a tier's name is its id."""
    tiers = [TIERS[name] for name in sorted(TIERS)]
    return JSONResponse(
        list_object([{"id": tier.name, "object": "tier", **asdict(tier)} for tier in tiers])
    )
