"""Registries and blob stores that belong together, and some that don't."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from adapter_sync.blobs import FolderBlobStore
from adapter_sync.errors import ConfigurationError
from adapter_sync.installation import adopt_blobs, check_installation
from adapter_sync.registry import Registry


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with closing(Registry.open(f"sqlite:///{tmp_path / 'registry.db'}")) as opened:
        yield opened


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Registry]:
    with closing(Registry.open(f"sqlite:///{tmp_path / 'other.db'}")) as opened:
        yield opened


def add_blob(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"weights")
    FolderBlobStore(folder).add(tmp_path / "file", "ab" * 32)


def test_a_new_installation_gets_one_id_and_keeps_it(
    registry: Registry, folder: Path, tmp_path: Path
) -> None:
    check_installation(registry, folder, tmp_path / "staging")
    known = registry.installation_id()
    assert known is not None
    assert (folder / "installation.id").read_text().strip() == known
    check_installation(registry, folder, tmp_path / "staging")
    assert registry.installation_id() == known


def test_another_registry_is_refused_and_nothing_is_removed(
    registry: Registry, other: Registry, folder: Path, tmp_path: Path
) -> None:
    check_installation(registry, folder, tmp_path / "staging")
    add_blob(folder, tmp_path)
    with pytest.raises(ConfigurationError, match=r"other\.db.*LORA_REGISTRY_URL.*adopt-blobs"):
        check_installation(other, folder, tmp_path / "staging")
    assert list(FolderBlobStore(folder).digests()) == ["ab" * 32]
    assert other.installation_id() is None


def test_registries_of_two_installations_are_told_apart(
    registry: Registry, other: Registry, folder: Path, tmp_path: Path
) -> None:
    check_installation(registry, folder, tmp_path / "staging")
    check_installation(other, tmp_path / "blobs-of-other", tmp_path / "staging")
    with pytest.raises(ConfigurationError, match="their ids are"):
        check_installation(other, folder, tmp_path / "staging")


def test_an_empty_registry_beside_blobs_from_before_ids_is_refused(
    registry: Registry, folder: Path, tmp_path: Path
) -> None:
    add_blob(folder, tmp_path)
    with pytest.raises(ConfigurationError, match="names 0 blobs"):
        check_installation(registry, folder, tmp_path / "staging")


def test_a_start_that_died_between_the_two_writes_is_finished(
    registry: Registry, folder: Path, tmp_path: Path
) -> None:
    known = registry.ensure_installation_id("a" * 32)
    check_installation(registry, folder, tmp_path / "staging")
    assert (folder / "installation.id").read_text().strip() == known


def test_adopted_blobs_are_accepted(
    registry: Registry, other: Registry, folder: Path, tmp_path: Path
) -> None:
    check_installation(registry, folder, tmp_path / "staging")
    add_blob(folder, tmp_path)
    adopt_blobs(other, folder, tmp_path / "staging")
    check_installation(other, folder, tmp_path / "staging")
    with pytest.raises(ConfigurationError):
        check_installation(registry, folder, tmp_path / "staging")
