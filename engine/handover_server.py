"""The base model's end of the way from its companion: engine/handover.py."""

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from engine.handover import MAX_MESSAGE_BYTES, Answer

log = logging.getLogger(__name__)


class HandoverServer:
    """Answers one question a connection."""

    def __init__(self, path: Path, answer: Callable[[Answer], Awaitable[Answer]]) -> None:
        self._path = path
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._inode: int | None = None

    async def start(self) -> None:
        """Listen; takes over from an earlier instance of the same base model."""
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(
            self._serve, path=os.fspath(self._path), limit=MAX_MESSAGE_BYTES
        )
        self._path.chmod(0o600)
        self._inode = self._path.stat().st_ino

    async def stop(self) -> None:
        """Stop listening, and remove the socket unless a newer instance has put its own there."""
        if self._server is not None:
            self._server.close()
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one question; whoever asked what can't be answered sees the connection end."""
        with contextlib.closing(writer):
            try:
                if (line := await reader.readline()).endswith(b"\n"):
                    answer = await self._answer(json.loads(line))
                    writer.write(json.dumps(answer).encode() + b"\n")
                    await writer.drain()
            except ConnectionError:
                log.info("handover.abandoned")
            except Exception:
                log.exception("handover.failed")
