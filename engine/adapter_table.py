"""Which adapters the engine has: the lora map applied, adapter by adapter.

Everything here runs on the engine's event loop. Imports the lora map's format, not vllm: the
engine is a Protocol, and a LoRARequest is made by the caller's factory.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from adapter_sync.lora_map import LoraMap, LoraMapEntry

log = logging.getLogger(__name__)

Request = TypeVar("Request")
Request_contra = TypeVar("Request_contra", contravariant=True)


class AdapterState(StrEnum):
    """Where an adapter is. ON_DISK ones are added by their first request."""

    ON_DISK = "on_disk"
    LOADED = "loaded"
    FAILED = "failed"
    DRAINING = "draining"


class Residency(StrEnum):
    """Where an adapter's weights are: a slot of the device, the host's memory, or only files."""

    GPU = "gpu"
    CPU = "cpu"
    DISK = "disk"


_PREFERENCE = (AdapterState.LOADED, AdapterState.ON_DISK, AdapterState.FAILED)
"""Which of an adapter's contents is meant by its id."""


class UnknownAdapterError(LookupError):
    """The engine serves no adapter of that lora_name, or could not add it."""


class LoraEngine(Protocol[Request_contra]):
    """What the table needs of vLLM's AsyncLLM."""

    async def add_lora(self, lora_request: Request_contra) -> bool:
        """Read an adapter into the engine; raises when it can't."""

    async def remove_lora(self, lora_id: int) -> bool:
        """Forget an adapter that no request uses."""


@dataclass(slots=True, kw_only=True)
class _Adapter(Generic[Request]):
    lora_name: str
    path: Path
    request: Request
    lora_int_id: int
    state: AdapterState = AdapterState.ON_DISK
    reason: str | None = None
    residency: Residency = Residency.DISK
    moved: bool = True
    """Whether it may be elsewhere than it was when the engine was last asked."""
    leases: int = 0
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the engine adds or removes it."""

    def is_draining(self) -> bool:
        """Whether it goes with its last request; asked again after each await."""
        return self.state is AdapterState.DRAINING

    def is_on_disk(self) -> bool:
        """Whether it is yet to be added; asked again after each await."""
        return self.state is AdapterState.ON_DISK

    def waits_for_a_slot(self) -> bool:
        """Whether a request uses it that has it in no slot yet, as far as is known."""
        return self.leases > 0 and self.residency is not Residency.GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterStatus:
    """An adapter's state, why it failed, and where it is."""

    state: AdapterState
    reason: str | None
    residency: Residency


@dataclass(frozen=True, slots=True, kw_only=True)
class TableStatus:
    """The map's revision, and the adapters by lora_name that are not simply on the disk.

    Once `settled_revision` is the map's, all of it has been applied, and whatever of it is not told
    of is on the disk: of thousands, few are elsewhere. `held` is how many adapters the engine had
    in its memory when it was last asked: more than are here with a residency other than the disk
    would be some that it did not let go of.
    """

    revision: int
    settled_revision: int
    adapters: dict[str, AdapterStatus]
    held: int


