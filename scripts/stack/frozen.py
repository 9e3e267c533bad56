"""Processes that are there and do nothing any more: stopped by a signal, or not answering."""

import contextlib
import time
from collections.abc import Callable, Iterable
from http.client import HTTPConnection, HTTPException

import psutil

STOPPED_LOOKS = 5
"""After how many looks in a row, a second apart, a stopped process is killed. Counted, not timed:
who looks may have been stopped itself."""
ANSWER_WITHIN_S = 2.0
LOST_S = 60.0
"""How long a server that has answered before may leave every question unanswered."""
QUESTION_PERIOD_S = 5.0


class StoppedProcesses:
    """Kills what was stopped by a signal, so that whoever minds its death starts it again.

    Somebody may go on waiting for a stopped process for ever; and tritonserver aborts when a stub
    goes on that it has given up.
    """

    def __init__(self) -> None:
        self._looks: dict[psutil.Process, int] = {}

    def look(self, processes: Iterable[psutil.Process]) -> list[psutil.Process]:
        """Look once at the processes; those that were killed."""
        stopped = [each for each in processes if _is_stopped(each)]
        self._looks = {each: self._looks.get(each, 0) + 1 for each in stopped}
        killed = [each for each, looks in self._looks.items() if looks >= STOPPED_LOOKS]
        for each in killed:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        return killed


class Liveness:
    """Whether an HTTP server that has answered once still does."""

    def __init__(
        self, host: str, port: int, path: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._address = host, port
        self._path = path
        self._clock = clock
        self._unanswered = 0
        self._answered_before = False
        self._next_at = 0.0

    def is_lost(self) -> bool:
        """Ask, if it is time to; whether no question was answered for LOST_S.

        That is told once: what takes the lost one's place has to answer first.
        """
        if self._clock() < self._next_at:
            return False
        if self._answers():
            self._answered_before, self._unanswered = True, 0
        else:
            self._unanswered += 1
        self._next_at = self._clock() + QUESTION_PERIOD_S
        lost = self._answered_before and self._unanswered * QUESTION_PERIOD_S > LOST_S
        if lost:
            self._answered_before = False
        return lost

    def _answers(self) -> bool:
        connection = HTTPConnection(*self._address, timeout=ANSWER_WITHIN_S)
        try:
            connection.request("GET", self._path)
            connection.getresponse().read()
        except (OSError, HTTPException):
            return False
        else:
            return True
        finally:
            connection.close()


def _is_stopped(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False
