"""A channel between the gateway's client and a base model, on a real Triton."""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest

from adapter_sync.engine_health import EngineHealth
from adapter_sync.errors import TransientError, TritonRefusedError, TritonUnavailableError
from gateway import triton_channel
from gateway.engine_client import EngineCall, EngineRequest
from gateway.errors import EngineTimeoutError
from gateway.triton import TritonClient
from tests.integration.channel.conftest import BASE_MODEL, Triton
from tests.stack_process import ROOT

PATIENCE_S = 20

ENDLESS_GATEWAY = """
import asyncio, sys
from gateway.triton import TritonClient
from tests.integration.channel.test_channel import asked

async def main():
    client = TritonClient(sys.argv[1])
    async with asked(client, None, period_s=0.01) as call:
        while True:
            await call.read(within_s=5)

asyncio.run(main())
"""


def asked(
    client: TritonClient, tokens: int | None, *, period_s: float = 0, size: int = 8
) -> AbstractAsyncContextManager[EngineCall]:
    request = EngineRequest(
        endpoint="chat.completions",
        lora_name=None,
        served_name=BASE_MODEL,
        request_id="",
        cache_salt="",
        tenant="acme",
        weight=1,
        body={"tokens": tokens, "period_s": period_s, "size": size},
    )
    return client.call(BASE_MODEL, request)


async def rest_of(call: EngineCall, *, within_s: float = PATIENCE_S) -> bytes:
    pieces = []
    while (piece := await call.read(within_s=within_s)) is not None:
        pieces.append(piece.payload)
    return b"".join(pieces)


async def answer(client: TritonClient, tokens: int, *, period_s: float = 0, size: int = 8) -> bytes:
    async with asked(client, tokens, period_s=period_s, size=size) as call:
        return await rest_of(call)


def words(tokens: int, size: int = 8) -> bytes:
    return b"".join((b"%d " % number).ljust(size, b".") for number in range(1, tokens + 1))


async def wait_for(look: Callable[[], bool], within_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + within_s
    while not await asyncio.to_thread(look):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_each_of_many_requests_gets_its_own_answer(
    triton: Triton, client: TritonClient
) -> None:
    answers = await asyncio.gather(*(answer(client, 10 * number) for number in range(1, 33)))
    assert answers == [words(10 * number) for number in range(1, 33)]
    assert len(client._running) == 1
    assert triton.in_flight() == 0


async def test_answers_go_on_while_one_way_back_takes_over_from_another(
    client: TritonClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_channel, "PIPE_RESPONSES", 3)
    asking = [answer(client, 200, period_s=0.001) for _ in range(8)]
    assert await asyncio.gather(*asking) == [words(200)] * 8
    assert len(client._running) == 1


async def test_large_answers_are_whole(
    client: TritonClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_channel, "PIPE_BYTES", 3_000_000)
    asking = [answer(client, 5, size=1_000_000) for _ in range(4)]
    assert await asyncio.gather(*asking) == [words(5, 1_000_000)] * 4


async def test_a_client_that_does_not_read_holds_nobody_up(client: TritonClient) -> None:
    async with asked(client, 2000, size=10_000) as idle:
        assert await answer(client, 100, period_s=0.001) == words(100)
        assert await rest_of(idle) == words(2000, 10_000)


async def test_a_request_that_is_left_ends_and_the_others_go_on(
    triton: Triton, client: TritonClient
) -> None:
    other = asyncio.create_task(answer(client, 300, period_s=0.01))
    async with asked(client, None, period_s=0.01) as call:
        await call.read(within_s=PATIENCE_S)
        assert triton.in_flight() == 2
    await wait_for(lambda: triton.in_flight() == 1, within_s=2)
    assert await other == words(300)


async def test_a_base_model_unloads_soon_after_its_last_request(
    triton: Triton, client: TritonClient
) -> None:
    assert await answer(client, 5) == words(5)
    triton.control("unload")
    await wait_for(triton.has_unloaded, within_s=8)
    with pytest.raises(TransientError):
        await answer(client, 5)


async def test_a_base_model_that_unloads_answers_what_it_has(
    triton: Triton, client: TritonClient
) -> None:
    async with asked(client, 200, period_s=0.01) as call:
        first = await call.read(within_s=PATIENCE_S)
        await asyncio.to_thread(triton.control, "unload")
        with pytest.raises(TritonRefusedError):
            await answer(client, 5)
        assert first is not None
        assert first.payload + await rest_of(call) == words(200)
    await wait_for(triton.has_unloaded, within_s=8)


async def test_a_reloaded_base_model_answers_and_the_old_one_ends_its_requests(
    triton: Triton, client: TritonClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_channel, "PIPE_RESPONSES", 50)
    old = asyncio.create_task(answer(client, 600, period_s=0.01))
    await wait_for(lambda: triton.in_flight() == 1)
    triton.touch()
    assert (await asyncio.to_thread(triton.control, "load")).is_success
    # The new instance may have been asked to take over from the old one, and has not.
    await asyncio.sleep(1)
    assert await answer(client, 5) == words(5)
    assert not old.done()
    assert await old == words(600)
    await wait_for(lambda: len(triton.stubs()) == 1, within_s=8)


async def test_a_gateway_that_is_killed_leaves_nothing(
    triton: Triton, client: TritonClient
) -> None:
    gateway = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        ENDLESS_GATEWAY,
        triton.grpc_address,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}"},
    )
    await wait_for(lambda: triton.in_flight() == 1)
    gateway.kill()
    await gateway.wait()
    await wait_for(lambda: triton.in_flight() == 0, within_s=3)
    assert await answer(client, 5) == words(5)
    triton.control("unload")
    await wait_for(triton.has_unloaded, within_s=8)


