"""The queue before the engine: a request waits here until it may enter, on the event loop.

What decides is `fair_queue`; here are its waiters, the deadline and the clock. Imports neither
vllm nor Triton.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from engine.fair_queue import Asked, FairQueue, Limits, Place
from engine.priority import FIRST, PRIORITIES


class QueueTimeoutError(Exception):
    """A request has waited as long as it may."""

    def __init__(self, *, waited_s: float) -> None:
        super().__init__(
            f"The request waited {waited_s:g} s for its turn, the longest that it may. The model "
            "is busy: try again shortly."
        )


class Entry:
    """A request that has entered the engine."""

    def __init__(self, queue: FairQueue, place: Place) -> None:
        self._queue = queue
        self._place = place

    def charge(self, tokens: int) -> None:
        """What it has used so far, prompt and answer."""
        self._queue.charge(self._place, tokens)


class Admission:
    """The way into the engine; `unread` tells the tokens of the prompts that it has yet to read."""

    def __init__(
        self,
        limits: Limits,
        *,
        unread: Callable[[], int],
        max_wait_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue = FairQueue(limits)
        self._unread = unread
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._waiters: dict[Place, asyncio.Future[None]] = {}

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return self._queue.waiting

    def look(self) -> None:
        """Let in whom the engine has made room for: it may have read prompts."""
        if self._queue.waiting:
            self._admit()

    @asynccontextmanager
    async def entered(self, asked: Asked) -> AsyncIterator[Entry]:
        """Be in the engine, when it is this request's turn; leaving makes room for others.

        Raises QueueFullError and QueueTimeoutError.
        """
        place = self._queue.add(asked, self._clock())
        try:
            self._admit()
            if not place.is_running:
                await self._turn(place)
            PRIORITIES.set(iter([FIRST] if place.is_first else []))
            yield Entry(self._queue, place)
        finally:
            self._queue.leave(place, self._clock())
            self._admit()

    async def _turn(self, place: Place) -> None:
        waiter = self._waiters[place] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._max_wait_s):
                await waiter
        except TimeoutError as error:
            raise QueueTimeoutError(waited_s=self._max_wait_s) from error
        finally:
            del self._waiters[place]

    def _admit(self) -> None:
        for place in self._queue.admit(self._clock(), self._unread()):
            waiter = self._waiters.get(place)
            # One that is cancelled at this moment leaves its place when it runs next.
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
