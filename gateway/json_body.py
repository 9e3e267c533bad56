"""JSON bodies as pydantic models, read within the limits; faults are told as OpenAI tells them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError

from gateway.body import read_body
from gateway.errors import InvalidRequestCode, InvalidRequestError
from gateway.limits import Limits

_CODES: Mapping[str, InvalidRequestCode] = MappingProxyType(
    {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}
)


class JsonBody(BaseModel):
    """A JSON object of known fields."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Body = TypeVar("Body", bound=JsonBody)


async def read_json_body(request: Request, limits: Limits, kind: type[Body]) -> Body:
    """The body; none counts as an object without fields.

    Raises InvalidRequestError, RequestTooLargeError, RequestTimeoutError.
    """
    raw = await read_body(request, max_bytes=limits.max_body_bytes, idle_s=limits.body_idle_s)
    return parse_json_body(raw, kind)


def parse_json_body(raw: bytes, kind: type[Body]) -> Body:
    """The object. Raises InvalidRequestError, which names the field at fault."""
    try:
        return kind.model_validate_json(raw or b"{}")
    except ValidationError as error:
        # Without the input: it may hold secrets.
        first = error.errors(include_url=False, include_input=False)[0]
        param = ""
        for part in first["loc"]:
            param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else str(part)
        raise InvalidRequestError(
            f"Invalid '{param or 'body'}': {first['msg']}.",
            param=param or None,
            code=_CODES.get(first["type"], "invalid_value"),
        ) from None
