"""A companion's folder: real files, renamed in whole."""

import os
from pathlib import Path

import pytest

from adapter_sync.blobs import FolderBlobStore
from adapter_sync.companion_folder import TEMPLATES, CompanionFolder, link_or_copy
from adapter_sync.errors import ConfigurationError
from adapter_sync.lora_map import EMPTY_LORA_MAP, LORA_MAP_FILE, LoraMap, LoraMapEntry
from adapter_sync.record import Content

CONFIG, WEIGHTS = "c0" * 32, "be" * 32
NAME = "adp_1@00000000"
CONTENT = Content(digest="d0" * 32, config_blob=CONFIG, weights_blob=WEIGHTS, rank=8)
MAP = LoraMap(revision=3, adapters=(LoraMapEntry(lora_name=NAME, folder=NAME, rank=8),))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    return folder


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    return tmp_path / "data" / "staging"


@pytest.fixture
def blobs(tmp_path: Path) -> FolderBlobStore:
    store = FolderBlobStore(tmp_path / "data" / "blobs")
    for digest, content in ((CONFIG, b"{}"), (WEIGHTS, b"weights")):
        (tmp_path / "upload").write_bytes(content)
        store.add(tmp_path / "upload", digest)
    return store


@pytest.fixture
def folder(repository: Path, staging: Path) -> CompanionFolder:
    made = CompanionFolder(repository=repository, base_model="base", staging=staging)
    made.create()
    return made


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_the_companion_is_put_in_place_once(
    folder: CompanionFolder, repository: Path, staging: Path
) -> None:
    model = repository / "base-adapters"
    for template, made in (
        ("companion", model),
        ("adapter_files", repository / "base-adapter-files"),
    ):
        assert files(made) == ["1/__pycache__", "1/model.py", "config.pbtxt"]
        for name in files(made):
            assert (made / name).read_bytes() == (TEMPLATES / template / name).read_bytes()
    (model / "config.pbtxt").write_text("changed by the operator")
    before = (model / "config.pbtxt").stat().st_ctime_ns
    folder.create()
    assert (model / "config.pbtxt").stat().st_ctime_ns == before
    assert files(staging) == []


def test_a_new_companion_has_an_empty_map_and_no_adapters(folder: CompanionFolder) -> None:
    assert folder.lora_map() == EMPTY_LORA_MAP
    assert folder.adapter_folders() == frozenset()


def test_before_it_is_created_there_is_nothing(repository: Path, staging: Path) -> None:
    folder = CompanionFolder(repository=repository, base_model="base", staging=staging)
    assert folder.lora_map() == EMPTY_LORA_MAP
    assert folder.adapter_folders() == frozenset()


def test_an_installed_adapter_is_two_files_that_share_the_blobs_bytes(
    folder: CompanionFolder, repository: Path, staging: Path, blobs: FolderBlobStore
) -> None:
    folder.install(NAME, CONTENT, blobs)
    adapter = repository / "base-adapter-files" / "1" / NAME
    assert files(adapter) == ["adapter_config.json", "adapter_model.safetensors"]
    assert (adapter / "adapter_config.json").samefile(blobs.path(CONFIG))
    assert (adapter / "adapter_model.safetensors").samefile(blobs.path(WEIGHTS))
    assert folder.adapter_folders() == {NAME}
    assert files(staging) == []


def test_an_adapter_whose_blob_is_missing_leaves_nothing(
    folder: CompanionFolder, staging: Path, blobs: FolderBlobStore
) -> None:
    blobs.path(WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError):
        folder.install(NAME, CONTENT, blobs)
    assert folder.adapter_folders() == frozenset()
    assert files(staging) == []


def test_a_removed_adapter_is_gone_and_its_blobs_stay(
    folder: CompanionFolder, staging: Path, blobs: FolderBlobStore
) -> None:
    folder.install(NAME, CONTENT, blobs)
    folder.remove(NAME)
    assert folder.adapter_folders() == frozenset()
    assert blobs.path(WEIGHTS).read_bytes() == b"weights"
    assert files(staging) == []


