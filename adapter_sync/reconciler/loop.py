"""When passes run: at once after a change in the registry, now and then without one.

One thread per base model, so that one whose Triton hangs holds up no other.
"""

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from adapter_sync.base_model_loader import BaseModelLoader
from adapter_sync.base_models import base_model_folders, read_base_model
from adapter_sync.blobs import BlobStore
from adapter_sync.companion_folder import CompanionFolder, base_models_with_adapters
from adapter_sync.engine_status import EngineStatus
from adapter_sync.errors import (
    ConfigurationError,
    LoraServerError,
    TransientError,
    TritonUnavailableError,
)
from adapter_sync.node import ThisNode
from adapter_sync.reconciler.apply import BaseModelReconciler
from adapter_sync.record import BaseModel
from adapter_sync.registry import Registry, Watch
from adapter_sync.triton_control import TritonControl

log = structlog.get_logger()

CHANGE_PERIOD_S = 0.25
"""How often the registry is asked whether anything changed when nothing tells of a change."""
WAITING_PERIOD_S = 0.25
RESYNC_PERIOD_S = 5.0
BACKOFF_FIRST_S = 0.5
BACKOFF_LAST_S = 10.0
STOP_PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """Triton's model repository, the staging folder beside it, and where models' files are."""

    repository: Path
    staging: Path
    models: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class _Worker:
    """The thread of one base model, and how to end it."""

    reconciler: BaseModelReconciler
    thread: threading.Thread
    stopping: threading.Event


def run_reconcilers(
    *,
    node: ThisNode,
    registry: Registry,
    blobs: BlobStore,
    folders: Folders,
    control: TritonControl,
    loader: BaseModelLoader | None,
    stopping: threading.Event,
) -> None:
    """Find the base models and keep those with adapters reconciled until `stopping` is set.

    The node is announced with every look at the base models, which is its heartbeat. Without a
    `loader` Triton finds base models that come and go by itself.
    """

    def start(name: str) -> _Worker:
        folder = CompanionFolder(repository=repository, base_model=name, staging=folders.staging)
        folder.remove_leftovers()
        reconciler = BaseModelReconciler(
            name,
            node_id=node.id,
            registry=registry,
            blobs=blobs,
            folder=folder,
            control=control,
        )
        return _start_worker(name, reconciler, registry)

    repository = folders.repository
    workers: dict[str, _Worker] = {}
    while not stopping.is_set():
        try:
            if loader is not None:
                _load_base_models(loader, registry, repository)
            base_models = _register_base_models(registry, repository, folders.models, node.id)
            registry.announce_node(node.announcement(base_models, _engines(workers)))
        except Exception:
            log.exception("base_models.look_failed")
        else:
            _stop_unneeded(workers, repository, base_models)
            for base in base_models:
                if base.takes_adapters and base.name not in workers:
                    workers[base.name] = start(base.name)
        stopping.wait(RESYNC_PERIOD_S)
    _stop_all(workers)


def _engines(workers: Mapping[str, _Worker]) -> dict[str, EngineStatus]:
    engines = {name: worker.reconciler.engine for name, worker in workers.items()}
    return {name: engine for name, engine in engines.items() if engine is not None}


def _start_worker(name: str, reconciler: BaseModelReconciler, registry: Registry) -> _Worker:
    stopping = threading.Event()
    thread = threading.Thread(
        target=_reconcile,
        args=(name, reconciler, registry, stopping),
        name=name,
        # One that waits for Triton must not hold up the end: a pass may break off anywhere.
        daemon=True,
    )
    thread.start()
    return _Worker(reconciler=reconciler, thread=thread, stopping=stopping)


def _stop_unneeded(
    workers: dict[str, _Worker], repository: Path, base_models: Sequence[BaseModel]
) -> None:
    """End the workers of base models that are gone, or they would make the companions anew.

    The same for those that take no adapters any more; one that can't be read keeps its worker.
    """
    without_adapters = {base.name for base in base_models if not base.takes_adapters}
    for name, worker in list(workers.items()):
        if not (repository / name).is_dir() or name in without_adapters:
            worker.stopping.set()
        if worker.stopping.is_set() and not worker.thread.is_alive():
            del workers[name]


def _stop_all(workers: dict[str, _Worker]) -> None:
    for worker in workers.values():
        worker.stopping.set()
    deadline = time.monotonic() + STOP_PATIENCE_S
    for worker in workers.values():
        worker.thread.join(max(0, deadline - time.monotonic()))


def _load_base_models(loader: BaseModelLoader, registry: Registry, repository: Path) -> None:
    """Have Triton take in those that came, and drop those that the registry alone still knows."""
    names = [base.name for base in registry.base_models()]
    gone = [name for name in names if not (repository / name).is_dir()]
    # A Triton that is away has nothing loaded, and loads all that is there when it starts.
    with contextlib.suppress(TritonUnavailableError):
        loader.look(base_model_folders(repository), gone, base_models_with_adapters(repository))


def _register_base_models(
    registry: Registry, repository: Path, models_dir: Path, node_id: str
) -> list[BaseModel]:
    """Those of this repository; one that is in none any more leaves the registry."""
    base_models = []
    for folder in base_model_folders(repository):
        try:
            base = read_base_model(folder, models_dir=models_dir)
            registry.put_base_model(base)
        except ConfigurationError as error:
            log.warning("base_model.unreadable", base_model=folder.name, error=str(error))
            continue
        base_models.append(base)
    for known in registry.base_models():
        is_here = (repository / known.name).is_dir()
        if not is_here and known.name not in _elsewhere(registry, node_id):
            registry.remove_base_model(known.name)
            log.info("base_model.removed", base_model=known.name)
    return base_models


def _elsewhere(registry: Registry, node_id: str) -> set[str]:
    """The base models that other nodes tell of, lost ones left out."""
    now = datetime.now(UTC)
    others = [each for each in registry.nodes() if each.id != node_id and not each.is_lost(now)]
    return {base.name for node in others for base in node.base_models}


def _reconcile(
    name: str, reconciler: BaseModelReconciler, registry: Registry, stopping: threading.Event
) -> None:
    backoff_s = BACKOFF_FIRST_S
    with contextlib.closing(registry.watch()) as watch:
        while not stopping.is_set():
            seen: int | None = None
            try:
                seen = registry.change_counter()
                result = reconciler.run_pass()
            except LoraServerError as error:
                log.warning("reconciliation.postponed", base_model=name, error=str(error))
                wait_s, backoff_s = backoff_s, min(backoff_s * 2, BACKOFF_LAST_S)
            except Exception:
                log.exception("reconciliation.failed", base_model=name)
                wait_s, backoff_s = backoff_s, min(backoff_s * 2, BACKOFF_LAST_S)
            else:
                backoff_s = BACKOFF_FIRST_S
                wait_s = WAITING_PERIOD_S if result.waiting else RESYNC_PERIOD_S
            _wait_for_change(registry, watch, seen, wait_s, stopping)


def _wait_for_change(
    registry: Registry, watch: Watch, seen: int | None, wait_s: float, stopping: threading.Event
) -> None:
    """Wait at most `wait_s`; all of it while the registry can't be asked."""
    deadline = time.monotonic() + wait_s
    while (left_s := deadline - time.monotonic()) > 0 and not stopping.is_set():
        with contextlib.suppress(SQLAlchemyError, TransientError):
            if seen is not None and registry.change_counter() != seen:
                return
        watch.wait(min(left_s, CHANGE_PERIOD_S))
