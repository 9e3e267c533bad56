"""Has a running Triton load the base models that come into its repository, and drop what leaves it.

For explicit model control; with poll mode Triton does both by itself. An engine takes a minute or
more to start: each is loaded in a thread of its own, and once; one that failed is
`base_model_guard`'s.
"""

import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import structlog

from adapter_sync.base_models import ENGINE_ARGUMENTS_FILE
from adapter_sync.errors import LoraServerError, TritonUnavailableError
from adapter_sync.lora_map import adapter_files_name, companion_name
from adapter_sync.triton_repository import ModelState, TritonRepository

log = structlog.get_logger()

_BUSY = frozenset({"READY", "LOADING", "UNLOADING"})
_FAILED = "UNAVAILABLE"
UNLOADED = "unloaded"
"""Triton's reason for one that is unavailable because it was asked to be."""

Tried = Mapping[str, int]
"""The st_mtime_ns of the 1/model.json that was loaded last, by base model."""


def to_load(
    found: Mapping[str, int], states: Mapping[str, ModelState], tried: Tried | None
) -> list[str]:
    """Which of the base models `found`, as in Tried, to load now; sorted. Pure.

    One that failed is loaded again when its model.json has changed. `tried` is None at first:
    what Triton has failed to load by then it tried at its own start.
    """
    loads = []
    for name, changed_ns in sorted(found.items()):
        told = states.get(name, ModelState(state="", reason=""))
        failed_at_start = tried is None and told.state == _FAILED and told.reason != UNLOADED
        was_tried = tried is not None and tried.get(name) == changed_ns
        if not (told.state in _BUSY or failed_at_start or was_tried):
            loads.append(name)
    return loads


def unneeded(
    found: Collection[str], gone: Collection[str], with_adapters: Collection[str]
) -> list[str]:
    """What is not to be loaded while only the base models `found` are there; sorted. Pure.

    Base models that are `gone`, and what belongs to them or to others that are not there but still
    have adapters: a Triton that starts anew loads what was unloaded.
    """
    missing = {*gone, *with_adapters} - {*found}
    theirs = (name(each) for name in (companion_name, adapter_files_name) for each in missing)
    return sorted({*missing, *theirs} - {*found})


class BaseModelLoader:
    """Called with every look at the repository, by one thread."""

    def __init__(self, triton: TritonRepository) -> None:
        self._triton = triton
        self._tried: Tried | None = None

    def look(
        self, folders: Sequence[Path], gone: Collection[str], with_adapters: Collection[str]
    ) -> None:
        """Load what is new among the base models' folders, unload those `gone`.

        `with_adapters` are the base models, there or not, whose adapters are.

        Raises TritonUnavailableError, TritonRefusedError.
        """
        found = {each.name: (each / ENGINE_ARGUMENTS_FILE).stat().st_mtime_ns for each in folders}
        loads = to_load(found, self._triton.states(), self._tried)
        self._tried = found
        for name in loads:
            # Not to be waited for: an engine that starts must not hold up the end.
            threading.Thread(target=self._load, args=(name,), daemon=True).start()
        # Triton's list leaves out what has lost its folder, so each is asked for by its name.
        for name in unneeded(found, gone, with_adapters):
            if self._triton.is_ready(name):
                self._triton.unload(name)
                log.info("base_model.unloaded", model=name)

    def _load(self, name: str) -> None:
        log.info("base_model.loading", base_model=name)
        try:
            self._triton.load(name)
        except TritonUnavailableError as error:
            # A Triton that starts anew loads all that it finds.
            log.warning("base_model.load_broken_off", base_model=name, error=str(error))
        except LoraServerError as error:
            log.error("base_model.failed", base_model=name, error=str(error))  # noqa: TRY400 - Triton's words are all there is
        else:
            log.info("base_model.loaded", base_model=name)
