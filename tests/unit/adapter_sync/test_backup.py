"""Back-ups of real installations, on both databases, and the way back."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import SecretStr

from adapter_sync.backup import BLOBS_FOLDER, REGISTRY_FILE, back_up, restore
from adapter_sync.blobs import FolderBlobStore
from adapter_sync.errors import ConfigurationError
from adapter_sync.installation import open_installation
from adapter_sync.node import ThisNode
from adapter_sync.record import Adapter, AliasTarget, BaseModel, Revision
from adapter_sync.registry import Registry
from adapter_sync.secret_key import load_secret_key
from adapter_sync.settings import Settings
from adapter_sync.staging import try_lock
from adapter_sync.tiers import load_tiers
from tests.integration.adapter_sync.node import sha256

DATABASES = ("sqlite", "postgresql")


@pytest.fixture(params=DATABASES)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return installation(request, tmp_path / "data", str(request.param))


@pytest.fixture(params=DATABASES)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """Another installation, of either kind."""
    if request.param == "sqlite":
        yield installation(request, tmp_path / "new", "sqlite")
        return
    server = request.getfixturevalue("postgresql")
    url = server.new_database()
    yield make_settings(tmp_path / "new", url)
    server.drop_database(url)


def installation(request: pytest.FixtureRequest, data: Path, database: str) -> Settings:
    url = request.getfixturevalue("postgresql_url") if database == "postgresql" else None
    return make_settings(data, url)


def make_settings(data: Path, url: str | None) -> Settings:
    return Settings(
        _env_file=None,  # type: ignore[call-arg]
        lora_data_dir=data,
        lora_registry_url=None if url is None else SecretStr(url),
    )


def opened(settings: Settings) -> closing[Registry]:
    return closing(open_installation(settings, load_tiers()))


def add_adapter(registry: Registry, settings: Settings, name: str) -> Adapter:
    blobs, digests = FolderBlobStore(settings.blobs_folder), []
    for content in (b"{}", f"weights of {name}".encode()):
        file = settings.lora_data_dir / f"{name}.part"
        file.write_bytes(content)
        blobs.add(file, sha256(content))
        file.unlink(missing_ok=True)
        digests.append(sha256(content))
    return registry.create_adapter(
        tenant=registry.tenant("acme"),
        name=name,
        base_model="tiny",
        revision=Revision(
            number=1,
            digest=sha256("".join(digests).encode()),
            config_blob=digests[0],
            weights_blob=digests[1],
            size_bytes=1,
            rank=4,
            lora_alpha=8.0,
            target_modules=("q_proj",),
            warnings=("a warning",),
        ),
    )


def fill(registry: Registry, settings: Settings) -> str:
    """A bit of everything; the tenant's key."""
    registry.put_base_model(
        BaseModel(name="tiny", max_lora_rank=8, max_model_len=64, tensor_shapes={"x": (1, 1)})
    )
    tenant = registry.create_tenant("acme", "dedicated")
    registry.put_alias(tenant.id, "latest", [AliasTarget(base_model="tiny", adapter_name=None)])
    add_adapter(registry, settings, "finance")
    registry.announce_node(ThisNode.load(settings.lora_data_dir, "here").announcement([], {}))
    load_secret_key(settings.lora_data_dir)
    return registry.create_key("acme")


def everything(registry: Registry) -> tuple[object, ...]:
    tenant = registry.tenant("acme")
    return (
        registry.tenants(),
        registry.keys("acme").items,
        registry.adapters(tenant.id),
        registry.aliases(tenant.id),
        registry.base_models(),
        registry.nodes(),
        registry.audit().items,
        registry.installation_id(),
    )