async def test_a_client_that_hangs_up_leaves_nothing(triton: Triton) -> None:
    client = TritonClient(triton.grpc_address)
    async with asked(client, None, period_s=0.01) as call:
        await call.read(within_s=PATIENCE_S)
        await client.close()
        with pytest.raises(TritonUnavailableError):
            await rest_of(call)
    await wait_for(lambda: triton.in_flight() == 0, within_s=3)


async def test_requests_of_a_dead_engine_time_out_and_a_new_one_answers(
    triton: Triton, client: TritonClient
) -> None:
    async with asked(client, None, period_s=0.01) as call:
        await call.read(within_s=PATIENCE_S)
        (stub,) = triton.stubs()
        stub.kill()
        triton.is_broken = True
        with pytest.raises(EngineTimeoutError):
            await rest_of(call, within_s=1)
    with pytest.raises(TransientError):
        await answer(client, 5)
    triton.control("unload")
    triton.control("load")
    await wait_for(triton.is_loaded)
    assert await answer(client, 5) == words(5)


@pytest.mark.parametrize("end", ["kill", "suspend"])
async def test_the_silence_of_a_base_model_ends_its_requests_however_long_they_may_take(
    triton: Triton, client: TritonClient, end: str
) -> None:
    async with asked(client, None, period_s=0.01) as one, asked(client, 1, period_s=600) as other:
        await one.read(within_s=PATIENCE_S)
        (stub,) = triton.stubs()
        getattr(stub, end)()
        triton.is_broken = True
        for call in (one, other):
            with pytest.raises(TritonUnavailableError):
                await rest_of(call, within_s=600)
    with pytest.raises(TransientError):
        await client.health(BASE_MODEL, within_s=2)


async def test_a_base_model_that_lives_may_think_for_longer_than_it_may_be_silent(
    triton: Triton, client: TritonClient
) -> None:
    silence_s = triton_channel.LOOK_PERIOD_S * triton_channel.SILENT_LOOKS
    assert await answer(client, 1, period_s=silence_s + 4) == words(1)
    assert triton.in_flight() == 0


async def test_a_base_model_tells_its_health_beside_its_requests(client: TritonClient) -> None:
    async with asked(client, None, period_s=0.01) as call:
        await call.read(within_s=PATIENCE_S)
        health = await client.health(BASE_MODEL, within_s=PATIENCE_S)
        assert health == EngineHealth(alive=True, reason=None, proof_age_s=0.0)


async def test_a_base_model_that_is_not_loaded_has_no_health(
    triton: Triton, client: TritonClient
) -> None:
    triton.control("unload")
    with pytest.raises(TritonRefusedError):
        await client.health(BASE_MODEL, within_s=PATIENCE_S)


async def test_all_requests_of_a_dead_triton_fail_at_once(
    triton: Triton, client: TritonClient
) -> None:
    async with asked(client, None, period_s=0.01) as one, asked(client, None) as other:
        await one.read(within_s=PATIENCE_S)
        triton.process.suspend()
        children = triton.process.children(recursive=True)
        triton.process.kill()
        triton.is_broken = True
        for each in children:
            each.kill()
        for call in (one, other):
            with pytest.raises(TritonUnavailableError):
                await rest_of(call)
