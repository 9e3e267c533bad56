"""The bodies that the admin API takes, and how they are read."""

from typing import Annotated, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.body import read_body
from gateway.errors import InvalidRequestError
from gateway.limits import Limits

_LAST_SECOND = 253_402_300_799
"""Of the year 9999, after which there is no datetime."""

Given = TypeVar("Given", bound="Body")


class Body(BaseModel):
    """A JSON object of known fields."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class NewTenant(Body):
    """POST /admin/v1/tenants."""

    name: str
    tier: str


class TenantChange(Body):
    """PATCH /admin/v1/tenants/{name}."""

    tier: str


class NewKey(Body):
    """POST /admin/v1/tenants/{name}/keys; `expires_at` in Unix seconds."""

    name: str | None = None
    expires_at: Annotated[int, Field(ge=0, le=_LAST_SECOND)] | None = None


async def read_object(request: Request, limits: Limits, kind: type[Given]) -> Given:
    """The body; none counts as an object without fields. Raises InvalidRequestError."""
    raw = await read_body(request, max_bytes=limits.max_body_bytes, idle_s=limits.body_idle_s)
    try:
        return kind.model_validate_json(raw or b"{}")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        param = ".".join(str(part) for part in first["loc"]) or None
        raise InvalidRequestError(
            f"Invalid {'body' if param is None else repr(param)}: {first['msg']}.", param=param
        ) from None
