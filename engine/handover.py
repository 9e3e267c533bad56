"""The way from the companion to its base model: one JSON question and answer per connection.

A Unix socket, because calls between Triton's models (BLS) do not work inside `initialize()`.
Both ends find it by the repository's path. Imports nothing of vllm, nor asyncio: each commit of a
lora map starts a companion anew, which waits for these imports.
"""

import hashlib
import json
import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    folder = Path(configured) if configured else _folder_of_this_user()
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


def _folder_of_this_user() -> Path:
    import tempfile  # it takes a companion a while, and is rarely needed

    return Path(tempfile.gettempdir()) / f"lora-server-{os.getuid()}"
