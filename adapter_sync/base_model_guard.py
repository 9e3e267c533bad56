"""Restarts a base model whose engine or process has died, or that failed to load, and it alone.

Triton keeps calling such a model ready and never recovers it. So each is asked every second whether
its engine is alive (engine_health), and one that is not is started again: at once the first time,
then after growing pauses. `decide` is pure; what it decides on is seen and done by BaseModelGuard.
"""

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import structlog

from adapter_sync.errors import LoraServerError, TritonUnavailableError

log = structlog.get_logger()

LOOK_PERIOD_S = 1.0
SILENT_S = 30.0
"""How long a loaded base model may leave the question unanswered before it counts as frozen."""
UNLOADING_S = 10.0
"""How long Triton may say that it unloads a base model; it does so for ever when requests hang."""
FIRST_PAUSE_S, LAST_PAUSE_S = 2.0, 300.0
LOUD_RESTARTS = 8
"""From so many restarts in a row on, each is an error in the log, LAST_PAUSE_S after the last."""
SETTLED_S = 20.0
"""An engine that has lived for so long after its start did not die of it: the next restart is a
first one again, and comes at once."""


class Condition(StrEnum):
    """What is seen of a base model."""

    ALIVE = "alive"
    DEAD = "dead"
    """Its process says that the engine is dead, or Triton that the process is."""
    SILENT = "silent"
    """It is loaded and does not answer."""
    FAILED = "failed"
    """Triton could not load it."""
    UNLOADING = "unloading"
    ABSENT = "absent"
    """It loads, or is not to be loaded, or Triton is away: others see to that."""


class WatchedTriton(Protocol):
    """What the guard asks of Triton."""

    def condition(self, base_model: str) -> tuple[Condition, str]:
        """What is seen of a base model, and in words why. Never raises a LoraServerError."""

    def restart(self, base_model: str, *, by_force: bool) -> None:
        """Return when it serves again; `by_force` where its process can't end by itself.

        Raises TritonUnavailableError, TritonRefusedError.
        """


@dataclass(slots=True, kw_only=True)
class Record:
    """What is known of one base model. Times are of a clock that only grows, in seconds."""

    condition: Condition = Condition.ABSENT
    since: float = 0.0
    restarts: int = 0
    """In a row: 0 again once it has lived for SETTLED_S."""
    restart_ended_at: float | None = None


def pause_s(restarts: int) -> float:
    """How long to wait after that many restarts in a row."""
    if restarts == 0:
        return 0.0
    if restarts >= LOUD_RESTARTS:
        return LAST_PAUSE_S
    return min(FIRST_PAUSE_S * 2.0 ** (restarts - 1), LAST_PAUSE_S)


def note(record: Record, condition: Condition, now: float) -> None:
    """Take in what was seen."""
    if condition is not record.condition:
        record.condition, record.since = condition, now
    if condition is Condition.ALIVE and now - record.since >= SETTLED_S:
        record.restarts = 0


def decide(record: Record, now: float) -> bool:
    """Whether to restart the base model now. Pure."""
    lasted_s = now - record.since
    match record.condition:
        case Condition.ALIVE | Condition.ABSENT:
            is_due = False
        case Condition.DEAD | Condition.FAILED:
            is_due = True
        case Condition.SILENT:
            is_due = lasted_s >= SILENT_S
        case Condition.UNLOADING:
            is_due = lasted_s >= UNLOADING_S
    waited_s = now - record.restart_ended_at if record.restart_ended_at is not None else now
    return is_due and waited_s >= pause_s(record.restarts)


@dataclass(slots=True)
class BaseModelGuard:
    """Looks at the base models and restarts them, each in a thread of its own."""

    triton: WatchedTriton
    names: Callable[[], Collection[str]]
    """The base models that are to be loaded."""
    clock: Callable[[], float] = time.monotonic
    _records: dict[str, Record] = field(default_factory=dict)
    _restarting: dict[str, threading.Thread] = field(default_factory=dict)

    def run(self, stopping: threading.Event) -> None:
        """Look every second until `stopping` is set."""
        while not stopping.wait(LOOK_PERIOD_S):
            try:
                self.look()
            except Exception:
                log.exception("base_models.not_guarded")

    def look(self) -> None:
        """Ask each base model that is not being restarted, and restart those that need it."""
        names = frozenset(self.names())
        for name in self._records.keys() - names:
            del self._records[name]
        for name in sorted(names):
            if (thread := self._restarting.get(name)) is not None and thread.is_alive():
                continue
            record = self._records.setdefault(name, Record(since=self.clock()))
            condition, reason = self.triton.condition(name)
            note(record, condition, self.clock())
            if decide(record, self.clock()):
                self._begin(name, record, reason)

    def _begin(self, name: str, record: Record, reason: str) -> None:
        record.restarts += 1
        is_loud = record.restarts >= LOUD_RESTARTS
        (log.error if is_loud else log.warning)(
            "base_model.restarting",
            base_model=name,
            condition=record.condition.value,
            reason=reason,
            restarts=record.restarts,
            next_after_s=pause_s(record.restarts),
        )
        # Not to be waited for: an engine that starts must not hold up the end.
        thread = threading.Thread(
            target=self._restart, args=(name, record), name=f"restart {name}", daemon=True
        )
        self._restarting[name] = thread
        thread.start()

    def _restart(self, name: str, record: Record) -> None:
        began = self.clock()
        try:
            self.triton.restart(name, by_force=record.condition is Condition.SILENT)
        except TritonUnavailableError as error:
            # A Triton that starts anew loads all that it finds.
            log.warning("base_model.restart_broken_off", base_model=name, error=str(error))
        except LoraServerError as error:
            log.error("base_model.restart_failed", base_model=name, error=str(error))  # noqa: TRY400 - Triton's words are all there is
        else:
            took_s = round(self.clock() - began, 1)
            log.warning("base_model.restarted", base_model=name, took_s=took_s)
        finally:
            record.restart_ended_at = self.clock()
