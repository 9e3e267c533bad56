"""Counting tokens at the engine's own methods, here faked as vLLM 0.32's AsyncLLM behaves."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pytest

from engine.token_usage import (
    COUNTER,
    TokenCounter,
    counting_completions,
    counting_prompts,
    estimated_tokens,
)

PROMPT = {"type": "token", "prompt_token_ids": [1, 2, 3]}


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"prompt": "four" * 25, "max_tokens": 5}, 26),
        ({"prompt": [5, 6, 7], "temperature": 0.5, "stop": None}, 3),
        ({"messages": [{"role": "user", "content": [{"text": "a" * 36}]}]}, 10),
        ({"prompt": "\ud800日本"}, 2),
        ("a native prompt of 28 bytes.", 7),
        ({}, 0),
    ],
)
def test_a_prompt_is_estimated_by_its_texts(body: Any, tokens: int) -> None:
    assert estimated_tokens(body) == tokens


class Kind(Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass(frozen=True, slots=True)
class Params:
    output_kind: Kind


@dataclass(frozen=True, slots=True)
class Choice:
    index: int
    token_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Output:
    outputs: list[Choice]
    prompt_token_ids: list[int] | None = field(default_factory=lambda: [1, 2, 3])


class Engine:
    """Generates what it is told to and keeps whether it was aborted, as AsyncLLM does."""

    def __init__(self, *outputs: Output, refuses: bool = False) -> None:
        self._outputs = outputs
        self._refuses = refuses
        self.aborted = False

    async def add_request(self, request_id: str, prompt: Any, params: Any, **_: Any) -> str:
        del prompt, params
        if self._refuses:
            raise ValueError("too long")
        return request_id

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[Output, None]:
        try:
            await self.add_request(request_id, prompt, sampling_params, **options)
            for output in self._outputs:
                await asyncio.sleep(0)
                yield output
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted = True
            raise


def counted(engine: Engine) -> Engine:
    """The engine as openai_app wires it."""
    engine.add_request = counting_prompts(engine.add_request)  # type: ignore[assignment, method-assign]
    engine.generate = counting_completions(  # type: ignore[method-assign]
        engine.generate, delta_kind=Kind.DELTA
    )
    return engine


class Request:
    """A request's counter, current from now on, and the prompts it was told of."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []
        self.counter = TokenCounter(on_prompt=lambda: self.told.append(self.counter.usage))
        COUNTER.set(self.counter)


async def run(engine: Engine, kind: Kind, prompt: Any = PROMPT) -> list[Output]:
    return [output async for output in engine.generate(prompt, Params(kind), "r1")]


async def test_a_streams_new_tokens_are_added_up() -> None:
    request = Request()
    outputs = [Output([Choice(0, ids)]) for ids in ([7], [], [8, 9])]
    assert await run(counted(Engine(*outputs)), Kind.DELTA) == outputs
    assert request.counter.usage == (3, 3)


async def test_the_counts_are_known_when_an_output_is_handed_on() -> None:
    request = Request()
    engine = counted(Engine(Output([Choice(0, [7])]), Output([Choice(0, [8])])))
    seen = [request.counter.usage async for _ in engine.generate(PROMPT, Params(Kind.DELTA), "r1")]
    assert seen == [(3, 1), (3, 2)]


async def test_the_prompt_is_told_of_once_the_engine_has_it() -> None:
    request = Request()
    await run(counted(Engine(Output([Choice(0, [7, 8])]))), Kind.FINAL_ONLY)
    assert request.told == [(3, 0)]
    assert request.counter.usage == (3, 2)


async def test_a_refused_prompt_does_not_count() -> None:
    request = Request()
    with pytest.raises(ValueError, match="too long"):
        await run(counted(Engine(refuses=True)), Kind.DELTA)
    assert (request.told, request.counter.usage) == ([], (0, 0))


async def test_a_prompt_of_another_form_is_counted_with_the_first_output() -> None:
    request = Request()
    await run(counted(Engine(Output([Choice(0, [7])]))), Kind.DELTA, prompt="hello")
    assert request.counter.usage == (3, 1)


async def test_several_choices_add_up_in_a_stream_and_out_of_one() -> None:
    for kind in (Kind.DELTA, Kind.FINAL_ONLY):
        request = Request()
        choices = Output([Choice(0, [7]), Choice(1, [8, 9])])
        await run(counted(Engine(choices)), kind)
        assert request.counter.usage == (3, 3)


async def test_outputs_that_hold_everything_so_far_count_once() -> None:
    request = Request()
    outputs = (
        Output([Choice(0, [7])]),
        Output([Choice(1, [5, 6])]),
        Output([Choice(0, [7, 8])]),
        Output([Choice(1, [5, 6]), Choice(0, [7, 8, 9])]),
    )
    await run(counted(Engine(*outputs)), Kind.CUMULATIVE)
    assert request.counter.usage == (3, 5)


async def test_beam_search_has_one_prompt_and_all_its_steps() -> None:
    request = Request()
    engine = counted(Engine(Output([Choice(0, [7])], [1, 2, 3, 4])))
    await run(engine, Kind.FINAL_ONLY)
    longer = {"type": "token", "prompt_token_ids": [1, 2, 3, 7]}
    await asyncio.gather(*(asyncio.create_task(run(engine, Kind.FINAL_ONLY, longer)) for _ in "ab"))
    assert request.counter.usage == (3, 3)
    assert request.told == [(3, 0)]


async def test_requests_at_the_same_time_are_counted_apart() -> None:
    engine = counted(Engine(*[Output([Choice(0, [7])])] * 5))

    async def one(steps: int) -> tuple[int, int]:
        request = Request()
        async with aclosing(engine.generate(PROMPT, Params(Kind.DELTA), "r")) as outputs:
            for _ in range(steps):
                await anext(outputs)
        return request.counter.usage

    assert await asyncio.gather(*map(one, (1, 3, 5))) == [(3, 1), (3, 3), (3, 5)]


async def test_closing_the_counted_outputs_aborts_the_request() -> None:
    Request()
    engine = counted(Engine(*[Output([Choice(0, [7])])] * 5))
    outputs = engine.generate(PROMPT, Params(Kind.DELTA), "r1")
    await anext(outputs)
    await outputs.aclose()
    assert engine.aborted


async def test_a_request_that_nobody_counts_passes_through() -> None:
    engine = counted(Engine(Output([Choice(0, [7])])))
    assert len(await run(engine, Kind.DELTA)) == 1
