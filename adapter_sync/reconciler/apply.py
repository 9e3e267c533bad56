"""One pass over one base model: look, plan, do, look again. Idempotent: any step may be repeated.

The order keeps the promise that nothing half-written is ever seen: files before the map, the map
before its commit, the commit before an adapter is called ready, and files go last.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from adapter_sync.blobs import BlobCorruptError, BlobStore
from adapter_sync.companion_folder import CompanionFolder
from adapter_sync.corrupt_blobs import BLOB_CORRUPT, MESSAGE
from adapter_sync.engine_status import EngineStatus
from adapter_sync.errors import TritonRefusedError, TritonUnavailableError
from adapter_sync.reconciler.desired import DesiredState
from adapter_sync.reconciler.plan import (
    Cleanup,
    Current,
    Served,
    Silence,
    StatusChange,
    cleanup,
    plan,
    residencies,
    status_changes,
)
from adapter_sync.record import AdapterStatus
from adapter_sync.registry import Registry
from adapter_sync.staging import blobs_lock
from adapter_sync.triton_control import TritonControl

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class PassResult:
    """Whether the pass changed anything, and whether another is needed soon."""

    changed: bool
    waiting: bool


class BaseModelReconciler:
    """Brings one base model's companion, and through it the engine, to the registry's state."""

    def __init__(
        self,
        base_model: str,
        *,
        node_id: str,
        registry: Registry,
        blobs: BlobStore,
        folder: CompanionFolder,
        control: TritonControl,
    ) -> None:
        self._base_model = base_model
        self._node_id = node_id
        self._registry = registry
        self._desired = DesiredState(registry, base_model)
        self._blobs = blobs
        self._folder = folder
        self._control = control
        self.engine: EngineStatus | None = None
        """What the companion told last; None when it told nothing."""

    def run_pass(self) -> PassResult:
        """Do what is to be done now.

        Raises TransientError when Triton can't be asked to, or refuses; everything that does not
        need Triton has been done then.
        """
        self._folder.create()
        self._desired.look()
        current = Current(
            lora_map=self._folder.lora_map(),
            folders=self._folder.adapter_folders(),
            engine=self._look(),
        )
        served = self._servable(current.folders)
        self.engine = None if isinstance(current.engine, Silence) else current.engine
        todo = plan(served, current)
        failed = [change for each in todo.install if (change := self._install(each)) is not None]
        if failed:
            return self._record(failed)
        if todo.lora_map is not None:
            self._folder.write_map(todo.lora_map)
        if todo.commit:
            self._control.commit(self._folder.name, todo.revision)
            log.info("lora_map.committed", base_model=self._base_model, revision=todo.revision)
        engine = self._status() if todo.commit else current.engine
        return self._finish(served, engine, changed=todo.commit or bool(todo.install))

    def _servable(self, folders: frozenset[str]) -> tuple[Served, ...]:
        """What is to be served, but for what first has to leave the engine and its folder.

        So it is with a content that comes again after its blob was corrupt: under the same name
        the engine would go on with what it has read.
        """
        return tuple(
            each
            for each in self._desired.served
            if each.status is not AdapterStatus.LOADING
            or each.lora_name not in folders
            or self._folder.is_of(each.lora_name, each.content, self._blobs)
        )

    def _finish(
        self, served: Sequence[Served], engine: EngineStatus | Silence, *, changed: bool
    ) -> PassResult:
        """Tell the registry what the engine says, and clear away what nothing uses."""
        self.engine = None if isinstance(engine, Silence) else engine
        if isinstance(engine, Silence):
            # Whatever runs there has nothing in its memory that could answer.
            self._registry.note_residencies(self._node_id, self._base_model, {})
            waiting = bool(self._desired.adapters)
            return PassResult(changed=changed, waiting=waiting)
        lora_map = self._folder.lora_map()
        recorded = self._record(status_changes(served, engine, lora_map.revision))
        held = residencies(self._desired.adapters, engine)
        self._registry.note_residencies(self._node_id, self._base_model, held)
        current = Current(lora_map=lora_map, folders=self._folder.adapter_folders(), engine=engine)
        rest = cleanup(self._desired.adapters.values(), current)
        self._clean(rest)
        unsettled = any(
            each.status is AdapterStatus.LOADING
            and engine.adapter(each.lora_name, lora_map.revision) is None
            for each in served
        )
        return PassResult(
            changed=changed or recorded.changed or bool(rest.folders or rest.forget),
            waiting=unsettled
            or recorded.waiting
            or rest.waiting
            or len(served) < len(self._desired.served),
        )

    def _look(self) -> EngineStatus | Silence:
        """What the companion tells; a Triton that is away or refuses holds up no work on files."""
        try:
            return self._status()
        except TritonUnavailableError:
            return Silence.NO_TRITON
        except TritonRefusedError as error:
            log.warning("companion.broken", base_model=self._base_model, error=str(error))
            return Silence.BROKEN

    def _status(self) -> EngineStatus | Silence:
        return self._control.status(self._folder.name) or Silence.NOT_LOADED

    def _install(self, served: Served) -> StatusChange | None:
        try:
            for blob in (served.content.config_blob, served.content.weights_blob):
                self._blobs.check(blob)
            self._folder.install(served.lora_name, served.content, self._blobs)
        except FileNotFoundError:
            log.exception("adapter.blob_missing", adapter_id=served.adapter_id)
            message = "The adapter's file is lost. Delete the adapter and upload it again."
            return _failed(served, "blob_missing", message)
        except BlobCorruptError as error:
            log.error("adapter.blob_corrupt", adapter_id=served.adapter_id, blob=error.digest)  # noqa: TRY400 - its place says nothing
            return _failed(served, BLOB_CORRUPT, MESSAGE)
        log.info("adapter.installed", adapter_id=served.adapter_id, lora_name=served.lora_name)
        return None

    def _record(self, changes: Sequence[StatusChange]) -> PassResult:
        for change in changes:
            recorded = self._registry.set_adapter_status(
                change.adapter_id,
                change.digest,
                change.status,
                error_code=change.error_code,
                error_message=change.error_message,
            )
            # Not so for an adapter that is being deleted since the pass began.
            if recorded:
                log.info(
                    "adapter.status_changed",
                    adapter_id=change.adapter_id,
                    status=change.status.value,
                )
        # An adapter that failed leaves the map in the next pass.
        failed = any(change.status is AdapterStatus.FAILED for change in changes)
        return PassResult(changed=bool(changes), waiting=failed)

    def _clean(self, rest: Cleanup) -> None:
        for lora_name in rest.folders:
            self._folder.remove(lora_name)
        for adapter_id in rest.forget:
            with blobs_lock(self._folder.staging):
                for digest in self._registry.forget_adapter(adapter_id):
                    self._blobs.remove(digest)
            self._desired.forget(adapter_id)
            log.info("adapter.deleted", adapter_id=adapter_id)


def _failed(served: Served, code: str, message: str) -> StatusChange:
    return StatusChange(
        adapter_id=served.adapter_id,
        digest=served.content.digest,
        status=AdapterStatus.FAILED,
        error_code=code,
        error_message=message,
    )
