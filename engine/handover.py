"""The way from the companion to its base model: one JSON question and answer per connection.

A Unix socket, because calls between Triton's models (BLS) do not work inside `initialize()`.
Both ends find it by the repository's path. Imports nothing of vllm.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import socket
import stat
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

Answer = Mapping[str, Any]
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
ANSWER_DEADLINE_S = 300.0
"""Reading one adapter in takes the engine well under a second; a map may bring hundreds."""


class HandoverError(Exception):
    """The base model can't be asked: it is not there yet, or did not answer."""


def socket_path(repository: Path, base_model: str) -> Path:
    """Where the base model of a repository listens, short enough for a Unix socket's address.

    Raises HandoverError when the folder can't be made or belongs to another user.
    """
    configured = os.environ.get("LORA_SOCKET_DIR")
    folder = Path(configured or Path(tempfile.gettempdir()) / f"lora-server-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise HandoverError(f"{folder} can't be made: {error.strerror}") from error
    status = folder.stat()
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o022:
        raise HandoverError(f"{folder} must belong to this user and be writable by no other")
    key = hashlib.sha256(f"{repository.resolve()}\0{base_model}".encode()).hexdigest()
    return folder / f"{key[:24]}.sock"


def ask(path: Path, question: Mapping[str, Any]) -> Answer:
    """Ask the base model once. Raises HandoverError."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(ANSWER_DEADLINE_S)
            connection.connect(os.fspath(path))
            connection.sendall(json.dumps(question).encode() + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline(MAX_MESSAGE_BYTES)
    except OSError as error:
        raise HandoverError(f"the base model is not there: {error}") from error
    if not line.endswith(b"\n"):
        raise HandoverError("the base model went away before it answered")
    try:
        answer: Answer = json.loads(line)
    except ValueError as error:
        raise HandoverError(f"the base model's answer is no JSON: {error}") from error
    return answer


class HandoverServer:
    """The base model's end."""

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
