"""Whether the registry and the blob store belong together; asked before anything is removed.

A start removes the blobs that the registry doesn't name, so one with the wrong registry would
remove them all.
"""

import os
import uuid
from pathlib import Path

from adapter_sync.blobs import FolderBlobStore
from adapter_sync.errors import ConfigurationError
from adapter_sync.registry import Registry
from adapter_sync.registry.patience import PATIENCE_S
from adapter_sync.settings import Settings
from adapter_sync.staging import blobs_lock
from adapter_sync.tiers import Tiers

_ID_FILE = "installation.id"


def open_installation(
    settings: Settings, tiers: Tiers, *, patience_s: float = PATIENCE_S
) -> Registry:
    """The registry, once it is known to belong to the blob store. Raises ConfigurationError."""
    registry = Registry.open(settings.registry_url, tiers, patience_s=patience_s)
    try:
        check_installation(registry, settings.blobs_folder, settings.staging_folder)
    except BaseException:
        registry.close()
        raise
    return registry


def check_installation(registry: Registry, blobs_folder: Path, staging: Path) -> None:
    """Make sure that both have one id; a new or an older installation is given one.

    Raises ConfigurationError when they don't belong together.
    """
    with blobs_lock(staging):
        ours, theirs = registry.installation_id(), _read_id(blobs_folder)
        if ours is not None and ours == theirs:
            return
        if ours is not None and theirs is not None:
            raise _mismatch(registry, blobs_folder, f"their ids are {ours} and {theirs}")
        named, kept = registry.named_blobs(), set(FolderBlobStore(blobs_folder).digests())
        if ours is None and theirs is None:
            # Before there were ids, leftovers of a killed upload were normal.
            belong = bool(named & kept) or not (named or kept)
        else:
            # A start that died between the two writes, or nothing that could be lost.
            belong = named == kept
        if not belong:
            found = (
                f"the registry names {len(named)} blobs and has {_words(ours)}, the folder holds "
                f"{len(kept)} and has {_words(theirs)}, and {len(named & kept)} are the same"
            )
            raise _mismatch(registry, blobs_folder, found)
        _write_id(blobs_folder, registry.ensure_installation_id(theirs or uuid.uuid4().hex))


def adopt_blobs(registry: Registry, blobs_folder: Path, staging: Path) -> str:
    """Make the blob store the registry's, whatever it was before, and return the id."""
    with blobs_lock(staging):
        installation_id = registry.ensure_installation_id(uuid.uuid4().hex)
        _write_id(blobs_folder, installation_id)
    return installation_id


def _mismatch(registry: Registry, folder: Path, found: str) -> ConfigurationError:
    return ConfigurationError(
        f"The registry {registry.place} and the blobs in {folder} don't belong together: {found}. "
        "Set LORA_REGISTRY_URL and LORA_DATA_DIR right, or put the right registry back with "
        "`loractl restore`. To use this registry with these blobs all the same, run "
        "`loractl adopt-blobs`; blobs that the registry doesn't name are then deleted after "
        "LORA_BLOB_TRASH_HOURS."
    )


def _words(installation_id: str | None) -> str:
    return "no id" if installation_id is None else f"the id {installation_id}"


def _read_id(folder: Path) -> str | None:
    try:
        return (folder / _ID_FILE).read_text().strip()
    except FileNotFoundError:
        return None


def _write_id(folder: Path, installation_id: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f"{_ID_FILE}.new"
    with new.open("w") as file:
        file.write(f"{installation_id}\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(folder / _ID_FILE)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
