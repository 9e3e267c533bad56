import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from adapter_sync.base_model_guard import (
    LAST_PAUSE_S,
    LOUD_RESTARTS,
    SETTLED_S,
    SILENT_S,
    UNLOADING_S,
    BaseModelGuard,
    Condition,
    Record,
    decide,
    note,
    pause_s,
)
from adapter_sync.base_model_restart import condition
from adapter_sync.engine_health import EngineHealth
from adapter_sync.errors import TritonRefusedError, TritonUnavailableError
from adapter_sync.triton_repository import ModelState
from tests.stack_process import wait_for

ALIVE = EngineHealth(alive=True, reason=None, proof_age_s=0.1)


@pytest.mark.parametrize(
    ("seen", "lasted_s", "is_due"),
    [
        (Condition.ALIVE, 1e6, False),
        (Condition.ABSENT, 1e6, False),
        (Condition.DEAD, 0, True),
        (Condition.FAILED, 0, True),
        (Condition.SILENT, SILENT_S - 1, False),
        (Condition.SILENT, SILENT_S, True),
        (Condition.UNLOADING, UNLOADING_S - 1, False),
        (Condition.UNLOADING, UNLOADING_S, True),
    ],
)
def test_what_is_restarted_and_when(seen: Condition, lasted_s: float, is_due: bool) -> None:  # noqa: FBT001
    record = Record()
    note(record, seen, now=100)
    note(record, seen, now=100 + lasted_s)
    assert decide(record, now=100 + lasted_s) is is_due


def test_the_pauses_between_restarts_grow_to_a_bound() -> None:
    pauses = [pause_s(restarts) for restarts in range(LOUD_RESTARTS + 2)]
    assert pauses[:4] == [0, 2, 4, 8]
    assert pauses == sorted(pauses)
    assert pauses[LOUD_RESTARTS:] == [LAST_PAUSE_S, LAST_PAUSE_S]


def test_a_restart_waits_for_its_pause() -> None:
    record = Record(condition=Condition.DEAD, restarts=2, restart_ended_at=50)
    assert not decide(record, now=53.9)
    assert decide(record, now=54)


def test_an_engine_that_lived_for_a_while_is_restarted_at_once() -> None:
    record = Record(restarts=LOUD_RESTARTS, restart_ended_at=100)
    note(record, Condition.ALIVE, now=100)
    note(record, Condition.ALIVE, now=100 + SETTLED_S)
    note(record, Condition.DEAD, now=101 + SETTLED_S)
    assert decide(record, now=101 + SETTLED_S)


@dataclass(slots=True)
class Triton:
    """Says of each base model what it is told to, and keeps what it is asked to do."""

    healths: dict[str, EngineHealth | Exception]
    state: str = "READY"
    reason: str = ""
    failures: list[Exception] = field(default_factory=list)
    restarted: list[tuple[str, bool]] = field(default_factory=list)

    def health(self, base_model: str) -> EngineHealth:
        health = self.healths[base_model]
        if isinstance(health, Exception):
            raise health
        return health

    def states(self) -> Mapping[str, ModelState]:
        return dict.fromkeys(self.healths, ModelState(state=self.state, reason=self.reason))

    def load(self, model: str) -> None: ...
    def unload(self, model: str) -> None: ...

    def condition(self, base_model: str) -> tuple[Condition, str]:
        return condition(self, base_model)

    def restart(self, base_model: str, *, by_force: bool) -> None:
        self.restarted.append((base_model, by_force))
        if self.failures:
            raise self.failures.pop()
        self.healths[base_model] = ALIVE


@pytest.mark.parametrize(
    ("health", "state", "seen"),
    [
        (ALIVE, "READY", Condition.ALIVE),
        (EngineHealth(alive=False, reason="it died", proof_age_s=3), "READY", Condition.DEAD),
        (TritonRefusedError("Stub process is not healthy."), "READY", Condition.DEAD),
        (TritonRefusedError("the model is not ready"), "LOADING", Condition.ABSENT),
        (TritonRefusedError("the model is not ready"), "UNAVAILABLE", Condition.FAILED),
        (TritonRefusedError("the model is not ready"), "UNLOADING", Condition.UNLOADING),
        (TritonRefusedError("unexpected inference input 'health'"), "READY", Condition.ABSENT),
        (TritonUnavailableError("Deadline Exceeded"), "READY", Condition.SILENT),
        (TritonUnavailableError("Deadline Exceeded"), "LOADING", Condition.ABSENT),
    ],
)
def test_what_is_seen_of_a_base_model(
    health: EngineHealth | Exception, state: str, seen: Condition
) -> None:
    assert condition(Triton({"a": health}, state=state), "a")[0] is seen


def test_a_base_model_that_was_unloaded_is_left_alone() -> None:
    triton = Triton({"a": TritonRefusedError("not ready")}, state="UNAVAILABLE", reason="unloaded")
    assert condition(triton, "a")[0] is Condition.ABSENT


def test_only_the_base_model_that_died_is_restarted_and_once() -> None:
    triton = Triton({"a": ALIVE, "b": EngineHealth(alive=False, reason=None, proof_age_s=9)})
    guard = BaseModelGuard(triton, lambda: ["a", "b"])
    guard.look()
    wait_for(lambda: triton.healths["b"] == ALIVE, "the restart")
    guard.look()
    assert triton.restarted == [("b", False)]


def test_a_restart_that_fails_is_tried_again_after_a_pause() -> None:
    now = [0.0]
    triton = Triton(
        {"a": TritonRefusedError("Stub process is not healthy.")},
        failures=[TritonRefusedError("no memory")],
    )
    guard = BaseModelGuard(triton, lambda: ["a"], clock=lambda: now[0])
    guard.look()
    _join()
    triton.state = "UNAVAILABLE"
    guard.look()
    assert len(triton.restarted) == 1
    now[0] = 2.0
    guard.look()
    _join()
    assert len(triton.restarted) == 2
    assert triton.healths["a"] == ALIVE


def test_a_silent_base_model_is_restarted_by_force() -> None:
    now = [0.0]
    triton = Triton({"a": TritonUnavailableError("Deadline Exceeded")})
    guard = BaseModelGuard(triton, lambda: ["a"], clock=lambda: now[0])
    guard.look()
    assert triton.restarted == []
    now[0] = SILENT_S
    guard.look()
    _join()
    assert triton.restarted == [("a", True)]


def _join() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("restart "):
            thread.join(30)
