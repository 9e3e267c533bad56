import asyncio
from dataclasses import dataclass, field

import pytest

from engine.engine_watch import EngineUnavailableError, EngineWatch

DEADLINE_S = 30
MAX_STEP_S = 3.0


@dataclass(slots=True)
class Engine:
    """Answers when it may, and counts how often it is asked."""

    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    errored: bool = False
    asked: int = 0
    asked_twice: asyncio.Event = field(default_factory=asyncio.Event)

    async def probe(self) -> None:
        self.asked += 1
        if self.asked == 2:
            self.asked_twice.set()
        await self.may_answer.wait()

    def watch(self, max_step_s: float = MAX_STEP_S) -> EngineWatch:
        return EngineWatch(is_errored=lambda: self.errored, probe=self.probe, max_step_s=max_step_s)


async def test_an_engine_that_ended_is_dead_at_the_next_look() -> None:
    engine = Engine()
    watch = engine.watch()
    watching = asyncio.create_task(watch.watch())
    await asyncio.sleep(0.1)
    assert not watch.is_dead
    engine.errored = True
    assert watch.is_dead
    async with asyncio.timeout(DEADLINE_S):
        assert await watching == "one of its processes has ended"
    assert watch.dead_because == "one of its processes has ended"


async def test_an_engine_that_does_not_answer_is_dead_after_the_longest_step() -> None:
    engine = Engine()
    watch = engine.watch()
    async with asyncio.timeout(DEADLINE_S):
        reason = await watch.watch()
    assert reason.startswith("it has made no step for ")
    assert watch.is_dead
    # One question that stays open, not one after the other.
    assert engine.asked == 1


async def test_an_idle_engine_proves_that_it_lives_by_its_answers() -> None:
    engine = Engine()
    engine.may_answer.set()
    watch = engine.watch()
    watching = asyncio.create_task(watch.watch())
    async with asyncio.timeout(DEADLINE_S):
        await engine.asked_twice.wait()
    assert not watching.done()
    watching.cancel()


async def test_steps_are_proof_enough_and_nothing_is_asked() -> None:
    engine = Engine()
    watch = engine.watch()
    watching = asyncio.create_task(watch.watch())
    for _ in range(40):
        watch.note_step()
        await asyncio.sleep(0.1)
    assert engine.asked == 0
    assert not watch.is_dead
    watching.cancel()


async def test_a_probe_that_fails_is_tried_again() -> None:
    failures = [RuntimeError("not now")]
    answered = asyncio.Event()

    async def probe() -> None:
        if failures:
            raise failures.pop()
        answered.set()

    watch = EngineWatch(is_errored=lambda: False, probe=probe, max_step_s=60)
    watching = asyncio.create_task(watch.watch())
    async with asyncio.timeout(DEADLINE_S):
        await answered.wait()
    assert not watch.is_dead
    watching.cancel()


def test_who_asks_a_dead_engine_is_refused() -> None:
    engine = Engine()
    watch = engine.watch()
    watch.check()
    engine.errored = True
    with pytest.raises(EngineUnavailableError, match="being restarted"):
        watch.check()
