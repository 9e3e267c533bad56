"""A channel to a base model: one gRPC stream for all requests of this process to it.

Triton answers a request with any number of responses: a channel's opening is one whose responses
carry the answers to all others, and those end at once.
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/decoupled_models.html
"""

import asyncio
import itertools
import uuid
from collections.abc import Callable
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from adapter_sync.errors import TransientError, TritonRefusedError, TritonUnavailableError
from gateway.engine_client import EngineRequest, EngineResponse
from gateway.errors import EngineTimeoutError
from gateway.triton_protocol import (
    Frame,
    document,
    joined,
    opening,
    opening_id,
    read_frames,
    submission,
    submitted_numbers,
    transient_error,
)

BURST_BYTES = 1 << 20
"""Requests that wait are submitted together, up to about this size."""
PIPE_RESPONSES, PIPE_BYTES = 256, 2 << 20
"""How much an opening's response may carry before a new one takes over. Triton keeps the memory of
each response until its request ends (server 24.10, infer_handler.h, ResponseQueue)."""
END_S = 2.0
"""How long Triton may take to end a stream."""
UNUSED_S = 5.0
"""A channel without requests is ended by the base model, or, when that has died, after this."""
LOOK_PERIOD_S, SILENT_LOOKS = 1.0, 8
"""How often a channel with requests is looked at, and after how many looks without a word from the
base model, which sends a heartbeat a second, it counts as dead. Counted, not timed: a loop that was
held up has read nothing meanwhile."""
MAX_CHANNELS = 3
"""On how many channels a request is tried whose base model does not know its channel."""


class ChannelCall:
    """EngineCall whose answer comes over a channel, together with others'."""

    def __init__(self, base_model: str, request: EngineRequest) -> None:
        self.base_model = base_model
        self.document = document(request)
        self.channels: list[tuple[TritonChannel, int]] = []
        """Those that it was submitted to, and its numbers there."""
        self._frames: list[Frame] = []
        self._ended = False
        self._error: TransientError | None = None
        self._news: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._alarm: asyncio.TimerHandle | None = None
        self._within_s = self._late_at = 0.0

    async def read(self, *, within_s: float) -> EngineResponse | None:
        """All that has come, as one piece; None after the last."""
        if not self._frames and not self._ended:
            await self._wait(within_s)
        if self._frames:
            return joined(self._take())
        if self._error is not None:
            raise self._error
        return None

    def leave(self) -> None:
        """Say that the answer is wanted no more, if it has not come."""
        if self._alarm is not None:
            self._alarm.cancel()
        channel, number = self.channels[-1]
        channel.leave(number)

    def put(self, frame: Frame) -> None:
        """Take what came."""
        if frame.payload or frame.status is not None or frame.usage is not None:
            self._frames.append(frame)
        self._ended = frame.is_final
        self._wake()

    def fail(self, error: TransientError) -> None:
        """Nothing more will come."""
        self._ended, self._error = True, error
        self._wake()

    def _take(self) -> list[Frame]:
        # A status begins a piece: it may be an error's, in the middle of an answer.
        following = (n for n, frame in enumerate(self._frames) if n and frame.status is not None)
        end = next(following, len(self._frames))
        taken, self._frames = self._frames[:end], self._frames[end:]
        return taken

    async def _wait(self, within_s: float) -> None:
        self._news = self._loop.create_future()
        self._within_s, self._late_at = within_s, self._loop.time() + within_s
        # One alarm for many waits, which looks for the newest: one for each wait is dear.
        if self._alarm is not None and self._alarm.when() > self._late_at:
            self._alarm.cancel()
            self._alarm = None
        if self._alarm is None:
            self._set_alarm()
        await self._news

    def _set_alarm(self) -> None:
        self._alarm = self._loop.call_at(self._late_at, self._look_at_clock)

    def _look_at_clock(self) -> None:
        self._alarm = None
        if self._news is None or self._news.done():
            return
        if self._loop.time() < self._late_at:
            self._set_alarm()
        else:
            self._news.set_exception(EngineTimeoutError(waited_s=self._within_s))

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


