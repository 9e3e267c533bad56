"""The adapter_sync process: one beside each Triton."""

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adapter_sync.blobs import FolderBlobStore
    from adapter_sync.registry import Registry
    from adapter_sync.settings import Settings
    from adapter_sync.triton_repository import GrpcRepository

_TRASH_PERIOD_S = 10.0
REGISTRY_LOOK_PERIOD_S = 2.0
"""How often the registry is asked whether it is still the one that was opened."""


def main(argv: Sequence[str] | None = None) -> int:
    """Reconcile until SIGTERM or SIGINT; 1 when another one has the data folder."""
    parser = argparse.ArgumentParser(
        prog="adapter_sync",
        description="Bring the registry's adapters into Triton's model repository. Settings come "
        "from the environment and .env: see the README.",
    )
    parser.add_argument(
        "--control",
        choices=["explicit", "poll"],
        default="explicit",
        help="Triton's --model-control-mode: `explicit` calls load, `poll` only writes and waits "
        "until Triton's own poll has taken a revision over (default: explicit)",
    )
    arguments = parser.parse_args(argv)
    return run(arguments.control)


def run(control: str) -> int:
    """Put the parts together and run them."""
    import structlog

    from adapter_sync.blobs import FolderBlobStore
    from adapter_sync.errors import LoraServerError
    from adapter_sync.installation import open_installation
    from adapter_sync.logs import configure_logs
    from adapter_sync.settings import load_settings
    from adapter_sync.staging import try_lock
    from adapter_sync.tiers import load_tiers

    configure_logs()
    try:
        settings = load_settings()
    except LoraServerError as error:
        print(f"adapter_sync: {error}", file=sys.stderr)
        return 1
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    lock = try_lock(settings.adapter_sync_lock)
    if lock is None:
        print("adapter_sync: another one runs on this data folder", file=sys.stderr)
        return 1
    url = f"{settings.triton_host}:{settings.triton_http_port}"
    blobs = FolderBlobStore(settings.blobs_folder)
    try:
        registry = open_installation(settings, load_tiers(settings.lora_tiers_file))
    except LoraServerError as error:
        print(f"adapter_sync: {error}", file=sys.stderr)
        return 1
    structlog.get_logger().info("adapter_sync.started", control=control, triton=url)
    try:
        return _reconcile(settings, registry, blobs, control, stopping)
    except LoraServerError as error:
        print(f"adapter_sync: {error}", file=sys.stderr)
        return 1
    finally:
        registry.close()
        lock.close()


def _reconcile(
    settings: "Settings",
    registry: "Registry",
    blobs: "FolderBlobStore",
    control: str,
    stopping: threading.Event,
) -> int:
    """Do all that adapter_sync is for until `stopping` is set; 1 when the registry was replaced."""
    from adapter_sync.base_model_loader import BaseModelLoader
    from adapter_sync.fetcher import Fetcher
    from adapter_sync.intake import Intake
    from adapter_sync.node import ThisNode
    from adapter_sync.reconciler import Folders, run_reconcilers
    from adapter_sync.secret_key import load_secret_key
    from adapter_sync.triton_control import ExplicitControl, PollControl
    from adapter_sync.triton_repository import GrpcRepository

    url = f"{settings.triton_host}:{settings.triton_http_port}"
    # What a process left that was killed on an adapter's way in: itself, or the gateway.
    intake = Intake(registry, blobs, settings.staging_folder)
    intake.remove_leftovers()
    intake.remove_unused_blobs()
    fetcher = Fetcher(
        registry=registry,
        intake=intake,
        folder=settings.staging_folder / "fetches",
        secret_key=load_secret_key(settings.lora_data_dir.resolve()),
        stopping=stopping,
    )
    fetching = threading.Thread(target=fetcher.run, name="fetcher", daemon=True)
    fetching.start()
    _start_blob_care(settings, registry, blobs, stopping)
    replaced = _watch_registry(registry, stopping)
    triton = GrpcRepository.of(settings)
    _start_guard(triton, settings.model_repository.resolve(), control, stopping)
    run_reconcilers(
        node=ThisNode.load(settings.lora_data_dir.resolve(), url),
        registry=registry,
        blobs=blobs,
        folders=Folders(
            repository=settings.model_repository.resolve(),
            staging=settings.staging_folder,
            models=settings.lora_models_dir.resolve(),
        ),
        control=(PollControl if control == "poll" else ExplicitControl)(
            url, headers=settings.triton_headers
        ),
        loader=None if control == "poll" else BaseModelLoader(triton),
        stopping=stopping,
    )
    fetching.join()
    return 1 if replaced.is_set() else 0


def _watch_registry(registry: "Registry", stopping: threading.Event) -> threading.Event:
    """Set `stopping`, and the event that comes back, when the registry's file is another one."""
    import structlog

    from adapter_sync.errors import RegistryReplacedError

    replaced = threading.Event()

    def watch() -> None:
        while not stopping.wait(REGISTRY_LOOK_PERIOD_S):
            try:
                registry.check_place()
            except RegistryReplacedError as error:
                structlog.get_logger().error("registry.replaced", error=str(error))
                replaced.set()
                stopping.set()

    threading.Thread(target=watch, name="registry-watch", daemon=True).start()
    return replaced


def _start_blob_care(
    settings: "Settings",
    registry: "Registry",
    blobs: "FolderBlobStore",
    stopping: threading.Event,
) -> None:
    """Empty the trash and check the blobs, each in threads of its own, until `stopping` is set."""
    from adapter_sync.scrub import Scrub

    arguments = (blobs, settings.lora_blob_trash_hours * 3600, stopping)
    threading.Thread(target=_empty_trash, args=arguments, name="trash", daemon=True).start()
    period_s = settings.lora_blob_scrub_hours * 3600
    Scrub(registry, blobs, settings.staging_folder, period_s=period_s, stopping=stopping).start()


def _empty_trash(blobs: "FolderBlobStore", grace_s: float, stopping: threading.Event) -> None:
    """Delete the removed blobs whose time is over, until `stopping` is set."""
    import structlog

    log = structlog.get_logger()
    while not stopping.wait(_TRASH_PERIOD_S):
        try:
            count = blobs.empty_trash(grace_s)
        except OSError as error:
            log.warning("blobs.trash_not_emptied", error=str(error))
            continue
        if count:
            log.info("blobs.trash_emptied", count=count)


def _start_guard(
    triton: "GrpcRepository", repository: Path, control: str, stopping: threading.Event
) -> None:
    """Restart the base models whose engines die, until `stopping` is set."""
    from adapter_sync.base_model_guard import BaseModelGuard
    from adapter_sync.base_model_restart import RestartedByLoading, RestartedByPolling
    from adapter_sync.base_models import base_model_folders

    watched = (
        RestartedByPolling(triton, repository, stopping=stopping)
        if control == "poll"
        else RestartedByLoading(triton, repository)
    )
    guard = BaseModelGuard(
        watched, lambda: [folder.name for folder in base_model_folders(repository)]
    )
    threading.Thread(target=guard.run, args=(stopping,), name="guard", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
