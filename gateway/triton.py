"""EngineClient over Triton: a channel for each base model, all on one gRPC connection."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from adapter_sync.engine_health import EngineHealth, health_request, read_health
from adapter_sync.errors import TritonUnavailableError
from gateway.engine_client import EngineCall, EngineRequest
from gateway.triton_channel import ChannelCall, TritonChannel
from gateway.triton_protocol import transient_error

_CLOSE_S = 2.0
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


class TritonClient:
    """EngineClient over one gRPC connection, which belongs to the running event loop."""

    def __init__(self, address: str, metadata: Mapping[str, str] = MappingProxyType({})) -> None:
        self._metadata = tuple(metadata.items())
        self._connection = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._connection)
        self._channels: dict[str, TritonChannel] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Let the base models end the channels, which have no requests any more, and hang up."""
        if self._running:
            await asyncio.wait(self._running, timeout=_CLOSE_S)
        await self._connection.close()

    @asynccontextmanager
    async def call(self, base_model: str, request: EngineRequest) -> AsyncIterator[EngineCall]:
        """A request on the base model's channel, which is opened if there is none."""
        call = ChannelCall(base_model, request)
        self._submit(call)
        try:
            yield call
        finally:
            call.leave()

    async def is_ready(self, base_model: str, *, within_s: float) -> bool:
        """Triton's own ModelReady."""
        try:
            response = await self._stub.ModelReady(
                service_pb2.ModelReadyRequest(name=base_model), timeout=within_s
            )
        except grpc.aio.AioRpcError as error:
            raise transient_error(error) from error
        return bool(response.ready)

    async def health(self, base_model: str, *, within_s: float) -> EngineHealth:
        """The base model's own word on its engine, on a stream of its own."""
        stream = self._stub.ModelStreamInfer(timeout=within_s, metadata=self._metadata)
        try:
            await stream.write(health_request(base_model))
            await stream.done_writing()
            # To the end, which Triton is left to make: see TritonChannel.
            answers = [message async for message in stream]
        except grpc.aio.AioRpcError as error:
            raise transient_error(error) from error
        if not answers:
            raise TritonUnavailableError("Triton ended the stream before its final response.")
        return read_health(answers[0])

    def _submit(self, call: ChannelCall) -> None:
        channel = self._channels.get(call.base_model)
        if channel is None or channel.is_retired:
            channel = self._channels[call.base_model] = self._opened(call.base_model)
        channel.submit(call)

    def _opened(self, base_model: str) -> TritonChannel:
        stream = self._stub.ModelStreamInfer(metadata=self._metadata)
        channel = TritonChannel(stream, base_model, self._submit)
        self._running.add(channel.running)
        channel.running.add_done_callback(self._running.discard)
        return channel