class TritonChannel:
    """A channel, until its stream ends; `resubmit` takes a call that it could not bring."""

    def __init__(
        self, stream: Any, base_model: str, resubmit: Callable[[ChannelCall], None]
    ) -> None:
        self._stream = stream
        self._base_model = base_model
        self._resubmit = resubmit
        self._id = uuid.uuid4().hex
        self._calls: dict[int, ChannelCall] = {}
        self._numbers = itertools.count(1)
        self._unsent: dict[int, ChannelCall] = {}
        self._cancelled: list[int] = []
        self._pipe = self._opened = 1
        """The openings, counted: whose response is read, and which is the newest."""
        self._opening_unsent = True
        self._pipe_responses = self._pipe_bytes = 0
        self._held: list[service_pb2.ModelInferResponse] = []
        self._ended = False
        self.is_retired = False
        """Whether requests must take another channel."""
        self._loop = asyncio.get_running_loop()
        self._unused: asyncio.TimerHandle | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._silent_looks = 0
        self._writing: asyncio.Task[None] | None = None
        self.running = asyncio.create_task(self._run())

    def submit(self, call: ChannelCall) -> None:
        """Ask."""
        number = next(self._numbers)
        call.channels.append((self, number))
        self._calls[number] = self._unsent[number] = call
        self._watch()
        self._write()

    def leave(self, number: int) -> None:
        """End a request, if it still runs."""
        if self._calls.pop(number, None) is None:
            return
        if self._unsent.pop(number, None) is None:
            self._cancelled.append(number)
            self._write()
        self._watch()

    def _watch(self) -> None:
        if self._unused is not None:
            self._unused.cancel()
        if not self._calls:
            self._unused = self._loop.call_later(UNUSED_S, self._stream.cancel)
        elif self._looking is None:
            self._silent_looks = 0
            self._looking = self._loop.call_later(LOOK_PERIOD_S, self._look)

    def _look(self) -> None:
        """End the requests of a base model that says nothing any more: Triton would never do it."""
        self._looking = None
        if not self._calls:
            return
        self._silent_looks += 1
        if self._silent_looks < SILENT_LOOKS:
            self._looking = self._loop.call_later(LOOK_PERIOD_S, self._look)
            return
        self.is_retired = True
        silence = TritonUnavailableError(f"The base model '{self._base_model}' is silent.")
        self._fail(list(self._calls), silence)
        self._stream.cancel()

    def _write(self) -> None:
        if self._writing is None and not self._ended:
            self._writing = asyncio.create_task(self._write_all())

    async def _write_all(self) -> None:
        try:
            while (message := self._next_message()) is not None:
                await self._stream.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The stream is broken, which its reader tells the calls.
            self.is_retired = True
        else:
            self._writing = None

    def _next_message(self) -> service_pb2.ModelInferRequest | None:
        if self._opening_unsent:
            self._opening_unsent = False
            return opening(self._base_model, self._id, self._opened)
        submitted: dict[int, bytes] = {}
        size = 0
        while self._unsent and size < BURST_BYTES:
            number = next(iter(self._unsent))
            submitted[number] = self._unsent.pop(number).document
            size += len(submitted[number])
        cancelled, self._cancelled = self._cancelled, []
        if not submitted and not cancelled:
            return None
        return submission(self._base_model, self._id, submitted, cancelled)

    async def _run(self) -> None:
        error: TransientError = TritonUnavailableError(
            "Triton ended the stream before its final response."
        )
        try:
            await self._read_all()
        except grpc.aio.AioRpcError as broken:
            error = transient_error(broken)
        except TritonRefusedError as unreadable:
            error = unreadable
        except TimeoutError:
            # Triton has answered everything and does not end the stream.
            pass
        finally:
            self.is_retired = self._ended = True
            # Only cancelling tells Triton: a call merely dropped runs to its end (grpcio 1.85).
            self._stream.cancel()
            self._fail(list(self._calls), error)
            for timer in (self._unused, self._looking):
                if timer is not None:
                    timer.cancel()

    async def _read_all(self) -> None:
        """Read to the end of the stream, which Triton is left to make.

        One that is cancelled between Triton's final response and its end stays in Triton for ever,
        and with it the request: the base model can't be unloaded any more (server 24.10,
        stream_infer_handler.cc).
        """
        while not self._ended:
            if (message := await self._stream.read()) is grpc.aio.EOF:
                return
            self._take(message)
        async with asyncio.timeout(END_S):
            if self._writing is not None:
                await asyncio.wait({self._writing})
            await self._stream.done_writing()
            while (message := await self._stream.read()) is not grpc.aio.EOF:
                self._take(message)

    def _take(self, message: service_pb2.ModelStreamInferResponse) -> None:
        self._silent_looks = 0
        response = message.infer_response
        if message.error_message:
            self._take_error(response.id, message.error_message)
        elif response.id == opening_id(self._pipe + 1):
            # Triton orders the responses to one request, but not those to two.
            self._held.append(response)
        else:
            self._take_response(response)

    def _take_response(self, response: service_pb2.ModelInferResponse) -> None:
        for frame in read_frames(response):
            self._pipe_bytes += len(frame.payload)
            self._take_frame(frame)
        if response.id == opening_id(self._pipe):
            self._pipe_responses += 1
            if response.parameters["triton_final_response"].bool_param:
                self._end_pipe()
            elif self._pipe_responses > PIPE_RESPONSES or self._pipe_bytes > PIPE_BYTES:
                self._renew_pipe()

    def _take_frame(self, frame: Frame) -> None:
        call = self._calls.get(frame.number)
        if frame.is_unknown_channel:
            self.is_retired = True
        if call is None:
            return
        if frame.is_final:
            del self._calls[frame.number]
            self._watch()
        if frame.is_unknown_channel:
            self._try_again(call)
        else:
            call.put(frame)

    def _try_again(self, call: ChannelCall) -> None:
        if len(call.channels) < MAX_CHANNELS:
            self._resubmit(call)
        else:
            call.fail(TritonRefusedError("The base model does not know its channels."))

    def _renew_pipe(self) -> None:
        if self._opened == self._pipe and not self.is_retired:
            self._opened += 1
            self._opening_unsent = True
            self._write()

    def _end_pipe(self) -> None:
        if self._pipe < self._opened:
            self._pipe += 1
            self._pipe_responses = self._pipe_bytes = 0
            held, self._held = self._held, []
            for response in held:
                self._take_response(response)
            return
        self.is_retired = self._ended = True
        unsent, self._unsent = self._unsent, {}
        for number, call in unsent.items():
            del self._calls[number]
            self._resubmit(call)

    def _take_error(self, message_id: str, error_message: str) -> None:
        self.is_retired = True
        error = TritonRefusedError(error_message)
        if message_id == opening_id(self._pipe + 1):
            # What has been submitted is still answered by the earlier pipe.
            self._opened = self._pipe
        elif message_id == opening_id(self._pipe) or not message_id:
            self._fail(list(self._calls), error)
            self._ended = True
        else:
            self._fail(submitted_numbers(message_id), error)

    def _fail(self, numbers: list[int], error: TransientError) -> None:
        for number in numbers:
            self._unsent.pop(number, None)
            if (call := self._calls.pop(number, None)) is not None:
                # One of its own: it is raised in another task.
                call.fail(type(error)(str(error)))
        self._watch()
