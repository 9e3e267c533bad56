"""The document: FastAPI's reading of the routes' parameters, and what is said beside each route."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, TypeAlias

from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from starlette.responses import Response
from starlette.routing import BaseRoute

from adapter_sync.errors import (
    InvalidApiKeyError,
    LoraServerError,
    RegistryUnavailableError,
    StorageFullError,
    StorageUnavailableError,
)
from gateway.auth import needs_admin_key, needs_key
from gateway.errors import (
    ErrorEnvelope,
    InvalidRequestError,
    RequestTimeoutError,
    RequestTooLargeError,
)
from gateway.openapi.error_responses import error_responses
from gateway.openapi.headers import REQUEST_ID, header_objects
from gateway.openapi.operation import Answer, Body, Operation, Shape, described, operation_of

_Mode: TypeAlias = Literal["validation", "serialization"]
_SECURITY = {
    "tenantKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "A tenant's key, `pk-…`: Authorization: Bearer pk-…",
    },
    "tenantKeyAlone": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "The same key as Anthropic's clients send it.",
    },
    "adminKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "The operator's LORA_ADMIN_KEY; tenants' keys are none.",
    },
}
_ALWAYS = ("x-request-id", "openai-processing-ms")
_WITHOUT_KEY, _UNFORESEEN = "401", "500"
_FASTAPIS_OWN = {"HTTPValidationError", "ValidationError"}
"""Of its 422, which the gateway answers with a 400."""


class OpenApiDocument:
    """The document of an application's routes, made when it is first asked for."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._routes = routes

    @cached_property
    def as_json(self) -> bytes:
        """The document's bytes."""
        routes = [route for route in self._routes if isinstance(route, APIRoute)]
        return json.dumps(openapi_document(routes)).encode()

    @described(
        Operation(
            tag="Health",
            summary="This document",
            answers={
                200: Answer(
                    content={"application/json": {"type": "object"}},
                    description="The OpenAPI document.",
                )
            },
        )
    )
    async def show_openapi(self) -> Response:
        """GET /openapi.json, which needs no key: nothing in it is secret."""
        return Response(self.as_json, media_type="application/json")


def openapi_document(routes: Sequence[APIRoute]) -> dict[str, Any]:
    """The document. Raises AttributeError when a route is not `described`."""
    document = get_openapi(
        title="LoRA server",
        version="1",
        description="OpenAI's API on many base models and each tenant's own LoRA adapters.",
        routes=routes,
    )
    schemas = _Schemas(routes)
    for route in routes:
        for method in route.methods or ():
            item = document["paths"][route.path_format][method.lower()]
            item.update(_operation(route, item, schemas))
    known = document.get("components", {}).get("schemas", {})
    document["components"] = {
        "schemas": {
            name: schema
            for name, schema in sorted((known | schemas.components).items())
            if name not in _FASTAPIS_OWN
        },
        "securitySchemes": _SECURITY,
    }
    return document


class _Schemas:
    """Every type's JSON schema, those that have a name as components."""

    def __init__(self, routes: Iterable[APIRoute]) -> None:
        inputs = {_key(shape, mode): (shape, mode) for shape, mode in _shapes(routes)}
        self._schemas, definitions = TypeAdapter.json_schemas(
            [(key, mode, TypeAdapter(shape)) for key, (shape, mode) in inputs.items()],
            ref_template="#/components/schemas/{model}",
        )
        self.components: dict[str, Any] = definitions.get("$defs", {})

    def of(self, shape: Shape, mode: _Mode) -> dict[str, Any]:
        """The schema to use in the document."""
        if isinstance(shape, Mapping):
            return dict(shape)
        return dict(self._schemas[_key(shape, mode), mode])


