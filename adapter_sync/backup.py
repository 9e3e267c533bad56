"""A back-up of an installation in a folder, made while it serves, and the way back.

registry.db     the registry, an SQLite file whatever database it is kept in
manifest.json   the blobs that it names, with their sizes
secret.key      of the data folder
blobs/          the blobs themselves, if asked for
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from adapter_sync.blobs import FolderBlobStore, has_digest
from adapter_sync.companion_folder import link_or_copy
from adapter_sync.errors import ConfigurationError
from adapter_sync.installation import adopt_blobs
from adapter_sync.registry import Registry
from adapter_sync.secret_key import SECRET_KEY_FILE
from adapter_sync.settings import Settings
from adapter_sync.staging import blobs_lock, staged_file, try_lock

REGISTRY_FILE = "registry.db"
MANIFEST_FILE = "manifest.json"
BLOBS_FOLDER = "blobs"
FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Backed:
    """What a back-up holds, and the digests of the blobs that are lost already."""

    blobs: int
    size_bytes: int
    missing: tuple[str, ...]


def back_up(registry: Registry, settings: Settings, folder: Path, *, with_blobs: bool) -> Backed:
    """Write a back-up of one moment; the folder appears when all of it is on the disk.

    Raises ConfigurationError when the folder has something in it.
    """
    folder = folder.absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigurationError(f"{folder} is there already: name a new folder for the back-up.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as name:
        made = Path(name) / "backup"
        made.mkdir(mode=0o700)
        registry.copy_to(made / REGISTRY_FILE)
        with _opened(made / REGISTRY_FILE) as copy:
            named = copy.named_blobs()
        # SQLite's own, which are empty once it is closed, and the locks beside it.
        for file in made.glob(f"{REGISTRY_FILE}?*"):
            file.unlink()
        blobs = FolderBlobStore(settings.blobs_folder)
        sizes: dict[str, int] = {}
        missing: list[str] = []
        for digest in sorted(named):
            try:
                # A blob deleted since the copy is in the trash.
                file = blobs.find(digest)
                sizes[digest] = file.stat().st_size
                if with_blobs:
                    link = made / BLOBS_FOLDER / digest[:2] / digest
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link_or_copy(file, link)
            except FileNotFoundError:
                missing.append(digest)
        secret = settings.lora_data_dir / SECRET_KEY_FILE
        if secret.is_file():
            shutil.copy2(secret, made / SECRET_KEY_FILE)
        _write_manifest(made, sizes)
        for path in sorted(made.rglob("*")):
            _sync(path)
        _sync(made)
        made.rename(folder)
    _sync(folder.parent)
    return Backed(blobs=len(sizes), size_bytes=sum(sizes.values()), missing=tuple(missing))


def restore(registry: Registry, settings: Settings, folder: Path, *, force: bool) -> Backed:
    """Put a back-up in the place of what the installation has.

    All is checked before anything is changed. What a restore that was killed leaves doesn't start:
    restore again.

    Raises ConfigurationError while the installation is being served, for a folder that is no
    back-up, and, unless forced, for a registry that is not empty or a blob that is nowhere.
    """
    sizes = _read_manifest(folder)
    with _not_served(settings), _writable_copy(folder, settings.staging_folder) as file:
        if not force and not registry.is_empty():
            raise ConfigurationError(
                f"The registry {registry.place} is not empty. With --force it is replaced: what "
                "it has and the back-up does not is lost."
            )
        with _opened(file) as copy:
            named = copy.named_blobs()
        blobs = FolderBlobStore(settings.blobs_folder)
        backed = FolderBlobStore(folder / BLOBS_FOLDER)
        given = {digest for digest in named if _has_whole(backed, digest)}
        missing = sorted(digest for digest in named - given if not _has_whole(blobs, digest))
        if missing and not force:
            raise ConfigurationError(
                f"{len(missing)} of {len(named)} blobs are neither in the back-up nor whole in "
                f"{settings.blobs_folder}: {', '.join(missing)}. Put them into "
                f"{folder / BLOBS_FOLDER}, or use --force: their adapters will fail."
            )
        with blobs_lock(settings.staging_folder):
            for digest in sorted(given):
                with staged_file(settings.staging_folder / "uploads") as staged:
                    shutil.copyfile(backed.find(digest), staged)
                    blobs.add(staged, digest)
        if (folder / SECRET_KEY_FILE).is_file():
            _replace(folder / SECRET_KEY_FILE, settings.lora_data_dir / SECRET_KEY_FILE)
        registry.replace_by(file)
        adopt_blobs(registry, settings.blobs_folder, settings.staging_folder)
    size_bytes = sum(sizes.get(digest, 0) for digest in named.difference(missing))
    return Backed(blobs=len(named) - len(missing), size_bytes=size_bytes, missing=tuple(missing))


@contextmanager
def _not_served(settings: Settings) -> Iterator[None]:
    """Hold the locks of whoever serves. Raises ConfigurationError."""
    with ExitStack() as held:
        for path in (settings.serve_lock, settings.adapter_sync_lock):
            lock = try_lock(path)
            if lock is None:
                raise ConfigurationError(
                    f"LORA_DATA_DIR {settings.lora_data_dir} is being served: stop it first."
                )
            held.enter_context(lock)
        yield


@contextmanager
def _writable_copy(folder: Path, staging: Path) -> Iterator[Path]:
    """A copy of the back-up's registry: opening it may upgrade its schema."""
    with tempfile.TemporaryDirectory(dir=staging) as name:
        file = Path(name) / REGISTRY_FILE
        shutil.copyfile(folder / REGISTRY_FILE, file)
        yield file


def _opened(file: Path) -> closing[Registry]:
    return closing(Registry.open(f"sqlite:///{file}"))


def _has_whole(blobs: FolderBlobStore, digest: str) -> bool:
    try:
        return has_digest(blobs.find(digest), digest)
    except FileNotFoundError:
        return False


def _write_manifest(folder: Path, sizes: Mapping[str, int]) -> None:
    blobs = [{"digest": digest, "size": size} for digest, size in sizes.items()]
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = {"format": FORMAT, "made_at": made_at, "blobs": blobs}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1) + "\n")


def _read_manifest(folder: Path) -> dict[str, int]:
    """The size of each blob. Raises ConfigurationError."""
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text())
        if manifest["format"] != FORMAT:
            raise ConfigurationError(f"{folder} is a back-up of a newer release: use that one.")
        return {blob["digest"]: blob["size"] for blob in manifest["blobs"]}
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{folder} is no back-up: {error}") from error


def _replace(source: Path, target: Path) -> None:
    new = target.with_name(f".{target.name}.new")
    shutil.copy2(source, new)
    _sync(new)
    new.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
