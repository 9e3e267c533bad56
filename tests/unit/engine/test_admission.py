"""The waiters of the queue before the engine, on a real event loop."""

import asyncio
import gc
from collections.abc import Callable
from dataclasses import replace

import pytest

from engine.admission import Admission, QueueTimeoutError
from engine.fair_queue import Asked, Limits, QueueFullError
from engine.priority import FIRST, OTHERS, with_priority

LIMITS = Limits(
    max_running=1,
    max_running_shared=1,
    max_prompt_tokens=100,
    max_prompt_tokens_shared=100,
    max_adapters=1,
    max_adapters_shared=1,
    max_waiting=2,
    turn_s=1,
    about_s=10,
)
LONG_S = 60.0


def nothing() -> int:
    """The tokens that an engine without prompts has to read."""
    return 0


def asked(tenant: str, tokens: int = 10) -> Asked:
    return Asked(tenant=tenant, weight=1, adapter=None, sequences=1, tokens=tokens)


class Work:
    """A request in the engine until it is told to end."""

    def __init__(self, admission: Admission, tenant: str, log: list[str], tokens: int = 10) -> None:
        self.ended = asyncio.Event()
        self.task = asyncio.create_task(self._run(admission, tenant, log, tokens))

    async def _run(self, admission: Admission, tenant: str, log: list[str], tokens: int) -> None:
        async with admission.entered(asked(tenant)) as entry:
            log.append(tenant)
            await self.ended.wait()
            entry.charge(tokens)


async def until(is_true: Callable[[], bool]) -> None:
    for _ in range(1000):
        if is_true():
            return
        await asyncio.sleep(0)
    pytest.fail("it never came")


async def test_who_waits_enters_when_another_leaves() -> None:
    admission, log = Admission(LIMITS, unread=nothing, max_wait_s=LONG_S), list[str]()
    first, second = Work(admission, "a", log), Work(admission, "b", log)
    await until(lambda: admission.waiting == 1)
    assert log == ["a"]
    first.ended.set()
    await until(lambda: log == ["a", "b"])
    second.ended.set()
    await second.task
    assert admission.waiting == 0


async def test_who_has_used_less_enters_first() -> None:
    admission, log = Admission(LIMITS, unread=nothing, max_wait_s=LONG_S), list[str]()
    running = Work(admission, "busy", log, tokens=1000)
    waiting = [Work(admission, tenant, log) for tenant in ("busy", "quiet")]
    await until(lambda: admission.waiting == 2)
    for each in (running, *waiting):
        each.ended.set()
    await asyncio.gather(*(each.task for each in waiting))
    assert log == ["busy", "quiet", "busy"]


async def test_vllm_is_told_of_a_tenant_that_has_nothing_in_the_engine() -> None:
    admission = Admission(replace(LIMITS, max_running=9), unread=nothing, max_wait_s=LONG_S)
    told: list[tuple[object, ...]] = []

    async def add_request(*arguments: object, **options: object) -> None:
        told.append((*arguments, options))

    async def ask(tenant: str) -> None:
        async with admission.entered(asked(tenant)):
            for _ in range(2):
                # In a task, as vLLM does it.
                await asyncio.gather(with_priority(add_request)("id", priority=-5))

    async with admission.entered(asked("a")):
        for tenant in ("a", "b"):
            await asyncio.create_task(ask(tenant))
    assert told == [("id", {"priority": each}) for each in (OTHERS, OTHERS, FIRST, OTHERS)]


async def test_who_is_cancelled_leaves_the_queue_at_once() -> None:
    admission, log = Admission(LIMITS, unread=nothing, max_wait_s=LONG_S), list[str]()
    running, gone = Work(admission, "a", log), Work(admission, "b", log)
    await until(lambda: admission.waiting == 1)
    gone.task.cancel()
    await until(gone.task.done)
    assert admission.waiting == 0
    running.ended.set()
    await running.task
    assert log == ["a"]


async def test_who_is_cancelled_in_the_moment_of_entering_leaves_room_for_the_next() -> None:
    admission, log = Admission(LIMITS, unread=nothing, max_wait_s=LONG_S), list[str]()
    running, gone, last = (Work(admission, tenant, log) for tenant in "abc")
    await until(lambda: admission.waiting == 2)
    running.ended.set()
    await until(lambda: admission.waiting == 1)
    gone.task.cancel()
    last.ended.set()
    await last.task
    assert log == ["a", "c"]


async def test_who_fails_in_the_engine_leaves_it() -> None:
    admission = Admission(LIMITS, unread=nothing, max_wait_s=LONG_S)
    with pytest.raises(ZeroDivisionError):
        async with admission.entered(asked("a")):
            raise ZeroDivisionError
    async with asyncio.timeout(5), admission.entered(asked("b")):
        pass


async def test_waiting_has_an_end() -> None:
    admission, log = Admission(LIMITS, unread=nothing, max_wait_s=0.05), list[str]()
    running = Work(admission, "a", log)
    await until(lambda: log == ["a"])
    with pytest.raises(QueueTimeoutError, match=r"waited 0\.05 s"):
        async with admission.entered(asked("b")):
            pass
    assert admission.waiting == 0
    running.ended.set()
    await running.task


async def test_more_than_may_wait_are_refused_at_once() -> None:
    admission, log = Admission(LIMITS, unread=nothing, max_wait_s=LONG_S), list[str]()
    works = [Work(admission, "a", log) for _ in range(3)]
    await until(lambda: admission.waiting == 2)
    with pytest.raises(QueueFullError):
        async with admission.entered(asked("a")):
            pass
    for each in works:
        each.ended.set()
    await asyncio.gather(*(each.task for each in works))


async def test_many_that_come_and_go_leave_nothing_behind() -> None:
    admission = Admission(
        replace(LIMITS, max_running=4, max_waiting=1000), unread=nothing, max_wait_s=LONG_S
    )

    async def work(number: int) -> None:
        async with admission.entered(asked(f"t{number % 7}")) as entry:
            await asyncio.sleep(0)
            entry.charge(number)

    tasks = [asyncio.create_task(work(number)) for number in range(500)]
    await asyncio.sleep(0)
    for each in tasks[::3]:
        each.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    gc.collect()
    assert admission.waiting == 0
    assert not admission._waiters
    assert not admission._queue._slots
    assert admission._queue.running == 0


async def test_who_waits_enters_when_the_engine_has_read_a_prompt() -> None:
    unread = [90]
    limits = replace(LIMITS, max_running=4)
    admission = Admission(limits, unread=lambda: unread[0], max_wait_s=LONG_S)
    log = list[str]()
    works = [Work(admission, "a", log), Work(admission, "a", log), Work(admission, "a", log)]
    await until(lambda: admission.waiting == 2)
    admission.look()
    assert admission.waiting == 2
    unread[0] = 80
    admission.look()
    assert admission.waiting == 1
    for each in works:
        each.ended.set()
        await each.task
