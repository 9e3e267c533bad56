"""The way in: what an accepted upload leaves behind, and that a refused one leaves nothing."""

import contextlib
import hashlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from adapter_sync.blobs import FolderBlobStore
from adapter_sync.errors import (
    AdapterExistsError,
    AdapterLimitError,
    AdaptersNotSupportedError,
    AdapterTooLargeError,
    BaseModelNotFoundError,
    InvalidAdapterError,
    InvalidNameError,
    LoraServerError,
    PreconditionFailedError,
    RevisionNotFoundError,
)
from adapter_sync.intake import Intake
from adapter_sync.record import (
    CREATE_ONLY,
    Adapter,
    AdapterStatus,
    BaseModel,
    Overwrite,
    Tenant,
)
from adapter_sync.registry import Registry
from adapter_sync.sources.files import AdapterFiles
from adapter_sync.staging import blobs_lock
from adapter_sync.tiers import load_tiers

REPLACE = Overwrite(replace=True)
SHARED = load_tiers().named("shared")
MODULE = "model.layers.0.mlp.up_proj"
HOLD_A_STAGING_FILE = """
import sys, pathlib
from adapter_sync.staging import staged_file
with staged_file(pathlib.Path(sys.argv[1]) / "uploads") as path:
    print(path, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry.open(f"sqlite:///{tmp_path / 'registry.db'}")
    shapes = {f"{MODULE}.weight": (8, 16)}
    registry.put_base_model(
        BaseModel(name="tiny", max_lora_rank=8, max_model_len=128, tensor_shapes=shapes)
    )
    yield registry
    registry.close()


@pytest.fixture
def tenant(registry: Registry) -> Tenant:
    return registry.create_tenant("acme", "shared")


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    return tmp_path / "staging"


@pytest.fixture
def blobs(tmp_path: Path) -> FolderBlobStore:
    return FolderBlobStore(tmp_path / "blobs")


@pytest.fixture
def intake(registry: Registry, blobs: FolderBlobStore, staging: Path) -> Intake:
    return Intake(registry, blobs, staging)


def adapter_bytes(value: float = 1.0, rank: int = 4) -> bytes:
    """An adapter_model.safetensors for the base model "tiny"."""
    return save(
        {
            f"base_model.model.{MODULE}.lora_A.weight": np.full((rank, 16), value, np.float32),
            f"base_model.model.{MODULE}.lora_B.weight": np.full((8, rank), value, np.float32),
        }
    )


def upload(
    intake: Intake,
    tenant: Tenant,
    *,
    name: str = "finance",
    base_model: str = "tiny",
    data: bytes | None = None,
    config: bytes | None = None,
    size_bytes: int | None = None,
    overwrite: Overwrite = CREATE_ONLY,
) -> Adapter:
    """What the gateway does with an upload; `size_bytes` makes the file longer, with a hole."""
    data = adapter_bytes() if data is None else data
    with intake.staging_file() as staged:
        staged.write_bytes(data)
        if size_bytes is not None:
            with staged.open("r+b") as file:
                file.truncate(size_bytes)
        return intake.accept(
            tenant=tenant,
            name=name,
            base_model=base_model,
            files=AdapterFiles(
                weights=staged, weights_sha256=hashlib.sha256(data).hexdigest(), config=config
            ),
            overwrite=overwrite,
        )


def staged_files(staging: Path) -> list[Path]:
    return list((staging / "uploads").glob("*"))


def test_an_accepted_upload_is_an_adapter_that_is_loading(
    intake: Intake, registry: Registry, blobs: FolderBlobStore, tenant: Tenant, staging: Path
) -> None:
    data = adapter_bytes()

    adapter = upload(intake, tenant, data=data)

    revision = adapter.revision
    served = blobs.path(revision.config_blob).read_bytes()
    assert registry.adapter(tenant.id, adapter.id) == adapter
    assert adapter.status is AdapterStatus.LOADING
    assert blobs.path(revision.weights_blob).read_bytes() == data
    assert revision.weights_blob == hashlib.sha256(data).hexdigest()
    assert revision.config_blob == hashlib.sha256(served).hexdigest()
    both = revision.config_blob + revision.weights_blob
    assert revision.digest == hashlib.sha256(both.encode()).hexdigest()
    assert json.loads(served)["target_modules"] == ["up_proj"]
    assert (revision.size_bytes, revision.rank, revision.lora_alpha) == (len(data), 4, 4)
    assert revision.target_modules == ("up_proj",)
    assert "assumed equal to the rank" in revision.warnings[0]
    assert staged_files(staging) == []


def test_the_same_content_of_two_tenants_is_kept_once(
    intake: Intake, registry: Registry, blobs: FolderBlobStore, tenant: Tenant, staging: Path
) -> None:
    other = registry.create_tenant("other", "shared")

    first, second = upload(intake, tenant), upload(intake, other)

    assert first.revision.digest == second.revision.digest
    assert first.lora_name != second.lora_name
    assert len(list(blobs.digests())) == 2
    assert staged_files(staging) == []


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"name": "../../x"}, InvalidNameError),
        ({"base_model": "huge"}, BaseModelNotFoundError),
        ({"size_bytes": SHARED.max_adapter_bytes + 1}, AdapterTooLargeError),
        ({"data": b"no adapter"}, InvalidAdapterError),
        ({"data": adapter_bytes(rank=9)}, InvalidAdapterError),
        ({"data": adapter_bytes(float("nan"))}, InvalidAdapterError),
        ({"config": b"{}"}, InvalidAdapterError),
    ],
)
def test_a_refused_upload_leaves_nothing_behind(
    intake: Intake,
    registry: Registry,
    blobs: FolderBlobStore,
    tenant: Tenant,
    staging: Path,
    change: dict[str, object],
    error: type[LoraServerError],
) -> None:
    with pytest.raises(error):
        upload(intake, tenant, **change)  # type: ignore[arg-type]

    assert registry.adapters() == []
    assert list(blobs.digests()) == []
    assert staged_files(staging) == []


def test_an_upload_of_exactly_the_tiers_limit_is_not_too_large(
    intake: Intake, tenant: Tenant
) -> None:
    """It is refused for another reason: its last bytes belong to no tensor."""
    with pytest.raises(InvalidAdapterError, match="bytes that belong to no tensor"):
        upload(intake, tenant, size_bytes=SHARED.max_adapter_bytes)


def test_a_name_that_is_taken_leaves_the_first_adapter_as_it_was(
    intake: Intake, registry: Registry, blobs: FolderBlobStore, tenant: Tenant, staging: Path
) -> None:
    first = upload(intake, tenant)
    before = list(blobs.digests())

    with pytest.raises(AdapterExistsError):
        upload(intake, tenant, data=adapter_bytes(2.0))
    with pytest.raises(AdapterExistsError):
        upload(intake, tenant)

    assert registry.adapters() == [first]
    assert list(blobs.digests()) == before
    assert staged_files(staging) == []


def test_one_adapter_too_many_leaves_nothing_behind(
    intake: Intake, registry: Registry, blobs: FolderBlobStore, tenant: Tenant, staging: Path
) -> None:
    for number in range(SHARED.max_adapters):
        upload(intake, tenant, name=f"number-{number}")
    before = list(blobs.digests())

    with pytest.raises(AdapterLimitError):
        upload(intake, tenant, name="one-more", data=adapter_bytes(2.0))

    assert len(registry.adapters()) == SHARED.max_adapters
    assert list(blobs.digests()) == before
    assert staged_files(staging) == []


def test_a_base_model_that_takes_no_adapters_gets_none(
    registry: Registry,
    intake: Intake,
    tenant: Tenant,
    blobs: FolderBlobStore,
    staging: Path,
) -> None:
    embedder = BaseModel(
        name="tiny", max_lora_rank=8, max_model_len=128, tensor_shapes={}, takes_adapters=False
    )
    registry.put_base_model(embedder)

    with pytest.raises(AdaptersNotSupportedError, match="that take adapters are: none yet"):
        upload(intake, tenant)

    assert registry.adapters() == []
    assert list(blobs.digests()) == []
    assert staged_files(staging) == []


class FullDisk(FolderBlobStore):
    """A blob store with room for one more blob."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._room = 1

    def add(self, file: Path, digest: str) -> bool:
        """Raises OSError for the second one."""
        if not self._room:
            raise OSError(28, "No space left on device")
        self._room -= 1
        return super().add(file, digest)


