"""A failure that comes again and again is told once, and then counted.

Imports the standard library alone: the engine's process uses it too.
"""

import logging
import threading
import time
from collections.abc import Callable, Hashable

PERIOD_S = 60.0
MOST_KINDS = 1000
"""Of failures that are remembered; beyond it the oldest is told anew."""


class Repetitions:
    """Counts what comes again within PERIOD_S of when it was told. Safe in several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[Hashable, tuple[float, int]] = {}
        self._lock = threading.Lock()

    def count(self, kind: Hashable) -> int | None:
        """None for a failure that was told a moment ago; else how many were left out since."""
        now = self._clock()
        with self._lock:
            told_at, left_out = self._told.pop(kind, (-PERIOD_S, 0))
            if now - told_at < PERIOD_S:
                self._told[kind] = (told_at, left_out + 1)
                return None
            self._told[kind] = (now, 0)
            if len(self._told) > MOST_KINDS:
                del self._told[next(iter(self._told))]
            return left_out


class OnceAMinute(logging.Filter):
    """Of records with a traceback, lets the first of a kind pass, and then one a minute."""

    def __init__(self) -> None:
        super().__init__()
        self._repetitions = Repetitions()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is told; how many were left out is added to its message."""
        if not record.exc_info:
            return True
        kind = (record.pathname, record.lineno, record.exc_info[0])
        left_out = self._repetitions.count(kind)
        if left_out:
            record.msg = f"{record.msg} (and {left_out} more like it since the last time)"
        return left_out is not None
