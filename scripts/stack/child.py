"""Another server as a child process: started, waited for, and stopped with all that it started."""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import httpx
import psutil

from stack.installation import end, end_with_parent

T = TypeVar("T")
LOOK_PERIOD_S = 0.2
TOLD_BYTES = 3000


class ChildError(RuntimeError):
    """It ended, or was not ready in time; the message has the end of its log."""

    def __init__(self, what: str, log: Path) -> None:
        words = log.read_text(errors="replace")[-TOLD_BYTES:]
        super().__init__(f"{what}; {log} ends with:\n{words}")


@contextlib.contextmanager
def running(
    command: Sequence[str],
    *,
    log: Path,
    is_ready: Callable[[], bool],
    environment: Mapping[str, str] = MappingProxyType({}),
    ready_within_s: float = 600,
    stop_within_s: float = 90,
) -> Iterator[psutil.Popen]:
    """Run a server, its words in `log`, from when it is ready until the block ends.

    Raises ChildError.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = psutil.Popen(
            command,
            env=os.environ | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C comes to this process alone, which stops the others one by one.
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
    try:
        deadline = time.monotonic() + ready_within_s
        while not is_ready():
            if process.poll() is not None:
                raise ChildError(f"{command[0]} ended with {process.returncode}", log)
            if time.monotonic() > deadline:
                raise ChildError(f"{command[0]} was not ready within {ready_within_s} s", log)
            time.sleep(LOOK_PERIOD_S)
        yield process
    finally:
        _stop(process, stop_within_s)


@contextlib.contextmanager
def all_at_once(servers: Mapping[str, AbstractContextManager[T]]) -> Iterator[dict[str, T]]:
    """Enter them at the same time: most of an engine's start runs on one core.

    Raises what one of them raised, when all have started or failed.
    """
    # The threads last as long as the servers: the kernel ends a child with the thread that made it.
    with (
        ThreadPoolExecutor(max_workers=max(1, len(servers))) as pool,
        contextlib.ExitStack() as stack,
    ):
        entered = {name: pool.submit(stack.enter_context, each) for name, each in servers.items()}
        wait(entered.values())
        yield {name: each.result() for name, each in entered.items()}


def answers(url: str) -> bool:
    """Whether a GET of the URL succeeds at this moment."""
    try:
        return httpx.get(url, timeout=2, trust_env=False).is_success
    except httpx.TransportError:
        return False


def _stop(process: psutil.Popen, within_s: float) -> None:
    started = []
    with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
        started = process.children(recursive=True)
        process.terminate()
        process.wait(within_s)
    end([each for each in [process, *started] if each.is_running()])