def test_a_disk_that_is_full_half_way_leaves_nothing_behind(
    registry: Registry, tmp_path: Path, tenant: Tenant, staging: Path
) -> None:
    blobs = FullDisk(tmp_path / "blobs")

    with pytest.raises(OSError, match="No space left"):
        upload(Intake(registry, blobs, staging), tenant)

    assert registry.adapters() == []
    assert list(blobs.digests()) == []
    assert staged_files(staging) == []


def test_a_staging_file_is_there_until_its_owner_has_done(intake: Intake) -> None:
    with intake.staging_file() as staged:
        staged.write_bytes(b"half of an upload")
        assert intake.remove_leftovers() == 0
        assert staged.read_bytes() == b"half of an upload"

    assert not staged.exists()


def test_leftovers_of_a_killed_process_go_and_files_of_living_ones_stay(
    intake: Intake, staging: Path
) -> None:
    owners = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD_A_STAGING_FILE, str(staging)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    killed, living = owners
    try:
        paths = [Path(owner.stdout.readline().strip()) for owner in owners if owner.stdout]
        killed.send_signal(signal.SIGKILL)
        killed.wait(timeout=30)

        assert sorted(staged_files(staging)) == sorted(paths)
        assert intake.remove_leftovers() == 1
        assert staged_files(staging) == [paths[1]]
    finally:
        killed.kill()
        living.communicate(timeout=30)
    assert staged_files(staging) == []


