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


ON_DISK = EngineAdapter(state="on_disk", reason=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """What a companion tells.

    `companion_revision` is the map it was loaded with. `revision`, `adapters` and `pids`, the
    engine's processes, are the base model's own, and `in_flight` the requests it is answering;
    `revision` is None while it is not running. Once `settled_revision` is a map's, all of that map
    has been applied, and `adapters` may leave out those of it that are simply on the disk.
    `max_loras` are its slots, and `held` is how many adapters it has in them and in its memory.
    """

    companion_revision: int
    revision: int | None
    adapters: Mapping[str, EngineAdapter]
    settled_revision: int = 0
    pids: tuple[int, ...] = ()
    in_flight: int = 0
    max_loras: int = 0
    held: int = 0

    def adapter(self, lora_name: str, revision: int) -> EngineAdapter | None:
        """One adapter of the map of that revision; None while the engine does not know it yet."""
        on_disk = ON_DISK if self.settled_revision == revision else None
        return self.adapters.get(lora_name, on_disk)
