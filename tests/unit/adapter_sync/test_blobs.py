import hashlib
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import adapter_sync
from adapter_sync.blobs import BlobStore, FolderBlobStore

# Adds the file and dies where the rename would be.
KILLED_ADD = """
import os, pathlib, signal, sys
from adapter_sync.blobs import FolderBlobStore

pathlib.Path.rename = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)
FolderBlobStore(pathlib.Path(sys.argv[1])).add(pathlib.Path(sys.argv[2]), sys.argv[3])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "blobs"


@pytest.fixture
def blobs(folder: Path) -> BlobStore:
    return FolderBlobStore(folder)


def staged(tmp_path: Path, content: bytes, name: str = "upload") -> tuple[Path, str]:
    file = tmp_path / name
    file.write_bytes(content)
    return file, hashlib.sha256(content).hexdigest()


def test_a_blob_is_moved_in_and_can_be_read_and_linked(
    blobs: BlobStore, folder: Path, tmp_path: Path
) -> None:
    file, digest = staged(tmp_path, b"weights")
    inode = file.stat().st_ino
    blobs.add(file, digest)
    blob = blobs.path(digest)
    assert blob == folder / digest[:2] / digest
    assert (blob.read_bytes(), blob.stat().st_ino) == (b"weights", inode)
    assert not file.exists()
    (tmp_path / "link").hardlink_to(blob)
    assert (tmp_path / "link").stat().st_ino == inode


def test_a_blob_can_t_be_written_through_its_permissions(blobs: BlobStore, tmp_path: Path) -> None:
    file, digest = staged(tmp_path, b"weights")
    file.chmod(0o660)
    blobs.add(file, digest)
    assert stat.S_IMODE(blobs.path(digest).stat().st_mode) == 0o440


def test_adding_a_blob_that_is_there_changes_nothing(blobs: BlobStore, tmp_path: Path) -> None:
    first, digest = staged(tmp_path, b"weights", "first")
    second, _ = staged(tmp_path, b"weights", "second")
    blobs.add(first, digest)
    before = blobs.path(digest).stat()
    blobs.add(second, digest)
    assert blobs.path(digest).stat() == before
    assert second.read_bytes() == b"weights"


def test_a_missing_blob_is_said_and_may_be_removed(blobs: BlobStore) -> None:
    with pytest.raises(FileNotFoundError, match="0" * 64):
        blobs.path("0" * 64)
    blobs.remove("0" * 64)
    assert list(blobs.digests()) == []


def test_a_removed_blob_is_gone_but_its_links_are_not(blobs: BlobStore, tmp_path: Path) -> None:
    file, digest = staged(tmp_path, b"weights")
    blobs.add(file, digest)
    (tmp_path / "link").hardlink_to(blobs.path(digest))
    blobs.remove(digest)
    assert list(blobs.digests()) == []
    assert (tmp_path / "link").read_bytes() == b"weights"


def test_digests_are_sorted(blobs: BlobStore, tmp_path: Path) -> None:
    digests = []
    for number in range(8):
        file, digest = staged(tmp_path, bytes([number]))
        blobs.add(file, digest)
        digests.append(digest)
    assert list(blobs.digests()) == sorted(digests)


@pytest.mark.parametrize(
    "digest", ["", "abc", "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n", "../" * 21 + "x", "g" * 64]
)
def test_a_digest_of_another_form_is_refused(
    blobs: BlobStore, folder: Path, tmp_path: Path, digest: str
) -> None:
    file, _ = staged(tmp_path, b"weights")
    with pytest.raises(ValueError, match="SHA-256"):
        blobs.add(file, digest)
    with pytest.raises(ValueError, match="SHA-256"):
        blobs.path(digest)
    with pytest.raises(ValueError, match="SHA-256"):
        blobs.remove(digest)
    assert file.exists()
    assert not folder.exists()


def test_an_add_killed_before_its_rename_leaves_no_blob(
    blobs: BlobStore, folder: Path, tmp_path: Path
) -> None:
    file, digest = staged(tmp_path, b"weights")
    process = subprocess.run(
        [sys.executable, "-c", KILLED_ADD, str(folder), str(file), digest],
        cwd=Path(adapter_sync.__file__).parents[1],
        check=False,
    )
    assert process.returncode == -signal.SIGKILL
    assert list(blobs.digests()) == []
    with pytest.raises(FileNotFoundError):
        blobs.path(digest)
    blobs.add(file, digest)
    assert list(blobs.digests()) == [digest]


def test_what_is_no_blob_is_passed_over(blobs: BlobStore, folder: Path, tmp_path: Path) -> None:
    file, digest = staged(tmp_path, b"weights")
    blobs.add(file, digest)
    home = folder / digest[:2]
    (home / f"{digest}.part").write_bytes(b"half")
    (home / digest[:40]).write_bytes(b"half")
    (home / (digest[:2] + "0" * 62)).mkdir()
    (folder / "zz").mkdir()
    (folder / "zz" / ("1" * 64)).write_bytes(b"in another's folder")
    (folder / "README").write_text("not a blob")
    assert list(blobs.digests()) == [digest]
    with pytest.raises(FileNotFoundError):
        blobs.path(digest[:2] + "0" * 62)


def test_a_staged_file_that_is_missing_is_an_error_and_no_blob(
    blobs: BlobStore, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError):
        blobs.add(tmp_path / "nothing", "0" * 64)
    assert list(blobs.digests()) == []


def test_the_bytes_are_on_the_disk_before_the_name_is(
    blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, digest = staged(tmp_path, b"weights")
    steps: list[str] = []
    sync, rename = os.fsync, Path.rename

    def noted_sync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        steps.append("folder" if is_folder else "file")
        sync(descriptor)

    def noted_rename(self: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    blobs.add(file, digest)
    assert steps == ["file", "rename", "folder", "folder", "folder"]


def test_a_removed_blob_is_taken_back_by_whoever_needs_it(blobs: BlobStore, tmp_path: Path) -> None:
    file, digest = staged(tmp_path, b"weights")
    blobs.add(file, digest)
    blobs.remove(digest)
    assert blobs.path(digest).read_bytes() == b"weights"
    assert list(blobs.digests()) == [digest]


def test_the_trash_keeps_a_blob_for_its_time(folder: Path, tmp_path: Path) -> None:
    blobs = FolderBlobStore(folder)
    file, digest = staged(tmp_path, b"weights")
    os.utime(file, (0, 0))
    blobs.add(file, digest)
    blobs.remove(digest)
    assert blobs.empty_trash(3600) == 0
    assert blobs.empty_trash(0) == 1
    with pytest.raises(FileNotFoundError):
        blobs.path(digest)


def test_adding_again_heals_a_blob_that_was_changed_in_place(
    blobs: BlobStore, folder: Path, tmp_path: Path
) -> None:
    first, digest = staged(tmp_path, b"weights", "first")
    blobs.add(first, digest)
    blobs.path(digest).chmod(0o600)
    blobs.path(digest).write_bytes(b"weighty")
    second, _ = staged(tmp_path, b"weights", "second")
    blobs.add(second, digest)
    assert blobs.path(digest).read_bytes() == b"weights"
    assert (folder / "trash" / f"{digest}.corrupt").read_bytes() == b"weighty"