def test_a_written_map_is_read_again(folder: CompanionFolder, staging: Path) -> None:
    folder.write_map(MAP)
    assert folder.lora_map() == MAP
    newer = LoraMap(revision=4, adapters=())
    folder.write_map(newer)
    assert folder.lora_map() == newer
    assert files(staging) == []


def test_a_file_that_is_no_map_is_removed(folder: CompanionFolder, repository: Path) -> None:
    file = repository / "base-adapters" / "1" / LORA_MAP_FILE
    file.write_bytes(b"\0" * 36)
    assert folder.lora_map() == EMPTY_LORA_MAP
    assert not file.exists()


def test_only_folders_count_as_adapters(folder: CompanionFolder, repository: Path) -> None:
    version = repository / "base-adapter-files" / "1"
    (version / "stray").write_text("a file")
    (version / "link").symlink_to(repository)
    assert folder.adapter_folders() == frozenset()


def test_adapters_that_an_earlier_version_kept_beside_their_map_are_moved(
    folder: CompanionFolder, repository: Path, blobs: FolderBlobStore
) -> None:
    folder.install(NAME, CONTENT, blobs)
    folder.write_map(MAP)
    now = repository / "base-adapter-files" / "1" / NAME
    now.rename(repository / "base-adapters" / "1" / NAME)
    folder.create()
    assert folder.adapter_folders() == {NAME}
    assert files(now) == ["adapter_config.json", "adapter_model.safetensors"]
    assert files(repository / "base-adapters" / "1") == ["__pycache__", LORA_MAP_FILE, "model.py"]


def test_leftovers_of_this_companion_go_and_those_of_others_stay(
    repository: Path, staging: Path
) -> None:
    """One base model's name may begin with another's companion's."""
    plain = CompanionFolder(repository=repository, base_model="base", staging=staging)
    other = CompanionFolder(repository=repository, base_model="base-adapters-2", staging=staging)
    with plain._stage() as mine, other._stage() as theirs:
        (mine / "half").write_text("written")
        (theirs / "half").write_text("written")
        (staging / "uploads").mkdir()
        (staging / "uploads" / "file").write_text("an upload")
        plain.remove_leftovers()
        assert files(staging) == [
            f"base-adapters-2-adapters/{theirs.name}/half",
            "uploads/file",
        ]
    plain.remove_leftovers()


def test_files_are_copied_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(95, "Operation not supported", source, None, target)

    monkeypatch.setattr(os, "link", refuse)
    source = tmp_path / "source"
    source.write_bytes(b"weights")
    link_or_copy(source, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"weights"
    assert not (tmp_path / "target").samefile(source)


def test_a_staging_folder_on_another_file_system_is_refused(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = tmp_path / "elsewhere"
    real_stat = Path.stat

    def stat(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        found = real_stat(path, follow_symlinks=follow_symlinks)
        if path != staging:
            return found
        return os.stat_result([*found[:2], found.st_dev + 1, *found[3:10]])

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(ConfigurationError, match="LORA_DATA_DIR and MODEL_REPOSITORY"):
        CompanionFolder(repository=repository, base_model="base", staging=staging).create()
    assert list(repository.iterdir()) == []


@pytest.mark.parametrize("name", ["1/model.py", "config.pbtxt"])
@pytest.mark.parametrize(
    ("model", "template"),
    [("base-adapters", "companion"), ("base-adapter-files", "adapter_files")],
)
def test_a_models_own_file_that_is_broken_or_an_earlier_ones_is_written_anew(
    folder: CompanionFolder, repository: Path, model: str, template: str, name: str
) -> None:
    file, ours = repository / model / name, (TEMPLATES / template / name).read_bytes()
    file.write_bytes(ours.partition(b"\n")[0] + b"\nbroken")
    folder.create()
    assert file.read_bytes() == ours
    written = file.stat().st_ino
    folder.create()
    assert file.stat().st_ino == written
    file.unlink()
    folder.create()
    assert file.read_bytes() == ours


def test_a_folder_of_compiled_files_gives_way_to_the_plain_file(
    folder: CompanionFolder, repository: Path
) -> None:
    folder.create()
    cache = repository / "base-adapters" / "1" / "__pycache__"
    cache.unlink()
    cache.mkdir()
    (cache / "model.cpython-311.pyc").touch()
    folder.create()
    assert cache.is_file()