class AdapterTable(Generic[Request]):
    """The engine's adapters.

    `lora_requests` is vLLM's own dictionary: an adapter is there only after add_lora has
    succeeded, because asking vLLM to generate with a missing one kills the engine for everybody.
    At most `max_cpu_loras` adapters are read in ahead of their first request.
    """

    def __init__(
        self,
        engine: LoraEngine[Request],
        *,
        lora_requests: MutableMapping[str, Request],
        make_request: Callable[[str, int, Path], Request],
        max_cpu_loras: int,
    ) -> None:
        self._engine = engine
        self._lora_requests = lora_requests
        self._make_request = make_request
        self._max_cpu_loras = max_cpu_loras
        self._adapters: dict[str, _Adapter[Request]] = {}
        self._revision = 0
        self._settled_revision = 0
        self._next_id = 1
        self._started = False
        self._applying = asyncio.Lock()
        self._forgetting: set[asyncio.Task[None]] = set()
        self._removed = False
        self._held = 0

    def status(self) -> TableStatus:
        """What is applied now, and where the adapters were when the engine was last asked."""
        adapters = {
            name: AdapterStatus(state=each.state, reason=each.reason, residency=each.residency)
            for name, each in self._adapters.items()
            if not each.is_on_disk()
        }
        return TableStatus(
            revision=self._revision,
            settled_revision=self._settled_revision,
            adapters=adapters,
            held=self._held,
        )

    def may_have_moved(self) -> bool:
        """Whether adapters may be elsewhere in the engine than they were when it was last asked.

        They move when one is added or removed, or used by a request while it is in no slot.
        """
        return self._removed or any(
            each.moved or each.waits_for_a_slot() for each in self._adapters.values()
        )

    def begin_looking(self) -> None:
        """The engine is being asked: what moves from now on may not be in its answer."""
        self._removed = False
        for adapter in self._adapters.values():
            adapter.moved = False

    def note_held(self, slots: Collection[int], cached: Collection[int]) -> None:
        """Take in the lora_int_ids that the engine has in its slots, and in the CPU cache."""
        for adapter in self._adapters.values():
            if not adapter.moved:
                adapter.residency = _residency(adapter.lora_int_id, slots, cached)
                self._note_eviction(adapter)
        self._held = len({*slots, *cached})

    def _note_eviction(self, adapter: _Adapter[Request]) -> None:
        """An idle adapter that fell out of the CPU cache is added anew before its next request.

        vLLM itself would read its files inside a step, and die if it can't.
        """
        gone = adapter.residency is Residency.DISK and adapter.state is AdapterState.LOADED
        if gone and adapter.leases == 0:
            adapter.state = AdapterState.ON_DISK
            self._lora_requests.pop(adapter.lora_name, None)

    async def apply(self, lora_map: LoraMap, folder: Path) -> None:
        """Bring the engine to a map; one adapter's failure never stops the others.

        A map older than the applied one is ignored: companions may start in any order.
        """
        async with self._applying:
            if lora_map.revision >= self._revision:
                self._revision = lora_map.revision
                await self._retire(set(self._adapters) - {e.lora_name for e in lora_map.adapters})
                for entry in lora_map.adapters:
                    await self._admit(entry, folder)
                self._started = True
                self._settled_revision = lora_map.revision

    def named(self, name: str) -> str:
        """The lora_name that a client means: itself, or an adapter's id for what serves of it.

        That is the newest content that the engine has, not one that it is yet to add or has
        refused while an earlier one serves. Raises UnknownAdapterError, which tells of no other
        adapter.
        """
        if name in self._adapters:
            return name
        contents = [
            each
            # The newest was registered last.
            for each in reversed(self._adapters.values())
            if each.lora_name.startswith(f"{name}@") and not each.is_draining()
        ]
        if not contents:
            raise UnknownAdapterError(f"There is no adapter '{name}'.")
        return min(contents, key=lambda each: _PREFERENCE.index(each.state)).lora_name

    @asynccontextmanager
    async def lease(self, lora_name: str) -> AsyncIterator[None]:
        """Hold an adapter in the engine for one request.

        Raises UnknownAdapterError when it is not served, or leaving, or could not be added.
        """
        adapter = self._adapters.get(lora_name)
        if adapter is None or adapter.is_draining():
            raise UnknownAdapterError(f"The engine has no adapter '{lora_name}'.")
        adapter.leases += 1
        try:
            if adapter.is_on_disk():
                await self._add(adapter)
            if lora_name not in self._lora_requests:
                reason = adapter.reason or "it is being removed"
                raise UnknownAdapterError(f"The adapter '{lora_name}' is not served: {reason}")
            yield
        finally:
            # A request that came and went between two looks may have brought it into a slot.
            adapter.moved |= adapter.waits_for_a_slot()
            adapter.leases -= 1
            if adapter.leases == 0 and adapter.is_draining():
                self._forget_soon(adapter)

    async def _admit(self, entry: LoraMapEntry, folder: Path) -> None:
        adapter = self._adapters.get(entry.lora_name)
        if adapter is None:
            adapter = self._register(entry, folder)
        elif adapter.is_draining():
            # The same lora_name is the same content: what is still in use may stay.
            loaded = entry.lora_name in self._lora_requests
            adapter.state = AdapterState.LOADED if loaded else AdapterState.ON_DISK
        elif adapter.state is AdapterState.FAILED and adapter.path.is_dir():
            adapter.state, adapter.reason = AdapterState.ON_DISK, None
        else:
            return
        if adapter.is_on_disk() and self._may_read_ahead():
            await self._add(adapter)

    def _may_read_ahead(self) -> bool:
        """Whether to add an arriving adapter before its first request: at the start only some.

        An adapter that arrives later is added at once, so that its upload learns of a refusal;
        an engine that starts anew with thousands must not read them all, then or at the next map.
        """
        return self._started or len(self._lora_requests) < self._max_cpu_loras

    def _register(self, entry: LoraMapEntry, folder: Path) -> _Adapter[Request]:
        path = (folder / entry.folder).resolve()
        adapter = _Adapter(
            lora_name=entry.lora_name,
            path=path,
            request=self._make_request(entry.lora_name, self._next_id, path),
            lora_int_id=self._next_id,
        )
        self._next_id += 1
        self._adapters[entry.lora_name] = adapter
        if not path.is_dir():
            # vLLM would take the missing folder for a hub's repository.
            adapter.state, adapter.reason = AdapterState.FAILED, "its folder is missing"
        return adapter

    async def _add(self, adapter: _Adapter[Request]) -> None:
        async with adapter.changing:
            if not adapter.is_on_disk():
                return
            name = adapter.lora_name
            try:
                await self._engine.add_lora(adapter.request)
            except Exception as error:
                adapter.moved = True
                log.exception("adapter.refused lora_name=%s", name)
                if adapter.is_on_disk():
                    adapter.state, adapter.reason = AdapterState.FAILED, str(error)
                return
            if adapter.is_on_disk():
                adapter.state, adapter.residency = AdapterState.LOADED, Residency.GPU
                adapter.moved = True
                self._lora_requests[name] = adapter.request
                log.info("adapter.loaded lora_name=%s", name)

    async def _retire(self, names: set[str]) -> None:
        leaving = [self._adapters[name] for name in sorted(names)]
        for adapter in leaving:
            adapter.state = AdapterState.DRAINING
        for adapter in leaving:
            if adapter.leases == 0:
                await self._forget(adapter)

    def _forget_soon(self, adapter: _Adapter[Request]) -> None:
        """Forget in a task of its own: the request that ends may be cancelled at any await."""
        task = asyncio.create_task(self._forget(adapter))
        self._forgetting.add(task)
        task.add_done_callback(self._forgetting.discard)

    async def _forget(self, adapter: _Adapter[Request]) -> None:
        """Take an adapter out of the engine, if it is draining and nobody uses it."""
        name = adapter.lora_name
        async with adapter.changing:
            if adapter.leases or not self._is_leaving(adapter):
                return
            self._lora_requests.pop(name, None)
            try:
                await self._engine.remove_lora(adapter.lora_int_id)
            except Exception:
                # It is served no more, and the other adapters must not wait for it.
                log.exception("adapter.not_removed lora_name=%s", name)
            # A map may have admitted it again meanwhile.
            if self._is_leaving(adapter):
                del self._adapters[name]
                self._removed = True
                log.info("adapter.removed lora_name=%s", name)

    def _is_leaving(self, adapter: _Adapter[Request]) -> bool:
        return adapter.is_draining() and self._adapters.get(adapter.lora_name) is adapter


def _residency(lora_int_id: int, slots: Collection[int], cached: Collection[int]) -> Residency:
    if lora_int_id in slots:
        return Residency.GPU
    return Residency.CPU if lora_int_id in cached else Residency.DISK
