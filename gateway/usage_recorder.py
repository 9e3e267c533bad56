"""What requests use, on its way into the registry: kept in memory, written every second.

It is counted as the engine tells, not at a request's end, so it does not matter how one ends.
"""

import asyncio
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from anyio import to_thread
from sqlalchemy.exc import SQLAlchemyError

from adapter_sync.errors import TransientError
from adapter_sync.record import Usage, UsageBatch, UsageKey
from adapter_sync.registry import Registry
from gateway.engine_client import TokenUsage

FLUSH_PERIOD_S = 1.0
_NOTHING = TokenUsage(prompt_tokens=0, completion_tokens=0)


class UsageRecorder:
    """The usage that is not in the registry yet, on one event loop.

    A batch is taken out once and keeps its number until the registry has it: a failed write
    loses nothing, and one that only seemed to fail adds nothing twice.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._writer = uuid.uuid4().hex
        self._number = 0
        self._tallies: defaultdict[UsageKey, _Tally] = defaultdict(_Tally)
        self._adapters_used_at: dict[str, datetime] = {}
        self._unwritten: UsageBatch | None = None
        self._writing = asyncio.Lock()
        self._log = structlog.get_logger(__name__)

    def meter(
        self,
        *,
        tenant_id: str,
        key_id: str | None,
        requested_model: str,
        adapter_id: str | None,
        spend: Callable[[int], None],
    ) -> "Meter":
        """A request's meter; `spend` takes the tokens as well. It all counts for today."""
        key = UsageKey(
            day=datetime.now(UTC).date(),
            tenant_id=tenant_id,
            key_id=key_id,
            requested_model=requested_model,
            adapter_id=adapter_id,
        )
        return Meter(self, key, spend)

    def add_request(self, key: UsageKey) -> None:
        """Count a request, and its adapter's use."""
        self._tallies[key].requests += 1
        if key.adapter_id is not None:
            self._adapters_used_at[key.adapter_id] = datetime.now(UTC)

    def add_tokens(self, key: UsageKey, *, prompt_tokens: int, completion_tokens: int) -> None:
        """Count tokens."""
        tally = self._tallies[key]
        tally.prompt_tokens += prompt_tokens
        tally.completion_tokens += completion_tokens

    async def flush(self) -> None:
        """Write everything. Raises SQLAlchemyError; what is not written stays and comes first."""
        async with self._writing:
            while (batch := self._unwritten or self._take()) is not None:
                self._unwritten = batch
                await to_thread.run_sync(self._registry.add_usage, batch)
                self._unwritten = None

    @asynccontextmanager
    async def flushing(self, period_s: float = FLUSH_PERIOD_S) -> AsyncIterator[None]:
        """Flush every so often, and at the end."""
        ending = asyncio.Event()
        task = asyncio.create_task(self._flush_until(ending, period_s))
        try:
            yield
        finally:
            ending.set()
            await task

    async def _flush_until(self, ending: asyncio.Event, period_s: float) -> None:
        failed = ended = False
        while not ended:
            with suppress(TimeoutError):
                async with asyncio.timeout(period_s):
                    await ending.wait()
            # Asked before the flush: what is counted during it gets a flush of its own.
            ended = ending.is_set()
            try:
                await self.flush()
            except (SQLAlchemyError, TransientError) as error:
                if not failed:
                    self._log.warning("usage.not_flushed", error=str(error))
                failed = True
            else:
                failed = False
        self._tell_lost()

    def _take(self) -> UsageBatch | None:
        if not self._tallies:
            return None
        self._number += 1
        batch = UsageBatch(
            writer=self._writer,
            number=self._number,
            used={key: tally.usage() for key, tally in self._tallies.items()},
            adapters_used_at=dict(self._adapters_used_at),
        )
        self._tallies.clear()
        self._adapters_used_at.clear()
        return batch

    def _tell_lost(self) -> None:
        """The last write failed too: what goes with this process is at least in its log."""
        while (batch := self._unwritten or self._take()) is not None:
            self._unwritten = None
            for key, used in batch.used.items():
                self._log.error("usage.lost", **_fields(key, used))


class Meter:
    """One request's usage: the engine's totals come in, their growth goes on."""

    def __init__(
        self, recorder: UsageRecorder, key: UsageKey, spend: Callable[[int], None]
    ) -> None:
        self._recorder = recorder
        self._key = key
        self._spend = spend
        self._totals = _NOTHING
        self._is_counted = False

    def count_request(self) -> None:
        """The engine has taken the request; said twice it counts once."""
        if not self._is_counted:
            self._is_counted = True
            self._recorder.add_request(self._key)

    def count_tokens(self, totals: TokenUsage) -> None:
        """What the engine has counted so far."""
        prompt_tokens = totals.prompt_tokens - self._totals.prompt_tokens
        completion_tokens = totals.completion_tokens - self._totals.completion_tokens
        self._totals = totals
        self._recorder.add_tokens(
            self._key, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens
        )
        self._spend(prompt_tokens + completion_tokens)


@dataclass(slots=True, kw_only=True)
class _Tally:
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def usage(self) -> Usage:
        return Usage(
            requests=self.requests,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
        )


def _fields(key: UsageKey, used: Usage) -> Mapping[str, object]:
    return {
        "day": key.day.isoformat(),
        "tenant_id": key.tenant_id,
        "key_id": key.key_id,
        "requested_model": key.requested_model,
        "adapter_id": key.adapter_id,
        "requests": used.requests,
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
    }
