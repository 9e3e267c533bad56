"""What the OpenAPI document says of a route, kept beside the route's own function."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

from adapter_sync.errors import LoraServerError
from gateway.errors import ErrorEnvelope

Shape: TypeAlias = Any
"""A type that pydantic has a JSON schema for, or a JSON schema itself, as a mapping."""
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
_ATTRIBUTE = "openapi_operation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A good answer: its shape by media type, and the headers that it always has.

    `links` are OpenAPI's: an operation's id, and what of this answer goes into its parameters.
    """

    content: Mapping[str, Shape]
    description: str
    headers: tuple[str, ...] = ()
    optional_headers: tuple[str, ...] = ()
    links: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """A request's body."""

    shape: Shape
    example: Mapping[str, Any]
    required: bool = True
    media_type: str = "application/json"
    encoding: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A route in the document.

    Path and query parameters are read from the function; `parameters` are those that it reads
    from the request by itself. Errors are classes: what they look like over HTTP is known to
    gateway.errors. Those of every route (no key, a body too large, a fault) go without saying.
    """

    tag: str
    summary: str
    answers: Mapping[int, Answer]
    description: str | None = None
    body: Body | None = None
    parameters: tuple[Mapping[str, Any], ...] = ()
    errors: tuple[type[LoraServerError], ...] = ()
    error_envelope: type = ErrorEnvelope
    error_headers: tuple[str, ...] = ()


def described(operation: Operation) -> Callable[[Endpoint], Endpoint]:
    """A route's function, with its part of the document."""

    def attach(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _ATTRIBUTE, operation)
        return endpoint

    return attach


def operation_of(endpoint: Callable[..., Any]) -> Operation:
    """What `described` said. Raises AttributeError for a route that nobody described."""
    operation: Operation = getattr(endpoint, _ATTRIBUTE)
    return operation
