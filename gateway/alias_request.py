"""Reading the body of PUT /v1/aliases/{alias}: one model, or several with weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import pydantic

from gateway.errors import InvalidRequestError

MAX_TARGETS = 16
MAX_WEIGHT = 1_000_000
_CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedTarget:
    """A target as the client names it."""

    requested_model: str
    weight: int


class _Target(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    model: str
    weight: Annotated[int, pydantic.Field(ge=1, le=MAX_WEIGHT)]


class _Body(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    targets: (
        Annotated[list[_Target], pydantic.Field(min_length=1, max_length=MAX_TARGETS)] | None
    ) = None


def parse_alias_request(raw: bytes) -> list[RequestedTarget]:
    """The targets, at least one, none twice. Raises InvalidRequestError."""
    try:
        body = _Body.model_validate_json(raw)
    except pydantic.ValidationError as error:
        raise _refusal(error) from error
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


def _refusal(error: pydantic.ValidationError) -> InvalidRequestError:
    first = error.errors()[0]
    param = ""
    for part in first["loc"]:
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else part
    return InvalidRequestError(
        f"Invalid '{param or 'body'}': {first['msg']}.",
        param=param or None,
        code=_CODES.get(first["type"], "invalid_value"),
    )
