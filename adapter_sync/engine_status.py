"""How a base model's adapters fare, as its companion tells. Plain values, for planning."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAdapter:
    """One adapter as the engine sees it: "on_disk", "loaded", "failed" or "draining".

    `residency` is where its weights are: "gpu" (a slot of the device), "cpu" or "disk".
    """

    state: str
    reason: str | None
    residency: str = "disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """What a companion tells.

    `companion_revision` is the map it was loaded with. `revision`, `adapters` and `pids`, the
    engine's processes, are the base model's own, and `in_flight` the requests it is answering;
    `revision` is None while it is not running. `max_loras` are its slots, and `held` is how many
    adapters it has in them and in its memory.
    """

    companion_revision: int
    revision: int | None
    adapters: Mapping[str, EngineAdapter]
    pids: tuple[int, ...] = ()
    in_flight: int = 0
    max_loras: int = 0
    held: int = 0
