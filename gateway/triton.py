"""The seam between the gateway and a base model; today one gRPC stream a request.

The model is decoupled: it answers one request with any number of responses.
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/decoupled_models.html
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Protocol

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from adapter_sync.errors import TransientError, TritonRefusedError, TritonUnavailableError
from gateway.errors import EngineTimeoutError

_LENGTH_BYTES = 4
_INT32_BYTES = 4
_END_S = 2.0
_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Triton is near: a proxy of the environment is for elsewhere.
    ("grpc.enable_http_proxy", 0),
    # Triton ends a connection that pings more often than every 5 minutes without data
    # (--grpc-http2-min-recv-ping-interval-without-data), which waiting for a token is.
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # A restarted Triton is found within 2 s; gRPC's own back-off grows to 2 minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
_UNAVAILABLE = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """What the engine is asked; `body` is the client's own request body.

    `tenant` waits for its turn in the engine, and `weight` is its share among the others.
    """

    endpoint: str
    lora_name: str | None
    served_name: str
    request_id: str
    cache_salt: str
    tenant: str
    weight: int
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUsage:
    """The tokens that a request has used so far."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineResponse:
    """A piece of the answer; `status` (HTTP) comes with the first that has bytes.

    `usage` comes when it has grown.
    """

    status: int | None
    payload: bytes
    usage: TokenUsage | None = None


class EngineCall(Protocol):
    """One request being answered."""

    async def read(self, *, within_s: float) -> EngineResponse | None:
        """The next piece, None after the last. Raises EngineTimeoutError, TransientError."""


class EngineClient(Protocol):
    """The way to the base models."""

    def call(
        self, base_model: str, request: EngineRequest
    ) -> AbstractAsyncContextManager[EngineCall]:
        """Ask; leaving the context ends the request in the engine if it still runs."""

    async def is_ready(self, base_model: str, *, within_s: float) -> bool:
        """Whether the base model is loaded. Raises TransientError when Triton does not tell."""


class TritonClient:
    """EngineClient over one gRPC channel, which belongs to the running event loop."""

    def __init__(self, address: str, metadata: Mapping[str, str] = MappingProxyType({})) -> None:
        self._metadata = tuple(metadata.items())
        self._channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._ending: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Close the channel; calls still open are cancelled."""
        await asyncio.gather(*self._ending)
        await self._channel.close()

    @asynccontextmanager
    async def call(self, base_model: str, request: EngineRequest) -> AsyncIterator[EngineCall]:
        """One ModelStreamInfer of one request."""
        call = TritonCall(
            self._stub.ModelStreamInfer(metadata=self._metadata), infer_request(base_model, request)
        )
        try:
            yield call
        finally:
            # In a task of its own: the client may leave, or its answer go out, meanwhile.
            ending = asyncio.create_task(call.end())
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def is_ready(self, base_model: str, *, within_s: float) -> bool:
        """Triton's own ModelReady."""
        try:
            response = await self._stub.ModelReady(
                service_pb2.ModelReadyRequest(name=base_model), timeout=within_s
            )
        except grpc.aio.AioRpcError as error:
            raise transient_error(error) from error
        return bool(response.ready)