def test_a_file_is_never_lost_to_somebody_who_clears_leftovers_all_the_time(
    intake: Intake, staging: Path
) -> None:
    stopping = threading.Event()

    def clear() -> None:
        while not stopping.is_set():
            intake.remove_leftovers()

    thread = threading.Thread(target=clear)
    thread.start()
    try:
        for _ in range(2000):
            with intake.staging_file() as staged:
                assert staged.exists()
    finally:
        stopping.set()
        thread.join(timeout=30)
    assert staged_files(staging) == []


def test_no_file_stays_open(intake: Intake, tenant: Tenant, staging: Path) -> None:
    upload(intake, tenant, name="first")
    before = sorted(Path("/proc/self/fd").iterdir())

    upload(intake, tenant, name="second")
    (staging / "uploads" / "leftover").touch()
    assert intake.remove_leftovers() == 1

    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_a_bad_name_is_said_before_the_file_is_read(intake: Intake, tenant: Tenant) -> None:
    with pytest.raises(InvalidNameError):
        upload(intake, tenant, name="../../x", data=b"no adapter")


def test_leftovers_can_be_looked_for_before_there_was_any_upload(intake: Intake) -> None:
    assert intake.remove_leftovers() == 0


def test_blobs_that_a_killed_process_left_behind_are_removed(
    intake: Intake, blobs: FolderBlobStore, tenant: Tenant, tmp_path: Path
) -> None:
    adapter = upload(intake, tenant)
    orphan = tmp_path / "orphan"
    orphan.write_bytes(b"x")
    blobs.add(orphan, hashlib.sha256(b"x").hexdigest())

    assert intake.remove_unused_blobs() == 1

    kept = {adapter.revision.config_blob, adapter.revision.weights_blob}
    assert set(blobs.digests()) == kept


def test_an_upload_waits_while_somebody_else_changes_the_blobs(
    intake: Intake, registry: Registry, tenant: Tenant, staging: Path
) -> None:
    thread = threading.Thread(target=upload, args=(intake, tenant))
    with blobs_lock(staging):
        thread.start()
        thread.join(timeout=0.5)
        assert thread.is_alive()
        assert registry.adapters() == []
    thread.join(timeout=30)

    assert len(registry.adapters()) == 1


def test_deleting_and_uploading_the_same_content_at_once_never_loses_a_blob(
    intake: Intake, registry: Registry, blobs: FolderBlobStore, tenant: Tenant, staging: Path
) -> None:
    def delete(adapter: Adapter) -> None:
        """What the reconciler does."""
        registry.delete_adapter(tenant.id, adapter.id)
        with blobs_lock(staging):
            for digest in registry.forget_adapter(adapter.id):
                blobs.remove(digest)

    adapter = upload(intake, tenant, name="name-0")
    for number in range(1, 20):
        thread = threading.Thread(target=delete, args=(adapter,))
        thread.start()
        adapter = upload(intake, tenant, name=f"name-{number}")
        thread.join(timeout=30)

        assert registry.adapters() == [adapter]
        assert blobs.path(adapter.revision.weights_blob).is_file()
        assert blobs.path(adapter.revision.config_blob).is_file()


def blobs_of(registry: Registry, adapter: Adapter) -> set[str]:
    kept = [each.revision for each in registry.revisions(adapter.tenant_id, adapter.id)]
    return {each.config_blob for each in kept} | {each.weights_blob for each in kept}