def _shapes(routes: Iterable[APIRoute]) -> Iterator[tuple[Shape, _Mode]]:
    for operation in (operation_of(route.endpoint) for route in routes):
        yield operation.error_envelope, "serialization"
        for answer in operation.answers.values():
            for shape in answer.content.values():
                if not isinstance(shape, Mapping):
                    yield shape, "serialization"
        if operation.body is not None and not isinstance(operation.body.shape, Mapping):
            yield operation.body.shape, "validation"


def _key(shape: Shape, mode: _Mode) -> str:
    return f"{shape!r} {mode}"


def _operation(route: APIRoute, found: Mapping[str, Any], schemas: _Schemas) -> dict[str, Any]:
    operation = operation_of(route.endpoint)
    from_path_and_query = map(_without_null, found.get("parameters", ()))
    parameters = [*from_path_and_query, *map(dict, operation.parameters)]
    takes_query = any(each["in"] == "query" for each in parameters)
    errors = {*operation.errors, *_implied_errors(route, operation, takes_query=takes_query)}
    envelope = schemas.of(operation.error_envelope, "serialization")
    has_codes = operation.error_envelope is ErrorEnvelope
    refusals = error_responses(errors, envelope, _ALWAYS, has_codes=has_codes)
    for status, refusal in refusals.items():
        if status == _WITHOUT_KEY:
            continue
        # What fails unforeseen may fail before the tenant's limits are known.
        known = () if status == _UNFORESEEN else operation.error_headers
        refusal["headers"] |= header_objects(known, operation.error_headers)
    return {
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": operation.description or operation.summary + ".",
        "operationId": operation_id(route),
        "parameters": [*parameters, dict(REQUEST_ID)],
        "responses": {
            **{str(status): _answer(each, schemas) for status, each in operation.answers.items()},
            **refusals,
        },
        "security": _security(route.path),
        **({} if operation.body is None else {"requestBody": _body(operation.body, schemas)}),
    }


def operation_id(route: APIRoute) -> str:
    """The function's name, told apart where the operator has one of the same name."""
    return f"admin_{route.name}" if needs_admin_key(route.path) else route.name


def _implied_errors(
    route: APIRoute, operation: Operation, *, takes_query: bool
) -> Iterator[type[LoraServerError]]:
    yield LoraServerError
    if _security(route.path):
        yield from (InvalidApiKeyError, RegistryUnavailableError)
        yield from (StorageFullError, StorageUnavailableError)
    if operation.body is not None:
        yield from (InvalidRequestError, RequestTooLargeError, RequestTimeoutError)
    elif takes_query:
        yield InvalidRequestError


def _security(path: str) -> list[dict[str, list[str]]]:
    if needs_key(path):
        return [{"tenantKey": []}, {"tenantKeyAlone": []}]
    return [{"adminKey": []}] if needs_admin_key(path) else []


def _answer(answer: Answer, schemas: _Schemas) -> dict[str, Any]:
    described_answer: dict[str, Any] = {
        "description": answer.description,
        "headers": header_objects((*_ALWAYS, *answer.headers), answer.optional_headers),
        "content": {
            media_type: {"schema": schemas.of(shape, "serialization")}
            for media_type, shape in answer.content.items()
        },
    }
    if answer.links:
        described_answer["links"] = {
            name: {"operationId": name, "parameters": dict(parameters)}
            for name, parameters in answer.links.items()
        }
    return described_answer


def _body(body: Body, schemas: _Schemas) -> dict[str, Any]:
    content: dict[str, Any] = {
        "schema": schemas.of(body.shape, "validation"),
        "example": dict(body.example),
    }
    if body.encoding is not None:
        content["encoding"] = dict(body.encoding)
    return {"required": body.required, "content": {body.media_type: content}}


def _without_null(parameter: dict[str, Any]) -> dict[str, Any]:
    """A parameter that may be left out; FastAPI says null, which no URL can hold."""
    schema = dict(parameter["schema"])
    options = [each for each in schema.pop("anyOf", ()) if each != {"type": "null"}]
    for option in options:
        schema |= option
    return {**parameter, "schema": schema}
