"""The bodies that the admin API takes."""

from typing import Annotated

from pydantic import Field

from adapter_sync.record import TENANT_NAME
from gateway.json_body import JsonBody

_LAST_SECOND = 253_402_300_799
"""Of the year 9999, after which there is no datetime."""


class NewTenant(JsonBody):
    """POST /admin/v1/tenants."""

    name: Annotated[str, Field(json_schema_extra={"pattern": f"^{TENANT_NAME.pattern}$"})]
    tier: str


class TenantChange(JsonBody):
    """PATCH /admin/v1/tenants/{name}."""

    tier: str


class Reservation(JsonBody):
    """PUT /admin/v1/base-models/{name}/reservation: the tenants' names."""

    tenants: Annotated[list[str], Field(min_length=1, max_length=100)]


class NewKey(JsonBody):
    """POST /admin/v1/tenants/{name}/keys; `expires_at` in Unix seconds."""

    name: str | None = None
    expires_at: Annotated[int, Field(ge=0, le=_LAST_SECOND)] | None = None
