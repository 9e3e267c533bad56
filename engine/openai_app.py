"""vLLM's own OpenAI server, run inside the engine's process without a socket.

vLLM's FastAPI application is called as an ASGI application, so routes, validation, chat
templates, tools, errors and events are vLLM's, byte for byte.
ASGI: https://asgi.readthedocs.io/en/latest/specs/www.html
"""

import asyncio
from argparse import Namespace
from collections.abc import AsyncGenerator, Collection, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from vllm.engine.protocol import EngineClient
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind

from engine.endpoints import Endpoint
from engine.token_usage import (
    COUNTER,
    TokenCounter,
    TokenUsage,
    counting_completions,
    counting_prompts,
)

if TYPE_CHECKING:
    from fastapi import FastAPI

LEAVE_WITHIN_S = 5.0
"""How long vLLM's application may take to notice that its client has gone."""
_served_name: ContextVar[str] = ContextVar("served_name")


class UnsupportedEndpointError(LookupError):
    """The model can't do what the endpoint is for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsePart:
    """A piece of a response: the HTTP status with the first bytes, and bytes of the body.

    `usage` is what the request had used when the piece was made. One without bytes has nothing
    but that.
    """

    http_status: int | None
    body: bytes
    usage: TokenUsage


class OpenAIApp:
    """vLLM's OpenAI application over one engine."""

    def __init__(self, app: "FastAPI", *, base_model: str, tasks: Collection[str]) -> None:
        self._app = app
        self._base_model = base_model
        self._tasks = tasks

    @classmethod
    async def create(cls, engine: EngineClient, arguments: Namespace) -> "OpenAIApp":
        """Build vLLM's application as its own server does."""
        # On the instance, not around it: vLLM asks its engine for much more than its protocol.
        engine.add_request = counting_prompts(engine.add_request)
        engine.generate = counting_completions(engine.generate, delta_kind=RequestOutputKind.DELTA)
        tasks = await engine.get_supported_tasks()
        app = build_app(arguments, tasks, engine.model_config)
        await init_app_state(engine, app.state, arguments, tasks)
        # vLLM looks there, after an error of the engine's, for the server that it would end.
        app.state.server = SimpleNamespace()
        # vLLM echoes the adapter's identity, which is ours alone; clients see what they asked for.
        app.state.openai_serving_models.model_name = _echoed_name
        return cls(app, base_model=arguments.served_model_name[0], tasks=tasks)

    @property
    def lora_requests(self) -> dict[str, LoRARequest]:
        """VLLM's adapters by lora_name; an adapter put here can be asked for."""
        requests: dict[str, LoRARequest] = self._app.state.openai_serving_models.lora_requests
        return requests

    async def call(
        self,
        endpoint: Endpoint,
        *,
        body: Mapping[str, Any],
        lora_name: str | None,
        served_name: str,
        request_id: str,
        cache_salt: str | None,
    ) -> AsyncGenerator[ResponsePart, None]:
        """POST `body` to an endpoint; yields the response as it comes.

        Closing the iterator is the client's going away: vLLM aborts the request.
        Raises UnsupportedEndpointError.
        """
        if endpoint.task is not None and endpoint.task not in self._tasks:
            raise UnsupportedEndpointError(endpoint.path)
        _served_name.set(served_name)
        model = lora_name or self._base_model
        exchange = _Exchange(
            endpoint.body(body, model=model, request_id=request_id, cache_salt=cache_salt),
            one_prompt=bool(body.get("use_beam_search")),
        )
        COUNTER.set(exchange.counter)
        scope = _scope(endpoint.path, request_id, self._app)
        task = asyncio.create_task(self._app(scope, exchange.receive, exchange.send))
        task.add_done_callback(lambda _: exchange.parts.put_nowait(None))
        try:
            while (part := await exchange.parts.get()) is not None:
                yield part
            task.result()
        finally:
            # Told, not cancelled: what a route of vLLM's waits for would go on without it.
            exchange.disconnected.set()
            try:
                await asyncio.wait({task}, timeout=LEAVE_WITHIN_S)
            finally:
                if not task.done():
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)


class _Exchange:
    """The two callables of one ASGI exchange and what passes through them."""

    def __init__(self, body: bytes, *, one_prompt: bool) -> None:
        self._body: bytes | None = body
        self._http_status: int | None = None
        self.disconnected = asyncio.Event()
        self.parts: asyncio.Queue[ResponsePart | None] = asyncio.Queue()
        # Told at once: a client that leaves before the first byte has used its prompt.
        self.counter = TokenCounter(lambda: self._put(None, b""), one_prompt=one_prompt)

    async def receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._http_status = message["status"]
        elif message["type"] == "http.response.body" and message.get("body"):
            status, self._http_status = self._http_status, None
            self._put(status, message["body"])

    def _put(self, http_status: int | None, body: bytes) -> None:
        part = ResponsePart(http_status=http_status, body=body, usage=self.counter.usage)
        self.parts.put_nowait(part)


def _scope(path: str, request_id: str, app: "FastAPI") -> dict[str, Any]:
    return {
        "type": "http",
        # Before 2.4 Starlette's streams ask whether the client has gone; from then on `send` tells.
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"host", b"engine"),
            (b"content-type", b"application/json"),
            (b"x-request-id", request_id.encode()),
        ],
        "client": None,
        "server": None,
        "app": app,
    }


def _echoed_name(_lora_request: LoRARequest | None = None) -> str:
    """In place of OpenAIServingModels.model_name: the name that the client asked for."""
    return _served_name.get()
