"""The engine's answer, passed on to the client byte by byte, in one piece or as it comes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from adapter_sync.errors import TritonRefusedError
from gateway.disconnect import unless_disconnected
from gateway.engine_client import EngineCall, EngineClient, EngineRequest, EngineResponse
from gateway.engine_errors import engine_error
from gateway.errors import (
    AdapterNotReadyError,
    RequestDeadlineError,
    ServerStoppingError,
    answer_for,
)
from gateway.limits import Limits
from gateway.usage_recorder import Meter

MAX_RENEWALS = 3
KEEP_ALIVE = b": keep-alive\n\n"
_LOWEST_ERROR_STATUS = 400
STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Relay(Response):
    """Asks the engine and answers the client; the engine's call lives and ends in here.

    Until the response has started, errors are raised and become an HTTP status. After that they
    are an event, and the end.

    `renew` makes a request anew, for an engine that has let go of its adapter: a newer revision
    may have taken over since it was made. None says that there is nothing else to ask for.
    """

    def __init__(
        self,
        *,
        engine: EngineClient,
        base_model: str,
        request: EngineRequest,
        renew: Callable[[EngineRequest], Awaitable[tuple[str, EngineRequest] | None]],
        stream: bool,
        deadline_s: float,
        limits: Limits,
        meter_of: Callable[[EngineRequest], Meter],
    ) -> None:
        super().__init__()
        self._engine = engine
        self._base_model = base_model
        self._request = request
        self._renew = renew
        self._stream = stream
        self._deadline_s = deadline_s
        self._limits = limits
        self._meter_of = meter_of
        self._meter = meter_of(request)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises LoraServerError, as long as no byte was sent."""
        answer = self._answer_events if self._stream else self._answer_whole
        try:
            await unless_disconnected(receive, answer(scope, receive, send))
        except ClientDisconnect:
            # The engine was asked, whether or not it had begun to answer.
            self._meter.count_request()
            scope["state"]["log_fields"]["client_left"] = True

    async def _answer_whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._in_time(), self._begun(self._first) as (call, first):
            pieces = [first.payload]
            while (piece := await self._next(call)) is not None:
                pieces.append(piece.payload)
        response = Response(b"".join(pieces), media_type="application/json")
        await response(scope, receive, send)

    async def _answer_events(self, scope: Scope, _receive: Receive, send: Send) -> None:
        events = _Events(send)

        def event_of(error: Exception) -> bytes:
            return answer_for(error, path=scope["path"]).event

        try:
            await self._pass_on(events)
        except asyncio.CancelledError:
            if events.started:
                await events.write(event_of(ServerStoppingError()))
                await events.end()
            raise
        except Exception as error:
            if not events.started:
                raise
            scope["state"]["error"] = error
            await events.write(event_of(error))
        await events.end()

    async def _pass_on(self, events: "_Events") -> None:
        first_of = partial(self._first_event, events)
        async with self._in_time(), self._begun(first_of) as (call, first):
            await events.write(first.payload)
            while (response := await self._next(call)) is not None:
                await events.write(response.payload)

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """Raises RequestDeadlineError when it takes longer than the request may."""
        try:
            async with asyncio.timeout(self._deadline_s):
                yield
        except TimeoutError as error:
            raise RequestDeadlineError(deadline_s=self._deadline_s) from error

    @asynccontextmanager
    async def _begun(
        self, first_of: Callable[[EngineCall], Awaitable[EngineResponse]]
    ) -> AsyncIterator[tuple[EngineCall, EngineResponse]]:
        """A call whose first response is good, asked anew when the adapter was replaced."""
        for renewals_left in reversed(range(MAX_RENEWALS + 1)):
            async with self._engine.call(self._base_model, self._request) as call:
                try:
                    first = await first_of(call)
                except AdapterNotReadyError:
                    renewed = await self._renew(self._request) if renewals_left else None
                    if renewed is None:
                        raise
                    self._base_model, self._request = renewed
                    self._meter = self._meter_of(self._request)
                    continue
                yield call, first
                return

    async def _first(self, call: EngineCall) -> EngineResponse:
        return self._accepted(await self._read(call, self._deadline_s))

    async def _first_event(self, events: "_Events", call: EngineCall) -> EngineResponse:
        """The first response, keeping the connection busy meanwhile."""
        reading = asyncio.ensure_future(self._read(call, self._limits.first_response_s))
        try:
            while not (await asyncio.wait({reading}, timeout=self._limits.keep_alive_s))[0]:
                await events.write(KEEP_ALIVE)
            return self._accepted(reading.result())
        finally:
            reading.cancel()

    async def _next(self, call: EngineCall) -> EngineResponse | None:
        response = await self._read(call, self._limits.between_responses_s)
        if response is not None and response.status is not None:
            self._raise_for_status(response.status, response.payload)
        return response

    def _accepted(self, first: EngineResponse | None) -> EngineResponse:
        """The first response itself. Raises LoraServerError when it is the engine's refusal."""
        if first is None or first.status is None:
            raise TritonRefusedError("the engine's first response has no status")
        self._raise_for_status(first.status, first.payload)
        self._meter.count_request()
        return first

    async def _read(self, call: EngineCall, within_s: float) -> EngineResponse | None:
        """The next piece of the answer; what it tells of usage is counted first."""
        while (response := await call.read(within_s=within_s)) is not None:
            if response.usage is not None:
                self._meter.count_tokens(response.usage)
            if response.payload or response.status is not None:
                return response
        return None

    def _raise_for_status(self, status: int, payload: bytes) -> None:
        if status >= _LOWEST_ERROR_STATUS:
            raise engine_error(
                status,
                payload,
                lora_name=self._request.lora_name,
                served_name=self._request.served_name,
            )


class _Events:
    """A response of server-sent events that starts with the first bytes."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def write(self, events: bytes) -> None:
        if not self.started:
            self.started = True
            await self._send(
                {"type": "http.response.start", "status": 200, "headers": list(STREAM_HEADERS)}
            )
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