class TritonCall:
    """EngineCall over one gRPC stream."""

    def __init__(self, call: Any, request: service_pb2.ModelInferRequest) -> None:
        self._call = call
        self._unsent: service_pb2.ModelInferRequest | None = request
        self._is_sent = False
        self._cancellation = cancel_request(request.model_name, request.id)
        self._reading: asyncio.Task[Any] | None = None
        self._ended = False

    async def read(self, *, within_s: float) -> EngineResponse | None:
        """The next response that carries anything, None after Triton's final one."""
        while not self._ended:
            message = await self._message(within_s)
            if message is grpc.aio.EOF:
                raise TritonUnavailableError("Triton ended the stream before its final response.")
            if message.error_message:
                raise TritonRefusedError(message.error_message)
            self._ended = message.infer_response.parameters["triton_final_response"].bool_param
            if message.infer_response.outputs:
                return engine_response(message.infer_response)
        return None

    async def end(self) -> None:
        """Tell the base model when its answer is wanted no more, and let Triton end the stream.

        It is cancelled only if that fails. A stream that is cancelled between Triton's final
        response and its end stays in Triton for ever, and with it the request: the base model
        can't be unloaded any more (server 24.10, stream_infer_handler.cc). And Triton would tell
        the base model of a cancellation only when asked.
        """
        try:
            if self._is_sent:
                async with asyncio.timeout(_END_S):
                    if not self._ended:
                        await self._call.write(self._cancellation)
                    await self._call.done_writing()
                    while await self._next() is not grpc.aio.EOF:
                        pass
        except (TimeoutError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass
        finally:
            # Only cancelling tells Triton: a call merely dropped runs to its end (grpcio 1.85).
            self._call.cancel()
            if self._reading is not None:
                self._reading.cancel()
                await asyncio.gather(self._reading, return_exceptions=True)

    async def _message(self, within_s: float) -> Any:
        try:
            async with asyncio.timeout(within_s):
                return await self._next()
        except TimeoutError as error:
            raise EngineTimeoutError(waited_s=within_s) from error
        except grpc.aio.AioRpcError as error:
            raise transient_error(error) from error

    async def _next(self) -> Any:
        """Triton's next message, or EOF.

        When this is cancelled the reading goes on, because a cancelled one cancels the call.
        """
        if self._reading is None:
            self._reading = asyncio.create_task(self._receive())
        await asyncio.wait({self._reading})
        reading, self._reading = self._reading, None
        return reading.result()

    async def _receive(self) -> Any:
        if self._unsent is not None:
            await self._send(self._unsent)
        return await self._call.read()

    async def _send(self, request: service_pb2.ModelInferRequest) -> None:
        # Under the first read's deadline: a large request to a stopped Triton blocks here.
        self._unsent = None
        # The stream stays open for the word that its answer is wanted no more.
        await self._call.write(request)
        self._is_sent = True


def infer_request(base_model: str, request: EngineRequest) -> service_pb2.ModelInferRequest:
    """Triton's request: one BYTES element, the engine's request as JSON."""
    # asdict would copy the body, level by level.
    document = {field.name: getattr(request, field.name) for field in fields(request)}
    message = _message(base_model, "openai_request", json.dumps(document).encode("ascii"))
    message.id = request.request_id
    # Without it a stream whose last response is empty would never be told to have ended.
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    return message


def cancel_request(base_model: str, request_id: str) -> service_pb2.ModelInferRequest:
    """The word to a base model that a request's answer is wanted no more."""
    return _message(base_model, "cancel", request_id.encode("ascii"))


def _message(base_model: str, tensor: str, element: bytes) -> service_pb2.ModelInferRequest:
    message = service_pb2.ModelInferRequest(model_name=base_model)
    message.inputs.add(name=tensor, datatype="BYTES", shape=[1])
    message.raw_input_contents.append(len(element).to_bytes(_LENGTH_BYTES, "little") + element)
    return message


def engine_response(response: service_pb2.ModelInferResponse) -> EngineResponse:
    """Read Triton's response. Raises TritonRefusedError when it isn't what the engine sends."""
    status: int | None = None
    payload = b""
    usage: TokenUsage | None = None
    try:
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
            if output.name == "openai_response":
                payload = b"".join(_elements(raw))
            elif output.name == "http_status":
                status = int.from_bytes(raw, "little", signed=True)
            elif output.name == "usage":
                usage = _usage(raw)
    except ValueError as error:
        raise TritonRefusedError(f"Triton's response can't be read: {error}") from error
    return EngineResponse(status=status, payload=payload, usage=usage)


def transient_error(error: grpc.RpcError) -> TransientError:
    """What a gRPC error means for the request."""
    message = f"{error.code().name}: {error.details()}"
    if error.code() in _UNAVAILABLE:
        return TritonUnavailableError(message)
    return TritonRefusedError(message)


def _usage(raw: bytes) -> TokenUsage:
    if len(raw) != 2 * _INT32_BYTES:
        raise ValueError(f"the usage has {len(raw)} bytes")
    return TokenUsage(
        prompt_tokens=int.from_bytes(raw[:_INT32_BYTES], "little"),
        completion_tokens=int.from_bytes(raw[_INT32_BYTES:], "little"),
    )


def _elements(raw: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(raw):
        end = start + _LENGTH_BYTES + int.from_bytes(raw[start : start + _LENGTH_BYTES], "little")
        if end > len(raw):
            raise ValueError(f"an element ends at byte {end} of {len(raw)}")
        yield raw[start + _LENGTH_BYTES : end]
        start = end
