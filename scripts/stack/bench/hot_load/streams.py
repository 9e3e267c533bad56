"""Streams of the base model that run meanwhile, and the longest that one of them stood still."""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator

import httpx

from stack.bench.servers import Server

STREAMS = 8
MAX_TOKENS = 1500
WITHIN_S = 300


@contextlib.contextmanager
def running_streams(server: Server) -> Iterator[Callable[[float, float], float]]:
    """Run streams while the block runs; they have begun before it.

    Gives a function: of two moments of time.monotonic(), the longest that a stream waited for its
    next token in between, in seconds. Raises RuntimeError when a stream has failed or has ended.
    """
    streams = [_Stream(server, number) for number in range(STREAMS)]
    for each in streams:
        each.start()
    try:
        for each in streams:
            each.wait_until_running()
        yield lambda begin, end: max(each.longest_gap_s(begin, end) for each in streams)
    finally:
        for each in streams:
            each.stop()


class _Stream:
    def __init__(self, server: Server, number: int) -> None:
        self._server = server
        self._number = number
        self._arrivals: list[float] = []
        self._running = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait_until_running(self) -> None:
        if not self._running.wait(WITHIN_S) or not self._arrivals:
            raise RuntimeError(f"{self._server.name}: a stream beside the hot-load did not begin")

    def longest_gap_s(self, begin: float, end: float) -> float:
        """The longest between two tokens, of those of which a part is between these moments."""
        moments = [*self._arrivals, time.monotonic()]
        gaps = itertools.pairwise(moments)
        if not self._thread.is_alive():
            raise RuntimeError(f"{self._server.name}: a stream ended beside the hot-load")
        return max(after - before for before, after in gaps if after > begin and before < end)

    def stop(self) -> None:
        """Leave it; its request ends in the engine as well."""
        self._ending = True
        self._thread.join(WITHIN_S)

    def _run(self) -> None:
        target = self._server.target
        headers = {} if target.key is None else {"Authorization": f"Bearer {target.key}"}
        body = {
            "model": self._server.base_model,
            "messages": [{"role": "user", "content": f"Count from {self._number}."}],
            "max_tokens": MAX_TOKENS,
            "ignore_eos": True,
            "stream": True,
        }
        try:
            with (
                httpx.Client(trust_env=False, timeout=WITHIN_S, headers=headers) as api,
                api.stream("POST", target.base_url + target.endpoint, json=body) as answer,
            ):
                answer.raise_for_status()
                for line in answer.iter_lines():
                    if self._ending:
                        return
                    if line.startswith("data: "):
                        self._arrivals.append(time.monotonic())
                        self._running.set()
        finally:
            self._running.set()
