"""Tenants and adapters that compete for one engine: nobody waits for another's flood to end."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.e2e.conftest import MAX_WAITING, SEQUENCES, SLOTS
from tests.stack_process import BASE_MODEL, Stack, example, upload, wait_for

FLOOD_ANSWERS = 60
"""How many more answers a flood gets at the most before the one who waits must have had its own."""
WITHIN_S = 300
ENDLESS = 1900
ALL = httpx.Limits(max_connections=None)


def client(stack: Stack, key: str) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.AsyncClient(base_url=stack.url, headers=headers, timeout=WITHIN_S, limits=ALL)


def chat(model: str, tokens: int) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": "Count."}],
        "max_tokens": tokens,
        "ignore_eos": True,
    }


async def ask(api: httpx.AsyncClient, model: str, tokens: int) -> httpx.Response:
    return await api.post("/v1/chat/completions", json=chat(model, tokens))


async def endless(api: httpx.AsyncClient, count: int) -> "list[asyncio.Task[Any]]":
    """Answers of the base model that the engine works on, all begun."""
    begun = asyncio.Semaphore(0)

    async def hold() -> None:
        body = chat(BASE_MODEL, ENDLESS) | {"stream": True}
        async with api.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            begun.release()
            async for _ in lines:
                pass

    tasks = [asyncio.create_task(hold()) for _ in range(count)]
    async with asyncio.timeout(WITHIN_S):
        for _ in tasks:
            await begun.acquire()
    return tasks


async def until(is_true: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(wait_for, is_true, what, deadline_s=WITHIN_S)


async def until_in_flight(stack: Stack, count: int) -> None:
    """Until the engine has, or lets wait, so many requests."""

    def is_so() -> bool:
        status = stack.engine()
        return status is not None and status.in_flight == count

    await until(is_so, f"{count} requests in flight")


@asynccontextmanager
async def flooded(
    clients: dict[str, httpx.AsyncClient], lengths: range
) -> AsyncIterator["Counter[str]"]:
    """Requests for each model, one for each length at a time, until the block ends.

    Of different lengths they don't end together, so there is always one in the engine.
    """
    answered: Counter[str] = Counter()

    async def keep_asking(model: str, tokens: int) -> None:
        while True:
            (await ask(clients[model], model, tokens)).raise_for_status()
            answered[model] += 1

    tasks = [
        asyncio.create_task(keep_asking(model, tokens)) for model in clients for tokens in lengths
    ]
    try:
        yield answered
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until_answered(waiting: "asyncio.Task[httpx.Response]", answered: "Counter[str]") -> None:
    """Until it has its answer, or the flood has had so many that it has been starved."""
    before = answered.total()
    await until(lambda: waiting.done() or answered.total() >= before + FLOOD_ANSWERS, "an answer")
    assert waiting.done(), f"starved: the flood had {answered.total() - before} answers meanwhile"
    waiting.result().raise_for_status()


async def test_an_adapter_that_has_no_slot_is_served_while_those_that_have_are_flooded(
    small: Stack,
) -> None:
    keys = {f"{BASE_MODEL}:slot-{n}": small.new_key(f"slot-{n}") for n in range(SLOTS + 1)}
    ids = {}
    for model, key in keys.items():
        with small.api(key) as api:
            made = upload(api, model.partition(":")[2], example("finance"), wait_s=60)
            ids[model] = made.json()["id"]
    *busy, last = keys
    async with (
        client(small, keys[last]) as waiting,
        client(small, keys[busy[0]]) as first,
        client(small, keys[busy[1]]) as second,
        flooded({busy[0]: first, busy[1]: second}, range(5, 13, 2)) as answered,
    ):
        await until(lambda: min(answered[model] for model in busy) >= 2, "a flood")
        await until_answered(asyncio.create_task(ask(waiting, last, 4)), answered)
    for model, key in keys.items():
        with small.api(key) as api:
            api.delete(f"/v1/adapters/{ids[model]}").raise_for_status()


async def test_a_quiet_tenant_does_not_wait_for_what_another_has_queued_before(
    small: Stack,
) -> None:
    queued = 3 * SEQUENCES
    async with (
        client(small, small.new_key("flood")) as flood,
        client(small, small.new_key("quiet")) as quiet,
    ):
        # Each is a little longer than the one before, so they end one after the other.
        tasks = [
            asyncio.create_task(ask(flood, BASE_MODEL, 40 + 8 * number)) for number in range(queued)
        ]
        await until_in_flight(small, queued)
        (await ask(quiet, BASE_MODEL, 4)).raise_for_status()
        answered = sum(task.done() for task in tasks)
        await asyncio.gather(*tasks)
    # Behind all of them it would have come after the end of as many as do not fit.
    assert answered < queued - SEQUENCES


async def test_a_quiet_tenants_prompt_is_read_before_a_long_one_that_the_engine_has_begun(
    small: Stack,
) -> None:
    long = chat(BASE_MODEL, 1) | {
        "messages": [{"role": "user", "content": " ".join(map(str, range(400)))}]
    }
    async with (
        client(small, small.new_key("reader")) as flood,
        client(small, small.new_key("quick")) as quiet,
    ):
        (await ask(quiet, BASE_MODEL, 1)).raise_for_status()
        reading = asyncio.create_task(flood.post("/v1/chat/completions", json=long))
        await until_in_flight(small, 1)
        (await ask(quiet, BASE_MODEL, 1)).raise_for_status()
        assert not reading.done()
        answer = await reading
    # Or it is no long one: ten steps' worth and more.
    assert answer.json()["usage"]["prompt_tokens"] > 1280


async def test_more_than_may_wait_are_told_to_come_back_and_others_are_let_in(
    small: Stack,
) -> None:
    async with (
        client(small, small.new_key("greedy", tier="dedicated")) as greedy,
        client(small, small.new_key("modest")) as modest,
    ):
        tasks = await endless(greedy, SEQUENCES)
        tasks += [asyncio.create_task(ask(greedy, BASE_MODEL, 4)) for _ in range(MAX_WAITING)]
        most = SEQUENCES + MAX_WAITING
        await until_in_flight(small, most)
        refused = await ask(greedy, BASE_MODEL, 4)
        let_in = asyncio.create_task(ask(modest, BASE_MODEL, 4))
        await until_in_flight(small, most + 1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (await let_in).status_code == 200
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
    assert f"{MAX_WAITING} of your requests wait" in error["message"]
    await until_in_flight(small, 0)
