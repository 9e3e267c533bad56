"""Reading the body of PUT /v1/aliases/{alias}: one model, or several with weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import pydantic

from gateway.errors import InvalidRequestError
from gateway.json_body import JsonBody, parse_json_body

MAX_TARGETS = 16
MAX_WEIGHT = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedTarget:
    """A target as the client names it."""

    requested_model: str
    weight: int


class AliasBodyTarget(JsonBody):
    """A model and its part of the requests."""

    model: str
    weight: Annotated[int, pydantic.Field(ge=1, le=MAX_WEIGHT)]


class AliasBody(JsonBody):
    """PUT /v1/aliases/{alias}: either one model or several targets."""

    model_config = pydantic.ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["model"], "properties": {"model": {"type": "string"}}},
                {"required": ["targets"], "properties": {"targets": {"type": "array"}}},
            ]
        }
    )

    model: str | None = None
    targets: (
        Annotated[list[AliasBodyTarget], pydantic.Field(min_length=1, max_length=MAX_TARGETS)]
        | None
    ) = None


def parse_alias_request(raw: bytes) -> list[RequestedTarget]:
    """The targets, at least one, none twice. Raises InvalidRequestError."""
    body = parse_json_body(raw, AliasBody)
    if (body.model is None) == (body.targets is None):
        raise InvalidRequestError(
            "Send either 'model', or 'targets' with a 'model' and a 'weight' each.",
            param="model" if body.targets is None else "targets",
            code="missing_required_parameter" if body.targets is None else "invalid_value",
        )
    if body.model is not None:
        return [RequestedTarget(requested_model=body.model, weight=1)]
    targets = [
        RequestedTarget(requested_model=target.model, weight=target.weight)
        for target in body.targets or ()
    ]
    _check_unique(targets)
    return targets


def _check_unique(targets: Sequence[RequestedTarget]) -> None:
    seen: set[str] = set()
    for index, target in enumerate(targets):
        if target.requested_model in seen:
            raise InvalidRequestError(
                f"Invalid 'targets[{index}].model': '{target.requested_model}' is there twice. "
                "Give it one weight.",
                param=f"targets[{index}].model",
                code="invalid_value",
            )
        seen.add(target.requested_model)
