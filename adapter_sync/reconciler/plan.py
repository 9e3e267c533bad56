"""What is to be done, worked out from what is desired and what is there. Pure: no I/O, no clock."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from adapter_sync.engine_status import EngineAdapter, EngineStatus
from adapter_sync.lora_map import LoraMap, LoraMapEntry
from adapter_sync.record import (
    AdapterStatus,
    Content,
    DesiredAdapter,
    Residency,
    adapter_id_of,
    lora_name_of,
)

SERVED = frozenset({AdapterStatus.LOADING, AdapterStatus.READY})


class Silence(Enum):
    """Why a companion tells nothing."""

    NO_TRITON = auto()
    """Triton does not answer."""
    NOT_LOADED = auto()
    """Triton does not have the companion."""
    BROKEN = auto()
    """Triton has it and answers with an error, as it does when the companion's process died."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Current:
    """A base model's projection as it is: files and map on disk, and what its companion tells."""

    lora_map: LoraMap
    folders: frozenset[str]
    engine: EngineStatus | Silence


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One content of an adapter that the engine is to have, and the registry's word on it."""

    adapter_id: str
    entry: LoraMapEntry
    content: Content
    status: AdapterStatus

    @property
    def lora_name(self) -> str:
        """The content's identity inside the engine."""
        return self.entry.lora_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """First `install`, then `lora_map` (None: as it is), then the commit of `revision`."""

    install: tuple[Served, ...]
    lora_map: LoraMap | None
    commit: bool
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusChange:
    """A new status of one content of an adapter, as the engine reported it."""

    adapter_id: str
    digest: str
    status: AdapterStatus
    error_code: str | None = None
    error_message: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleanup:
    """What may go: nothing in the map or the engine refers to it any more.

    `folders` are lora_names, `forget` the ids of adapters.
    """

    folders: tuple[str, ...]
    forget: tuple[str, ...]
    waiting: bool


def in_order(adapters: Iterable[Sequence[Served]]) -> tuple[Served, ...]:
    """The contents of all adapters, sorted by lora_name."""
    served = (each for contents in adapters for each in contents)
    return tuple(sorted(served, key=lambda each: each.lora_name))


def plan(served: Sequence[Served], current: Current) -> Plan:
    """How to get from the current files and map to what is to be served, sorted by lora_name."""
    entries = tuple(each.entry for each in served)
    install = tuple(each for each in served if each.lora_name not in current.folders)
    newest = _newest_revision(current)
    # Files that had been lost are a change too: the engine may have failed to find them.
    differs = entries != current.lora_map.adapters or newest > current.lora_map.revision
    changed = differs or bool(install) or _needs_other_files(current)
    revision = newest + changed
    return Plan(
        install=install,
        lora_map=LoraMap(revision=revision, adapters=entries) if changed else None,
        commit=changed or _behind(current),
        revision=revision,
    )


def contents_served(adapter: DesiredAdapter) -> tuple[Served, ...]:
    """The contents of an adapter that the engine is to have, the newest first.

    The one that serves stays until a newer one does, so two while that is loading.
    """
    if adapter.status is AdapterStatus.DELETING:
        return ()
    newest = (_served(adapter, adapter.newest, adapter.status),) if adapter.status in SERVED else ()
    # Revisions of the same content are one to the engine.
    if adapter.serving is None or (newest and adapter.serving.digest == adapter.newest.digest):
        return newest
    return (*newest, _served(adapter, adapter.serving, AdapterStatus.READY))


def _served(adapter: DesiredAdapter, content: Content, status: AdapterStatus) -> Served:
    lora_name = lora_name_of(adapter.id, content.digest)
    return Served(
        adapter_id=adapter.id,
        entry=LoraMapEntry(
            lora_name=lora_name, folder=lora_name, rank=content.rank, name=adapter.name
        ),
        content=content,
        status=status,
    )


def status_changes(
    served: Sequence[Served], engine: EngineStatus, revision: int
) -> tuple[StatusChange, ...]:
    """What in the registry is not as the engine tells of the map of that revision."""
    found = (_status_change(each, engine.adapter(each.lora_name, revision)) for each in served)
    return tuple(change for change in found if change is not None)


def residencies(
    desired: Mapping[str, DesiredAdapter], engine: EngineStatus
) -> dict[str, Residency]:
    """Where in the engine each adapter's serving content is, by the adapter's id."""
    found = {}
    for lora_name, told in engine.adapters.items():
        adapter = desired.get(adapter_id_of(lora_name))
        if adapter is None or adapter.serving is None:
            continue
        if lora_name == lora_name_of(adapter.id, adapter.serving.digest):
            found[adapter.id] = Residency(told.residency)
    return found


def cleanup(desired: Iterable[DesiredAdapter], current: Current) -> Cleanup:
    """What is left of adapters that are served no more.

    Files stay while the engine may read them: until it has answered with the current map applied.
    """
    kept = {entry.lora_name for entry in current.lora_map.adapters}
    gone = [each.id for each in desired if each.status is AdapterStatus.DELETING]
    engine = current.engine
    if isinstance(engine, Silence) or engine.revision != current.lora_map.revision:
        unused = frozenset[str]()
    else:
        unused = current.folders - kept - set(engine.adapters)
    remaining = current.folders - unused
    # Also the names of earlier revisions, which may still be draining.
    in_use = {adapter_id_of(lora_name) for lora_name in remaining | kept}
    forget = tuple(each for each in gone if each not in in_use)
    return Cleanup(
        folders=tuple(sorted(unused)),
        forget=forget,
        waiting=bool(remaining - kept) or len(forget) < len(gone),
    )


def _newest_revision(current: Current) -> int:
    """The map's, unless it was lost: then on from what the engine has, or it would be ignored."""
    if isinstance(current.engine, Silence):
        return current.lora_map.revision
    told = (current.engine.companion_revision, current.engine.revision or 0)
    return max(current.lora_map.revision, *told)


def _needs_other_files(current: Current) -> bool:
    """Whether only a changed map helps: Triton does nothing when told to load the same files.

    So it is with a companion whose process has died, and with one that could not hand its map
    over to a base model that is there now.
    """
    engine = current.engine
    if isinstance(engine, Silence):
        return engine is Silence.BROKEN
    return (
        engine.revision is not None
        and engine.revision < current.lora_map.revision <= engine.companion_revision
    )


def _behind(current: Current) -> bool:
    """Whether Triton has an older map than the one on disk, as after a crash before the commit.

    A companion is loaded even without adapters: it also tells how its base model fares.
    """
    if isinstance(current.engine, Silence):
        return current.engine is Silence.NOT_LOADED
    return current.engine.companion_revision < current.lora_map.revision


def _status_change(served: Served, engine: EngineAdapter | None) -> StatusChange | None:
    if engine is None:
        return None
    if engine.state == "failed":
        return StatusChange(
            adapter_id=served.adapter_id,
            digest=served.content.digest,
            status=AdapterStatus.FAILED,
            error_code="engine_refused",
            error_message=f"The engine could not load the adapter: {engine.reason}",
        )
    if engine.state in ("loaded", "on_disk") and served.status is AdapterStatus.LOADING:
        return StatusChange(
            adapter_id=served.adapter_id,
            digest=served.content.digest,
            status=AdapterStatus.READY,
        )
    return None
