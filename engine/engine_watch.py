"""Whether an engine is alive: it makes steps, or it answers a question put to all its workers.

Imports neither vllm nor Triton.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

LOOK_PERIOD_S = 0.25
PROBE_PERIOD_S = 2.0
"""How long the last proof may be ago before the engine is asked for another one.

With a small model on the CPU a question takes a millisecond, or a step while the engine is busy.
"""


class EngineUnavailableError(Exception):
    """The engine has died, and is to be started again."""

    def __init__(self) -> None:
        super().__init__("The model is being restarted. Try again shortly.")


class EngineWatch:
    """Looks at one engine until it is dead.

    Args:
        is_errored: whether vLLM itself has found its engine dead.
        probe: a question that the engine and each of its workers has to answer.
        max_step_s: how long a question may stay unanswered; a step is that long at most.
        clock: seconds that only grow.

    """

    def __init__(
        self,
        *,
        is_errored: Callable[[], bool],
        probe: Callable[[], Awaitable[object]],
        max_step_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_errored = is_errored
        self._probe = probe
        self._max_step_s = max_step_s
        self._clock = clock
        self._proved_at = clock()
        self._probing: asyncio.Task[None] | None = None
        self.dead_because: str | None = None
        """Why the engine is dead; None as long as it is not known to be."""

    @property
    def proof_age_s(self) -> float:
        """How long ago the engine last showed that it is alive, in seconds."""
        return self._clock() - self._proved_at

    @property
    def is_dead(self) -> bool:
        """Whether the engine is dead; vLLM may know it before this watch does."""
        return self.dead_because is not None or self._is_errored()

    def note_step(self) -> None:
        """Take a finished step for a proof."""
        self._proved_at = self._clock()

    def check(self) -> None:
        """Raise EngineUnavailableError when the engine is dead."""
        if self.is_dead:
            raise EngineUnavailableError

    async def watch(self) -> str:
        """Return why the engine is dead, once it is."""
        # Counted by looks: while this loop stands still itself, no answer can come.
        unanswered_looks = 0
        try:
            while not self._is_errored():
                await asyncio.sleep(LOOK_PERIOD_S)
                if self.proof_age_s < PROBE_PERIOD_S:
                    unanswered_looks = 0
                    continue
                unanswered_looks += 1
                if unanswered_looks * LOOK_PERIOD_S >= self._max_step_s:
                    self.dead_because = f"it has made no step for {math.floor(self.proof_age_s)} s"
                    return self.dead_because
                if self._probing is None or self._probing.done():
                    self._probing = asyncio.create_task(self._prove())
        finally:
            if self._probing is not None:
                self._probing.cancel()
        self.dead_because = "one of its processes has ended"
        return self.dead_because

    async def _prove(self) -> None:
        try:
            await self._probe()
        except Exception:
            # Its time runs on; when the engine is dead, `is_errored` tells.
            log.exception("engine.probe_failed")
            await asyncio.sleep(PROBE_PERIOD_S)
        else:
            self.note_step()