def test_a_replacement_keeps_the_blobs_of_what_it_replaces(
    intake: Intake, registry: Registry, blobs: FolderBlobStore, tenant: Tenant, staging: Path
) -> None:
    first = upload(intake, tenant)
    second = upload(intake, tenant, data=adapter_bytes(2.0), overwrite=REPLACE)
    assert (second.id, second.revision.number) == (first.id, 2)
    assert set(blobs.digests()) == blobs_of(registry, second)
    assert blobs.path(first.revision.weights_blob).is_file()
    assert staged_files(staging) == []


def test_the_same_content_again_is_loaded_anew_where_its_blob_was_corrupt(
    intake: Intake, registry: Registry, blobs: FolderBlobStore, tenant: Tenant
) -> None:
    first = upload(intake, tenant)
    registry.set_adapter_status(first.id, first.revision.digest, AdapterStatus.READY)
    weights = blobs.path(first.revision.weights_blob)
    weights.chmod(0o600)
    weights.write_bytes(bytes(weights.stat().st_size))
    again = upload(intake, tenant, overwrite=REPLACE)
    assert again.revision.digest == first.revision.digest
    assert again.status is AdapterStatus.LOADING
    assert again.serving is None
    blobs.read(first.revision.weights_blob)


def test_revisions_that_are_too_old_go_with_the_blobs_that_only_they_used(
    intake: Intake, registry: Registry, blobs: FolderBlobStore, tenant: Tenant
) -> None:
    neighbour = upload(intake, tenant, name="neighbour", data=adapter_bytes(1.0))
    for value in range(7):
        adapter = upload(intake, tenant, data=adapter_bytes(float(value)), overwrite=REPLACE)
    kept = registry.revisions(tenant.id, adapter.id)
    assert [each.revision.number for each in kept] == [7, 6, 5]
    assert set(blobs.digests()) == blobs_of(registry, adapter) | blobs_of(registry, neighbour)


def test_a_refused_replacement_leaves_everything_as_it_was(
    intake: Intake, registry: Registry, blobs: FolderBlobStore, tenant: Tenant, staging: Path
) -> None:
    first = upload(intake, tenant)
    before = list(blobs.digests())
    outdated = Overwrite(replace=True, if_match=frozenset({'"outdated"'}))
    for data in (adapter_bytes(2.0), adapter_bytes()):
        with pytest.raises(PreconditionFailedError):
            upload(intake, tenant, data=data, overwrite=outdated)
    with pytest.raises(InvalidAdapterError):
        upload(intake, tenant, data=b"no adapter", overwrite=REPLACE)
    assert registry.adapters() == [first]
    assert list(blobs.digests()) == before
    assert staged_files(staging) == []


def test_going_back_prunes_too_and_waits_for_whoever_changes_the_blobs(
    intake: Intake, registry: Registry, blobs: FolderBlobStore, tenant: Tenant, staging: Path
) -> None:
    for value in (1.0, 2.0, 3.0):
        adapter = upload(intake, tenant, data=adapter_bytes(value), overwrite=REPLACE)
    thread = threading.Thread(target=intake.roll_back, args=(tenant, adapter.id, 2))
    with blobs_lock(staging):
        thread.start()
        thread.join(timeout=0.5)
        assert registry.adapters() == [adapter]
    thread.join(timeout=30)
    kept = registry.revisions(tenant.id, adapter.id)
    assert [each.revision.number for each in kept] == [4, 3, 2]
    assert kept[0].revision.weights_blob == kept[2].revision.weights_blob
    assert set(blobs.digests()) == blobs_of(registry, adapter)


def test_going_back_while_others_replace_never_loses_a_blob(
    intake: Intake, registry: Registry, blobs: FolderBlobStore, tenant: Tenant
) -> None:
    adapter = upload(intake, tenant)
    upload(intake, tenant, data=adapter_bytes(2.0), overwrite=REPLACE)

    def go_back() -> None:
        for _ in range(10):
            kept = registry.revisions(tenant.id, adapter.id)
            with contextlib.suppress(RevisionNotFoundError):
                intake.roll_back(tenant, adapter.id, kept[-1].revision.number)

    thread = threading.Thread(target=go_back)
    thread.start()
    for value in range(10):
        upload(intake, tenant, data=adapter_bytes(float(value)), overwrite=REPLACE)
    thread.join(timeout=30)
    assert set(blobs.digests()) == blobs_of(registry, adapter)
