"""The gateway's requests: those of one gateway worker come and are answered over one channel.

A Triton response costs as much as the work on a token. So a channel's answers share one: what an
engine step has made for all of its requests goes as one response. A channel lives on the event
loop; it imports neither vllm nor Triton.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from engine.frames import HEARTBEAT, final_frame, frame, refusal
from engine.token_usage import TokenUsage

IDLE_S = 1.0
"""How long a channel without requests stays: while it does, Triton can't unload the model."""
HEARTBEAT_S = 1.0
"""How long a channel with requests may be silent: by its heartbeat a gateway knows that the base
model lives, though none of its requests has anything to say yet."""


class Responder(Protocol):
    """Where a request's response goes."""

    def write(
        self, body: bytes, *, http_status: int | None = None, usage: TokenUsage | None = None
    ) -> None:
        """Send bytes, and what the request has used; the status goes with the first bytes."""


class Pipe(Protocol):
    """A Triton request, seen from its response's end."""

    def write(self, frames: bytes) -> None:
        """Send bytes."""

    def finish(self) -> None:
        """Say that nothing more will come."""

    def on_cancel(self, cancel: Callable[[], object]) -> None:
        """What to call, from any thread, when the gateway has gone."""


Answer = Callable[[bytes, Responder], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What one Triton request of the gateway's says.

    An `opening` is the way back for the channel's answers: the first opens the channel, those of a
    higher number each take over from the one before.
    """

    channel: bytes
    opening: int | None
    submitted: Mapping[int, bytes]
    cancelled: Sequence[int]


class Channels:
    """The channels that are open, by the names that the gateways gave them."""

    def __init__(self, answer: Answer, *, idle_s: float = IDLE_S) -> None:
        self._answer = answer
        self._idle_s = idle_s
        self._open: dict[bytes, _Channel] = {}

    def take(self, message: Message, pipe: Pipe) -> None:
        """Do what the message says; its own pipe ends at once unless it is an opening's."""
        channel = self._open.get(message.channel)
        if message.opening == 1:
            forget = partial(self._open.pop, message.channel)
            channel = _Channel(self._answer, idle_s=self._idle_s, on_end=forget)
            self._open[message.channel] = channel
        if channel is not None and message.opening is not None:
            channel.answer_by(pipe)
            return
        if channel is not None:
            for number, raw in message.submitted.items():
                channel.submit(number, raw)
            for number in message.cancelled:
                channel.cancel(number)
        elif message.submitted:
            pipe.write(b"".join(map(refusal, message.submitted)))
        pipe.finish()


class _Channel:
    """The requests of one gateway worker, and the pipe that their answers go back by."""

    def __init__(self, answer: Answer, *, idle_s: float, on_end: Callable[[], object]) -> None:
        self._answer = answer
        self._idle_s = idle_s
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._pipe: Pipe | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._frames: list[bytes] = []
        self._resting: asyncio.TimerHandle | None = None
        self._beating: asyncio.TimerHandle | None = None
        self._is_silent = True

    def answer_by(self, pipe: Pipe) -> None:
        """Send from now on by this pipe; the one before has got all until now, and ends."""
        self._flush()
        before, self._pipe = self._pipe, pipe
        if before is not None:
            before.finish()
        pipe.on_cancel(partial(self._loop.call_soon_threadsafe, self._lose, pipe))
        self._rest()

    def submit(self, number: int, raw: bytes) -> None:
        """Begin a request."""
        task = self._loop.create_task(self._answer(raw, _Answer(number, self.put)))
        self._tasks[number] = task
        if self._beating is None:
            self._beating = self._loop.call_later(HEARTBEAT_S, self._beat)
        task.add_done_callback(partial(self._end_request, number))
        self._rest()

    def cancel(self, number: int) -> None:
        """End a request whose answer is wanted no more."""
        if (task := self._tasks.get(number)) is not None:
            task.cancel()

    def put(self, framed: bytes) -> None:
        """Send a frame together with the others of the loop's current turn."""
        if not self._frames:
            self._loop.call_soon(self._flush)
        self._frames.append(framed)

    def _flush(self) -> None:
        frames, self._frames = self._frames, []
        self._is_silent = self._is_silent and not frames
        if frames and self._pipe is not None:
            self._pipe.write(b"".join(frames))

    def _beat(self) -> None:
        """Send a heartbeat if nothing else was sent since the last, while there are requests."""
        if self._is_silent and self._pipe is not None:
            self._pipe.write(HEARTBEAT)
        self._is_silent = True
        self._beating = self._loop.call_later(HEARTBEAT_S, self._beat) if self._tasks else None

    def _end_request(self, number: int, task: asyncio.Task[None]) -> None:
        del self._tasks[number]
        if not task.cancelled():
            # It never raises; if it did, the loop would tell.
            task.result()
        self.put(final_frame(number))
        self._rest()

    def _rest(self) -> None:
        """End the channel in a while, if nothing comes."""
        if self._resting is not None:
            self._resting.cancel()
        self._resting = None if self._tasks else self._loop.call_later(self._idle_s, self._end)

    def _lose(self, pipe: Pipe) -> None:
        """The gateway has gone, unless it only went over to another pipe."""
        if pipe is self._pipe:
            for task in self._tasks.values():
                task.cancel()
            self._end()

    def _end(self) -> None:
        self._flush()
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            self._on_end()
            pipe.finish()


class _Answer:
    """Responder of one request on a channel."""

    def __init__(self, number: int, put: Callable[[bytes], None]) -> None:
        self._number = number
        self._put = put
        self._told_usage: TokenUsage | None = None

    def write(
        self, body: bytes, *, http_status: int | None = None, usage: TokenUsage | None = None
    ) -> None:
        """Send a frame, with the usage if it has grown."""
        grown = None if usage == self._told_usage else usage
        self._told_usage = grown or self._told_usage
        self._put(frame(self._number, body, http_status=http_status, usage=grown))
