"""A stop in the order that clients behind a load balancer need: not ready first, then no more.

uvicorn closes its socket as soon as a signal comes, and whoever does not know of it yet is refused.
So its own handler is called a while after the signal: until then the readiness says that the server
is stopping, and all else goes on.
"""

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ONE_STOP_S = 1.0
"""Signals within so long after the first are one: a terminal's Ctrl-C goes to a worker and to its
parent, which sends another."""


class Stopping:
    """Whether this process has been told to stop."""

    def __init__(self) -> None:
        self._at: float | None = None

    @property
    def is_set(self) -> bool:
        """Whether it has."""
        return self._at is not None

    @contextmanager
    def on_signals(self, notice_s: float) -> Iterator[None]:
        """Take the signals of the running server, and pass them on `notice_s` later.

        A second one ends the server at once. Only in a process's main thread; elsewhere there are
        no signals to take.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in SIGNALS}

        def stop(number: int, frame: Any) -> None:
            handler = before[signal.Signals(number)]
            if not callable(handler):
                return
            if self._at is None:
                self._at = time.monotonic()
                loop.call_soon_threadsafe(loop.call_later, notice_s, handler, number, None)
            elif time.monotonic() - self._at > ONE_STOP_S:
                handler(number, frame)
                _at_once(before[signal.SIGINT], frame)

        for number in SIGNALS:
            signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _at_once(handler: Callable[[int, Any], Any] | int | None, frame: Any) -> None:
    """Have uvicorn wait for nothing more: it takes a SIGINT after another signal for that."""
    if callable(handler):
        handler(signal.SIGINT, frame)
