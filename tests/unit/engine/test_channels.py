"""What a gateway's channel does with requests and their frames, with pipes that keep what comes."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from engine.channels import Channels, Message, Responder
from engine.frames import final_frame, frame, refusal
from engine.token_usage import TokenUsage

IDLE_S = 0.05


@dataclass(slots=True)
class KeptPipe:
    """A Triton request's response, as it was sent."""

    sent: list[bytes] = field(default_factory=list)
    is_finished: bool = False
    gateway_dies: Callable[[], object] | None = None

    def write(self, frames: bytes) -> None:
        assert not self.is_finished
        self.sent.append(frames)

    def finish(self) -> None:
        assert not self.is_finished
        self.is_finished = True

    def on_cancel(self, cancel: Callable[[], object]) -> None:
        self.gateway_dies = cancel


@dataclass(slots=True)
class Engine:
    """Answers with the request itself when it may, and keeps what was cancelled."""

    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: list[bytes] = field(default_factory=list)

    async def answer(self, raw: bytes, responder: Responder) -> None:
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.cancelled.append(raw)
            raise
        responder.write(raw, http_status=200)


def take(
    channels: Channels,
    submitted: Mapping[int, bytes] | None = None,
    *,
    opening: int | None = None,
    cancelled: Sequence[int] = (),
    name: bytes = b"gateway",
) -> KeptPipe:
    pipe = KeptPipe()
    channels.take(
        Message(channel=name, opening=opening, submitted=submitted or {}, cancelled=cancelled), pipe
    )
    return pipe


def opened(channels: Channels, opening: int = 1, name: bytes = b"gateway") -> KeptPipe:
    return take(channels, opening=opening, name=name)


def answered(number: int, raw: bytes) -> bytes:
    return frame(number, raw, http_status=200, usage=None)


async def turns() -> None:
    """Let the loop do all that there is to do."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_frames_of_a_turn_of_the_loop_go_as_one() -> None:
    engine = Engine()
    channels = Channels(engine.answer)
    back = opened(channels)
    burst = take(channels, {1: b"a", 2: b"b"})
    later = take(channels, {3: b"c"})
    assert (burst.is_finished, later.is_finished, back.is_finished) == (True, True, False)
    await turns()
    engine.may_answer.set()
    await turns()
    assert back.sent[0] == answered(1, b"a") + answered(2, b"b") + answered(3, b"c")
    assert b"".join(back.sent[1:]) == final_frame(1) + final_frame(2) + final_frame(3)
    assert burst.sent == later.sent == []


async def test_requests_of_a_channel_that_is_not_open_are_refused() -> None:
    engine = Engine()
    channels = Channels(engine.answer)
    opened(channels, name=b"another")
    pipe = take(channels, {1: b"a", 2: b"b"})
    assert pipe.sent == [refusal(1) + refusal(2)]
    assert pipe.is_finished
    assert take(channels, cancelled=[1]).is_finished


async def test_only_a_first_opening_opens_a_channel() -> None:
    """A later one comes to an instance of the base model that has taken the old one's place."""
    channels = Channels(Engine().answer)
    assert opened(channels, 2).is_finished
    assert take(channels, {1: b"a"}).sent == [refusal(1)]


async def test_a_cancelled_request_ends_and_no_other() -> None:
    engine = Engine()
    channels = Channels(engine.answer)
    back = opened(channels)
    take(channels, {1: b"a", 2: b"b"})
    await turns()
    take(channels, cancelled=[2, 7])
    await turns()
    assert engine.cancelled == [b"b"]
    assert b"".join(back.sent) == final_frame(2)


async def test_a_request_that_is_cancelled_as_it_comes_ends_too() -> None:
    channels = Channels(Engine().answer)
    back = opened(channels)
    take(channels, {1: b"a"})
    take(channels, cancelled=[1])
    await turns()
    assert b"".join(back.sent) == final_frame(1)


async def test_usage_goes_with_the_bytes_and_only_when_it_has_grown() -> None:
    usages = [TokenUsage(5, 0), TokenUsage(5, 1), TokenUsage(5, 1), None, TokenUsage(5, 2)]

    async def answer(raw: bytes, responder: Responder) -> None:
        for usage in usages:
            responder.write(raw, usage=usage)

    channels = Channels(answer)
    back = opened(channels)
    take(channels, {1: b"x"})
    await turns()
    told = [TokenUsage(5, 0), TokenUsage(5, 1), None, None, TokenUsage(5, 2)]
    expected = [frame(1, b"x", usage=usage) for usage in told]
    assert b"".join(back.sent) == b"".join(expected) + final_frame(1)


async def test_a_newer_pipe_takes_over_after_all_that_was_written() -> None:
    engine = Engine()
    channels = Channels(engine.answer)
    first = opened(channels)
    take(channels, {1: b"a"})
    await turns()
    engine.may_answer.set()
    # The answer is written, and not sent yet.
    await asyncio.sleep(0)
    second = opened(channels, 2)
    assert first.is_finished
    await turns()
    assert b"".join(first.sent + second.sent) == answered(1, b"a") + final_frame(1)
    assert first.gateway_dies is not None
    first.gateway_dies()
    await turns()
    assert not second.is_finished


async def test_a_channel_without_requests_ends_and_is_not_known_any_more() -> None:
    engine = Engine()
    channels = Channels(engine.answer, idle_s=IDLE_S)
    back = opened(channels)
    take(channels, {1: b"a"})
    await asyncio.sleep(3 * IDLE_S)
    assert not back.is_finished
    engine.may_answer.set()
    await asyncio.sleep(3 * IDLE_S)
    assert back.is_finished
    assert take(channels, {2: b"b"}).sent == [refusal(2)]
    again = opened(channels)
    take(channels, {3: b"c"})
    await turns()
    assert b"".join(again.sent) == answered(3, b"c") + final_frame(3)


async def test_the_requests_of_a_gateway_that_dies_are_cancelled() -> None:
    engine = Engine()
    channels = Channels(engine.answer)
    back, other = opened(channels), opened(channels, name=b"another")
    take(channels, {1: b"a", 2: b"b"})
    take(channels, {1: b"c"}, name=b"another")
    await turns()
    assert back.gateway_dies is not None
    await asyncio.to_thread(back.gateway_dies)
    await turns()
    assert engine.cancelled == [b"a", b"b"]
    assert (back.is_finished, other.is_finished) == (True, False)
    assert take(channels, {3: b"c"}).sent == [refusal(3)]
