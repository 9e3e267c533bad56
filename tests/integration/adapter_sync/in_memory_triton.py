"""Triton, a companion and its engine in memory: a TritonControl that reads the real repository.

It does what was measured on the real ones: a load of unchanged files is a no-op, also when the
companion's process has died; a map older than the applied one is ignored; each adapter is taken or
refused by itself; one in use drains.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from adapter_sync.engine_status import EngineAdapter, EngineStatus
from adapter_sync.errors import TritonRefusedError, TritonUnavailableError
from adapter_sync.lora_map import COMPANION_SUFFIX, LoraMap, adapter_files_folder, read_lora_map

ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors"}


def nothing() -> None:
    pass


@dataclass(slots=True, kw_only=True)
class InMemoryTriton:
    """One Triton with one companion."""

    repository: Path
    is_up: bool = True
    base_is_up: bool = True
    companion_is_broken: bool = False
    refuses_loads: bool = False
    refused: dict[str, str] = field(default_factory=dict)
    """What the engine refuses: reasons by adapter id, or by lora_name."""
    in_use: set[str] = field(default_factory=set)
    engine: dict[str, EngineAdapter] = field(default_factory=dict)
    engine_revision: int = 0
    companion_revision: int | None = None
    loads: int = 0
    """Loads that were more than a no-op."""
    on_call: Callable[[], None] = nothing
    """Called at the beginning and at the end of each call: a place to interfere."""
    loaded_files: frozenset[tuple[str, int]] = frozenset()

    def commit(self, companion: str, revision: int) -> None:
        self.on_call()
        self._require_up()
        if self.refuses_loads:
            raise TritonRefusedError(f"failed to load '{companion}'")
        files = self._files(companion)
        if self.companion_revision is None or files != self.loaded_files:
            self._load(companion)
            self.loaded_files = files
            assert self.companion_revision == revision
        self.on_call()

    def status(self, companion: str) -> EngineStatus | None:
        assert companion
        self.on_call()
        self._require_up()
        if self.companion_revision is None:
            return None
        if self.companion_is_broken:
            raise TritonRefusedError("Stub process is not healthy.")
        return EngineStatus(
            companion_revision=self.companion_revision,
            revision=self.engine_revision if self.base_is_up else None,
            adapters=dict(self.engine) if self.base_is_up else {},
        )

    def restart(self, companion: str) -> None:
        """Triton dies and comes back; the base model reads the map as it starts."""
        self.engine, self.engine_revision, self.companion_revision = {}, 0, None
        self.companion_is_broken = False
        self.in_use.clear()
        self.is_up = self.base_is_up = True
        self._load(companion)
        self.loaded_files = self._files(companion)

    def end_request(self, lora_name: str) -> None:
        """The last request that used a draining adapter ends."""
        self.in_use.discard(lora_name)
        self.engine.pop(lora_name, None)

    def served(self) -> list[str]:
        return sorted(name for name, each in self.engine.items() if each.state == "loaded")

    def _require_up(self) -> None:
        if not self.is_up:
            raise TritonUnavailableError("Triton does not answer: connection refused")

    def _load(self, companion: str) -> None:
        lora_map = read_lora_map(self.repository / companion / "1")
        self.loads += 1
        self.companion_revision = lora_map.revision
        self.companion_is_broken = False
        if self.base_is_up and lora_map.revision >= self.engine_revision:
            base_model = companion.removesuffix(COMPANION_SUFFIX)
            self._take_over(lora_map, adapter_files_folder(self.repository, base_model))

    def _take_over(self, lora_map: LoraMap, folder: Path) -> None:
        names = {entry.lora_name for entry in lora_map.adapters}
        draining = EngineAdapter(state="draining", reason=None)
        leaving = {name: draining for name in self.engine if name in self.in_use - names}
        self.engine_revision = lora_map.revision
        self.engine = leaving | {
            entry.lora_name: self._add(entry.lora_name, folder / entry.folder)
            for entry in lora_map.adapters
        }

    def _add(self, lora_name: str, folder: Path) -> EngineAdapter:
        if not folder.is_dir():
            return EngineAdapter(state="failed", reason="its folder is missing")
        assert {file.name for file in folder.iterdir()} == ADAPTER_FILES
        assert all(file.read_bytes() for file in folder.iterdir())
        adapter_id = lora_name.partition("@")[0]
        reason = self.refused.get(adapter_id) or self.refused.get(lora_name)
        return EngineAdapter(state="failed" if reason else "loaded", reason=reason)

    def _files(self, companion: str) -> frozenset[tuple[str, int]]:
        """What Triton compares, nearly: it takes the newest of these times."""
        found = (self.repository / companion).rglob("*")
        return frozenset((str(path), path.stat().st_mtime_ns) for path in found)
