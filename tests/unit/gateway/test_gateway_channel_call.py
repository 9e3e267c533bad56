"""A call on a channel waits as long as each of its reads may, and no longer."""

import asyncio
import time

import pytest

from gateway.engine_client import EngineRequest, EngineResponse
from gateway.errors import EngineTimeoutError
from gateway.triton_channel import ChannelCall
from gateway.triton_protocol import Frame

REQUEST = EngineRequest(
    endpoint="chat.completions",
    lora_name=None,
    served_name="tiny",
    request_id="0" * 32,
    cache_salt="salt",
    tenant="acme",
    weight=1,
    body={},
)


def _piece(payload: bytes) -> Frame:
    return Frame(1, None, None, payload, is_final=False, is_unknown_channel=False)


async def _waited_s(call: ChannelCall, *, within_s: float) -> float:
    started = time.monotonic()
    with pytest.raises(EngineTimeoutError, match=f"{within_s:g} s"):
        await call.read(within_s=within_s)
    return time.monotonic() - started


@pytest.mark.parametrize(("first_s", "then_s"), [(30, 0.2), (0.1, 0.3), (0.2, 0.2)])
async def test_each_read_has_its_own_time(first_s: float, then_s: float) -> None:
    call = ChannelCall("tiny", REQUEST)
    asyncio.get_running_loop().call_later(0.05, call.put, _piece(b"a"))
    assert await call.read(within_s=first_s) == EngineResponse(None, b"a")
    assert await _waited_s(call, within_s=then_s) >= then_s - 0.01


async def test_many_reads_may_take_longer_than_one() -> None:
    within_s = 0.4
    call = ChannelCall("tiny", REQUEST)
    for _ in range(8):
        asyncio.get_running_loop().call_later(within_s / 4, call.put, _piece(b"a"))
        assert await call.read(within_s=within_s) == EngineResponse(None, b"a")
    assert await _waited_s(call, within_s=within_s) >= within_s - 0.01