def test_a_back_up_moves_to_any_database_with_its_blobs(
    settings: Settings, target: Settings, tmp_path: Path
) -> None:
    with opened(settings) as registry:
        key = fill(registry, settings)
        made = back_up(registry, settings, tmp_path / "backup", with_blobs=True)
        before = everything(registry)
    assert (made.blobs, made.missing) == (2, ())
    secret = load_secret_key(settings.lora_data_dir)
    shutil.rmtree(settings.lora_data_dir)

    with closing(Registry.open(target.registry_url)) as registry:
        target.staging_folder.mkdir(parents=True)
        restored = restore(registry, target, tmp_path / "backup", force=False)
    assert restored == made
    with opened(target) as registry:
        assert everything(registry) == before
        assert registry.caller(key).tenant.name == "acme"
        assert set(FolderBlobStore(target.blobs_folder).digests()) == registry.named_blobs()
        # Numbers go on where they were.
        registry.create_tenant("later", "shared")
        assert len({entry.id for entry in registry.audit().items}) == len(registry.audit().items)
    assert load_secret_key(target.lora_data_dir) == secret


def test_a_back_up_under_writes_is_of_one_moment(settings: Settings, tmp_path: Path) -> None:
    stopping = threading.Event()

    def write() -> None:
        number = 0
        while not stopping.is_set():
            add_adapter(registry, settings, f"name-{number}")
            number += 1

    with opened(settings) as registry:
        fill(registry, settings)
        writer = threading.Thread(target=write)
        writer.start()
        try:
            made = [
                back_up(registry, settings, tmp_path / f"backup-{each}", with_blobs=False)
                for each in range(3)
            ]
        finally:
            stopping.set()
            writer.join()
        assert all(each.missing == () for each in made)
        lived = {adapter.id for adapter in registry.adapters()}
    for each in range(3):
        file = tmp_path / f"backup-{each}" / REGISTRY_FILE
        with closing(Registry.open(f"sqlite:///{file}")) as copy:
            adapters = {adapter.id for adapter in copy.adapters()}
            entries = copy.audit().items
        # An adapter and its entry in the audit are one transaction's.
        created = {entry.object_id for entry in entries if entry.action == "adapter.created"}
        assert created
        assert created <= adapters <= lived


def test_a_restore_over_something_needs_force_and_finds_the_blobs_in_place(
    settings: Settings, tmp_path: Path
) -> None:
    with opened(settings) as registry:
        fill(registry, settings)
        back_up(registry, settings, tmp_path / "backup", with_blobs=False)
        before = everything(registry)
        add_adapter(registry, settings, "later")
        with pytest.raises(ConfigurationError, match="--force"):
            restore(registry, settings, tmp_path / "backup", force=False)
        restore(registry, settings, tmp_path / "backup", force=True)
        assert everything(registry) == before
    with opened(settings) as registry:
        assert everything(registry) == before


def test_a_restore_says_which_blobs_are_missing_or_damaged(
    settings: Settings, tmp_path: Path
) -> None:
    backup = tmp_path / "backup"
    with opened(settings) as registry:
        fill(registry, settings)
        back_up(registry, settings, backup, with_blobs=True)
    weights = sha256(b"weights of finance")
    new = make_settings(tmp_path / "other", None)
    new.staging_folder.mkdir(parents=True)
    blob = backup / BLOBS_FOLDER / weights[:2] / weights
    blob.unlink()
    blob.write_bytes(b"damaged")
    with closing(Registry.open(new.registry_url)) as registry:
        with pytest.raises(ConfigurationError, match=weights):
            restore(registry, new, backup, force=False)
        assert registry.is_empty()
        assert restore(registry, new, backup, force=True).missing == (weights,)
        assert [adapter.name for adapter in registry.adapters()] == ["finance"]


def test_a_restore_is_refused_while_the_installation_is_served(
    settings: Settings, tmp_path: Path
) -> None:
    with opened(settings) as registry:
        fill(registry, settings)
        back_up(registry, settings, tmp_path / "backup", with_blobs=False)
        lock = try_lock(settings.serve_lock)
        assert lock is not None
        with lock, pytest.raises(ConfigurationError, match="being served"):
            restore(registry, settings, tmp_path / "backup", force=True)


def test_a_folder_with_something_in_it_is_left_alone(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with opened(settings) as registry:
        with pytest.raises(ConfigurationError, match="new folder"):
            back_up(registry, settings, tmp_path / "full", with_blobs=False)
        with pytest.raises(ConfigurationError, match="no back-up"):
            restore(registry, settings, tmp_path / "full", force=True)
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["file"]
