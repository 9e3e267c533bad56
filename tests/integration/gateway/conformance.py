"""Holds every answer of a gateway to the gateway's own OpenAPI document."""

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from jsonschema import Draft202012Validator
from starlette.datastructures import Headers
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from gateway.openapi.document import openapi_document

NOT_ROUTED = {401, 404, 405, 499}


class Conforming:
    """ASGI: the gateway itself, and what in its answers the document does not have."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self.departures: list[str] = []
        self.checked = 0

    @cached_property
    def document(self) -> dict[str, Any]:
        return openapi_document([each for each in self._app.routes if isinstance(each, APIRoute)])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer()

        async def send_noting(message: Message) -> None:
            answer.note(message)
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        finally:
            if answer.status:
                self.checked += 1
                found = self._departures(scope, answer)
                asked = f"{scope['method']} {scope['path']} {answer.status}"
                self.departures += [f"{asked}: {each}" for each in found]

    def _departures(self, scope: Scope, answer: "_Answer") -> Iterator[str]:
        documented = self._documented(scope, answer)
        if documented is None:
            if answer.status not in NOT_ROUTED:
                yield "no such answer is documented"
                return
            is_anthropics = scope["path"].startswith("/v1/messages")
            envelope = "AnthropicErrorEnvelope" if is_anthropics else "ErrorEnvelope"
            schema = {"$ref": f"#/components/schemas/{envelope}"}
            documented = {"headers": {}, "content": {"application/json": {"schema": schema}}}
        yield from self._header_departures(documented, answer)
        media_type = answer.headers.get("content-type", "").partition(";")[0]
        if answer.status != 499 and media_type not in documented["content"]:
            yield f"the content type {media_type!r} is not documented"
        elif media_type == "application/json" and answer.is_whole:
            schema = documented["content"][media_type]["schema"]
            yield from self._faults(schema, json.loads(answer.body))

    def _documented(self, scope: Scope, answer: "_Answer") -> dict[str, Any] | None:
        """What is said of an answer with that status; None for what reached no operation."""
        path = self._path_in_document(scope)
        operation = self.document["paths"].get(path, {}).get(scope["method"].lower())
        if operation is None:
            return None
        responses = operation["responses"]
        status = str(answer.status)
        found: dict[str, Any] | None = responses.get(status) or responses.get(f"{status[0]}XX")
        return found

    def _path_in_document(self, scope: Scope) -> str | None:
        """Also of what a middleware answered, before there was a route."""
        for route in self._app.routes:
            match, found = route.matches(scope)
            # A path's parameter is never empty: "/v1/models/" is none of the document's paths.
            if match is Match.FULL and "" not in found["path_params"].values():
                return route.path_format if isinstance(route, APIRoute) else None
        return None

    def _header_departures(self, documented: Mapping[str, Any], answer: "_Answer") -> Iterator[str]:
        for name, header in documented["headers"].items():
            value = answer.headers.get(name)
            if value is not None:
                yield from self._faults(header["schema"], value)
            elif header.get("required"):
                yield f"the header {name} is missing"

    def _faults(self, schema: Mapping[str, Any], found: object) -> Iterator[str]:
        whole = {**schema, "components": self.document["components"]}
        for error in Draft202012Validator(whole).iter_errors(found):
            yield f"{error.json_path}: {error.message}"


class _Answer:
    """What was sent."""

    def __init__(self) -> None:
        self.status = 0
        self.headers = Headers()
        self.body = b""
        self.is_whole = False

    def note(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = Headers(raw=message["headers"])
        else:
            self.body += message.get("body", b"")
            self.is_whole = not message.get("more_body", False)
