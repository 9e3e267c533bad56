"""What adapter_sync writes into Triton's model repository: the lora map and the adapters' files.

Everything is made in the staging folder and renamed in, because Triton may look at any moment and
takes a half-written file for a broken model. So staging and repository share a file system.
"""

import filecmp
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from adapter_sync.blobs import BlobStore, has_digest
from adapter_sync.errors import ConfigurationError
from adapter_sync.lora_map import (
    COMPANION_SUFFIX,
    EMPTY_LORA_MAP,
    LORA_MAP_FILE,
    VERSION_FOLDER,
    LoraMap,
    LoraMapError,
    adapter_files_folder,
    companion_name,
    dump_lora_map,
    read_lora_map,
)
from adapter_sync.record import Content
from adapter_sync.sources.files import CONFIG_FILE, WEIGHTS_FILE

log = structlog.get_logger()

TEMPLATES = Path(__file__).parent / "triton_models"


class CompanionFolder:
    """`<base>-adapters/1` and `<base>-adapter-files/1`: written by adapter_sync alone."""

    def __init__(self, *, repository: Path, base_model: str, staging: Path) -> None:
        self.name = companion_name(base_model)
        self._repository = repository
        self._folder = repository / self.name / VERSION_FOLDER
        self._files = adapter_files_folder(repository, base_model)
        self.staging = staging
        # A folder of its own: one base model's name may begin with another's companion's.
        self._stages = staging / self.name
        self._known: tuple[tuple[int, int], LoraMap] | None = None

    def create(self) -> None:
        """Put the two Triton models themselves in place, and what of them is not as it should be.

        Raises ConfigurationError when staging and repository are on different file systems.
        """
        check_same_file_system(self.staging, self._repository)
        for template, folder in (("adapter_files", self._files), ("companion", self._folder)):
            if not folder.is_dir():
                with self._stage() as stage:
                    shutil.copytree(TEMPLATES / template, stage / "model")
                    (stage / "model").rename(folder.parent)
            self._mend(TEMPLATES / template, folder.parent)
        # An earlier version kept the adapters beside their map.
        for name in _folders(self._folder):
            (self._folder / name).rename(self._files / name)

    def _mend(self, template: Path, model: Path) -> None:
        """Write anew what an earlier version, or somebody else, has left of a model's own files.

        A config.pbtxt that does not begin as ours do is the operator's. The copies have the
        templates' times, so that files which nobody wrote to are not read.
        """
        for file in (each for each in template.rglob("*") if each.is_file()):
            found = model / file.relative_to(template)
            if found.is_file() and (filecmp.cmp(file, found) or _is_operators(found, file)):
                continue
            log.warning("triton_model.mended", file=str(found))
            with self._stage() as stage:
                shutil.copy2(file, stage / file.name)
                if found.is_dir():
                    shutil.rmtree(found)
                (stage / file.name).replace(found)

    def lora_map(self) -> LoraMap:
        """The map that lies there, the empty one when there is none.

        A file that is no map is removed: it is written here alone, and can be written anew. One
        that is still the file read or written last is not read again.
        """
        try:
            return self._lora_map()
        except LoraMapError:
            log.exception("lora_map.unreadable", companion=self.name)
            (self._folder / LORA_MAP_FILE).unlink(missing_ok=True)
            return EMPTY_LORA_MAP

    def _lora_map(self) -> LoraMap:
        try:
            file = _identity(self._folder / LORA_MAP_FILE)
        except FileNotFoundError:
            return EMPTY_LORA_MAP
        if self._known is None or self._known[0] != file:
            self._known = (file, read_lora_map(self._folder))
        return self._known[1]

    def adapter_folders(self) -> frozenset[str]:
        """The adapters whose files are there, by lora_name."""
        return _folders(self._files) if self._files.is_dir() else frozenset()

    def install(self, lora_name: str, content: Content, blobs: BlobStore) -> None:
        """Link an adapter's two files in; nothing else ever reaches the engine's disk.

        Raises FileNotFoundError when a blob is missing.
        """
        with self._stage() as stage:
            folder = stage / lora_name
            folder.mkdir()
            link_or_copy(blobs.path(content.config_blob), folder / CONFIG_FILE)
            link_or_copy(blobs.path(content.weights_blob), folder / WEIGHTS_FILE)
            folder.rename(self._files / lora_name)

    def is_of(self, lora_name: str, content: Content, blobs: BlobStore) -> bool:
        """Whether the adapter's files are the blobs, by link or, where there are none, by content.

        They are not when a corrupt blob was replaced since they were linked.
        """
        folder = self._files / lora_name
        try:
            return all(
                file.samefile(blobs.path(digest)) or has_digest(file, digest)
                for file, digest in (
                    (folder / CONFIG_FILE, content.config_blob),
                    (folder / WEIGHTS_FILE, content.weights_blob),
                )
            )
        except FileNotFoundError:
            return False

    def remove(self, lora_name: str) -> None:
        """Take an adapter's files away."""
        with self._stage() as stage:
            (self._files / lora_name).rename(stage / lora_name)

    def write_map(self, lora_map: LoraMap) -> None:
        """Put a map in place of the earlier one."""
        with self._stage() as stage:
            new = stage / LORA_MAP_FILE
            with new.open("w", encoding="utf-8") as file:
                file.write(dump_lora_map(lora_map))
                file.flush()
                os.fsync(file.fileno())
            known = _identity(new), lora_map
            new.replace(self._folder / LORA_MAP_FILE)
            self._known = known

    @contextmanager
    def _stage(self) -> Iterator[Path]:
        """A folder below staging, removed at the end whatever is still in it."""
        self._stages.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._stages) as name:
            yield Path(name)

    def remove_leftovers(self) -> None:
        """Clear what a killed adapter_sync left in staging: only one runs per repository."""
        shutil.rmtree(self._stages, ignore_errors=True)


def _folders(folder: Path) -> frozenset[str]:
    with os.scandir(folder) as entries:
        return frozenset(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))


def _is_operators(config: Path, template: Path) -> bool:
    heading = template.read_bytes().partition(b"\n")[0]
    return template.suffix == ".pbtxt" and not config.read_bytes().startswith(heading)


def _identity(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_ino, status.st_mtime_ns


def base_models_with_adapters(repository: Path) -> list[str]:
    """The base models, there or gone, whose lora map was written into the repository; sorted."""
    return sorted(
        file.parents[1].name.removesuffix(COMPANION_SUFFIX)
        for file in repository.glob(f"[!.]*{COMPANION_SUFFIX}/{VERSION_FOLDER}/{LORA_MAP_FILE}")
    )


def check_same_file_system(staging: Path, repository: Path) -> None:
    """Raise ConfigurationError when files can't be renamed from one to the other."""
    staging.mkdir(parents=True, exist_ok=True)
    if staging.stat().st_dev != repository.stat().st_dev:
        raise ConfigurationError(
            f"{staging} and {repository} are on different file systems, so files can't be renamed "
            "in. Set LORA_DATA_DIR and MODEL_REPOSITORY to folders of the same one."
        )


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
