"""When each key was last used, written beside the requests: none waits for it or fails by it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

import structlog
from anyio import to_thread
from sqlalchemy.exc import SQLAlchemyError

from adapter_sync.errors import TransientError
from adapter_sync.record import ApiKey
from adapter_sync.registry import Registry

_PAUSE_S = 1


class KeyUses:
    """Collects the keys whose time is stale and writes them together. For one event loop."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._used: set[str] = set()
        self._noted = asyncio.Event()
        self._log = structlog.get_logger(__name__)

    def note(self, key: ApiKey) -> None:
        """The key was used now."""
        if key.has_stale_last_use(datetime.now(UTC)):
            self._used.add(key.id)
            self._noted.set()

    @asynccontextmanager
    async def written(self) -> AsyncIterator[None]:
        """Writes what is noted meanwhile; what can't be written is logged and forgotten."""
        writer = asyncio.create_task(self._keep_writing())
        try:
            yield
        finally:
            writer.cancel()
            with suppress(asyncio.CancelledError):
                await writer

    async def _keep_writing(self) -> None:
        while True:
            await self._noted.wait()
            self._noted.clear()
            used, self._used = self._used, set()
            try:
                await to_thread.run_sync(self._registry.note_key_uses, used, datetime.now(UTC))
            except (SQLAlchemyError, TransientError):
                self._log.warning("key_uses.not_written", count=len(used), exc_info=True)
            await asyncio.sleep(_PAUSE_S)
