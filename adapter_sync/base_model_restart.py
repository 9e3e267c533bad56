"""How Triton is asked after a base model, and how it is had to start one again.

Unloading and loading is the only way to bring back a Python model whose process has died (server
24.10). A Triton that polls does so when the model's files change.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import psutil

from adapter_sync.base_model_guard import Condition
from adapter_sync.base_model_loader import UNLOADED
from adapter_sync.base_models import ENGINE_ARGUMENTS_FILE
from adapter_sync.engine_health import EngineHealth
from adapter_sync.errors import TritonRefusedError, TritonUnavailableError
from adapter_sync.triton_repository import LOAD_DEADLINE_S, ModelState

POLL_PERIOD_S = 1.0
_STUB = "triton_python_backend_stub"
_UNKNOWN_INPUT = "unexpected inference input"
"""Triton's words on a base model whose config.pbtxt is not of this version."""


class AskedTriton(Protocol):
    """Triton, which is asked after a base model and has it started again.

    Each method raises TritonUnavailableError and TritonRefusedError.
    """

    def states(self) -> Mapping[str, ModelState]:
        """The models in the repository's folder."""

    def health(self, base_model: str) -> EngineHealth:
        """The base model's word on its engine; refused by one that is not loaded, or has died."""

    def load(self, model: str) -> None:
        """Return when it serves."""

    def unload(self, model: str) -> None:
        """Take no new requests."""


class RestartedByLoading:
    """WatchedTriton with explicit model control."""

    def __init__(self, triton: AskedTriton, repository: Path) -> None:
        self._triton = triton
        self._repository = repository

    def condition(self, base_model: str) -> tuple[Condition, str]:
        """What is seen of a base model, and in words why."""
        return condition(self._triton, base_model)

    def restart(self, base_model: str, *, by_force: bool) -> None:
        """Unload and load; `by_force` kills its process first, which can't end by itself."""
        if by_force:
            kill_process(self._repository, base_model)
        self._triton.unload(base_model)
        self._triton.load(base_model)


class RestartedByPolling:
    """WatchedTriton where Triton polls its repository."""

    def __init__(
        self,
        triton: AskedTriton,
        repository: Path,
        *,
        stopping: threading.Event,
        deadline_s: float = LOAD_DEADLINE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._triton = triton
        self._repository = repository
        self._stopping = stopping
        self._deadline_s = deadline_s
        self._clock = clock

    def condition(self, base_model: str) -> tuple[Condition, str]:
        """What is seen of a base model, and in words why."""
        seen, reason = condition(self._triton, base_model)
        # Triton itself tries one again that it could not load, with each poll.
        return (Condition.ABSENT if seen is Condition.FAILED else seen), reason

    def restart(self, base_model: str, *, by_force: bool) -> None:
        """Touch its engine arguments, and wait until the engine that Triton starts is alive."""
        if by_force:
            kill_process(self._repository, base_model)
        os.utime(self._repository / base_model / ENGINE_ARGUMENTS_FILE)
        deadline = self._clock() + self._deadline_s
        while self._clock() < deadline and not self._stopping.wait(POLL_PERIOD_S):
            if self.condition(base_model)[0] is Condition.ALIVE:
                return
        raise TritonUnavailableError(f"Triton has not started {base_model} again.")


def condition(triton: AskedTriton, base_model: str) -> tuple[Condition, str]:
    """What is seen of a base model, and in words why."""
    try:
        health = triton.health(base_model)
    except TritonRefusedError as error:
        if _UNKNOWN_INPUT in str(error):
            return Condition.ABSENT, str(error)
        kind, reason = Condition.DEAD, str(error)
    except TritonUnavailableError as error:
        kind, reason = Condition.SILENT, str(error)
    else:
        kind = Condition.ALIVE if health.alive else Condition.DEAD
        return kind, health.reason or "its engine has ended"
    try:
        told = triton.states()[base_model]
    except (TritonRefusedError, TritonUnavailableError, KeyError):
        return Condition.ABSENT, reason
    if told.state == "UNAVAILABLE" and told.reason != UNLOADED:
        return Condition.FAILED, told.reason
    by_state = {"READY": kind, "UNLOADING": Condition.UNLOADING}
    return by_state.get(told.state, Condition.ABSENT), reason


def kill_process(repository: Path, base_model: str) -> None:
    """Kill the base model's process and all that it started, if they are on this machine."""
    model = str(repository / base_model / "1" / "model.py")
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if len(words) > 1 and Path(words[0]).name == _STUB and words[1] == model:
            with contextlib.suppress(psutil.NoSuchProcess):
                for each in [*process.children(recursive=True), process]:
                    each.kill()
