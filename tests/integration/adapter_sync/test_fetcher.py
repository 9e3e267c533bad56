"""Fetches done against a real hub server, registry and blobs: whole, failing, broken off."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from adapter_sync.blobs import FolderBlobStore
from adapter_sync.errors import AdapterNotFoundError
from adapter_sync.fetcher import Fetcher
from adapter_sync.fetches import Fetch, FetchStage, HubRepo
from adapter_sync.intake import Intake
from adapter_sync.record import BaseModel, Overwrite, Tenant
from adapter_sync.registry import Registry
from adapter_sync.secret_key import seal
from adapter_sync.sources.hub import pin
from tests.hub_server import Hub, Repo, running_hub

KEY = bytes(32)
NAME = "org/lora"
PATIENCE_S = 60
MODULE = "model.layers.0.self_attn.q_proj"
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}


def adapter(value: float = 1.0, *, width: int = 16) -> dict[str, bytes]:
    prefix = f"base_model.model.{MODULE}"
    tensors = {
        f"{prefix}.lora_A.weight": np.full((4, width), value, np.float32),
        f"{prefix}.lora_B.weight": np.full((16, 4), value, np.float32),
    }
    return {
        "adapter_model.safetensors": save(tensors),
        "adapter_config.json": json.dumps(CONFIG).encode(),
    }


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with closing(Registry.open(f"sqlite:///{tmp_path / 'registry.db'}")) as opened:
        opened.put_base_model(
            BaseModel(
                name="tiny",
                max_lora_rank=8,
                max_model_len=512,
                tensor_shapes={f"{MODULE}.weight": (16, 16)},
            )
        )
        yield opened


@pytest.fixture
def acme(registry: Registry) -> Tenant:
    return registry.create_tenant("acme", "shared")


@pytest.fixture
def blobs(tmp_path: Path) -> FolderBlobStore:
    return FolderBlobStore(tmp_path / "blobs")


@contextmanager
def fetching(registry: Registry, blobs: FolderBlobStore, hub: Hub, folder: Path) -> Iterator[None]:
    """A fetcher that runs, stopped at the end."""
    stopping = threading.Event()
    fetcher = Fetcher(
        registry=registry,
        intake=Intake(registry, blobs, folder / "staging"),
        folder=folder / "staging" / "fetches",
        secret_key=KEY,
        stopping=stopping,
        endpoint=hub.endpoint,
    )
    thread = threading.Thread(target=fetcher.run)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def start(
    registry: Registry,
    tenant: Tenant,
    hub: Hub,
    *,
    token: str | None = None,
    overwrite: Overwrite | None = None,
) -> Fetch:
    tier = registry.tiers.of(tenant)
    return registry.create_fetch(
        tenant=tenant,
        name="finance",
        base_model="tiny",
        pinned=pin(HubRepo(repo=NAME), token=token, tier=tier, endpoint=hub.endpoint),
        overwrite=overwrite or Overwrite(),
        sealed_token=None if token is None else seal(KEY, token),
    )


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_fetch_becomes_an_adapter_that_knows_where_it_came_from(
    registry: Registry, blobs: FolderBlobStore, hub: Hub, acme: Tenant, tmp_path: Path
) -> None:
    repo = hub.repos[NAME] = Repo(files=adapter(), token="hf_senders")
    fetch = start(registry, acme, hub, token="hf_senders")
    with fetching(registry, blobs, hub, tmp_path):
        wait_until(lambda: registry.adapters(acme.id))
    (arrived,) = registry.adapters(acme.id)
    assert arrived.id == fetch.id
    assert arrived.revision.lora_alpha == 8
    assert arrived.revision.source == {
        "type": "huggingface",
        "repo": NAME,
        "revision": "main",
        "commit": repo.commit,
        "subfolder": None,
    }
    stored = blobs.path(arrived.revision.weights_blob).read_bytes()
    assert stored == repo.files["adapter_model.safetensors"]
    assert registry.fetches(acme.id) == []
    assert files_below(tmp_path / "staging") == []
    assert b"hf_senders" not in (tmp_path / "registry.db").read_bytes()


def test_an_adapter_that_does_not_fit_fails_with_the_reason_and_leaves_nothing(
    registry: Registry, blobs: FolderBlobStore, hub: Hub, acme: Tenant, tmp_path: Path
) -> None:
    hub.repos[NAME] = Repo(files=adapter(width=8))
    fetch = start(registry, acme, hub)
    with fetching(registry, blobs, hub, tmp_path):
        wait_until(lambda: stage_of(registry, fetch) is FetchStage.FAILED)
    failed = registry.fetch(acme.id, fetch.id)
    assert failed is not None
    assert failed.error_code == "invalid_adapter"
    assert "lora_A" in (failed.error_message or "")
    assert (registry.adapters(), list(blobs.digests())) == ([], [])
    assert files_below(tmp_path / "staging") == []


def test_a_hub_that_is_away_is_asked_again(
    registry: Registry, blobs: FolderBlobStore, hub: Hub, acme: Tenant, tmp_path: Path
) -> None:
    hub.repos[NAME] = Repo(files=adapter())
    start(registry, acme, hub)
    hub.status = 503
    with fetching(registry, blobs, hub, tmp_path):
        wait_until(lambda: any("/resolve/" in path for _, path in hub.requests))
        hub.status = None
        wait_until(lambda: registry.adapters(acme.id))


def test_a_hub_that_refuses_fails_the_fetch(
    registry: Registry, blobs: FolderBlobStore, hub: Hub, acme: Tenant, tmp_path: Path
) -> None:
    hub.repos[NAME] = Repo(files=adapter())
    fetch = start(registry, acme, hub)
    hub.status = 400
    with fetching(registry, blobs, hub, tmp_path):
        wait_until(lambda: stage_of(registry, fetch) is FetchStage.FAILED)
    failed = registry.fetch(acme.id, fetch.id)
    assert failed is not None
    assert failed.error_code == "hub_unavailable"


def test_what_a_killed_process_was_fetching_is_fetched_by_the_next(
    registry: Registry, blobs: FolderBlobStore, hub: Hub, acme: Tenant, tmp_path: Path
) -> None:
    hub.repos[NAME] = Repo(files=adapter())
    start(registry, acme, hub)
    registry.claim_fetch()
    left = tmp_path / "staging" / "fetches" / "tmp0" / "adapter_model.safetensors"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    with fetching(registry, blobs, hub, tmp_path):
        wait_until(lambda: registry.adapters(acme.id))
    assert files_below(tmp_path / "staging") == []


def test_a_fetch_may_bring_a_new_revision(
    registry: Registry, blobs: FolderBlobStore, hub: Hub, acme: Tenant, tmp_path: Path
) -> None:
    hub.repos[NAME] = Repo(files=adapter())
    with fetching(registry, blobs, hub, tmp_path):
        start(registry, acme, hub)
        wait_until(lambda: registry.adapters(acme.id))
        hub.repos[NAME] = Repo(files=adapter(2.0))
        start(registry, acme, hub, overwrite=Overwrite(replace=True))
        wait_until(lambda: registry.adapters(acme.id)[0].revision.number == 2)


def test_a_fetch_that_is_deleted_meanwhile_brings_nothing(
    registry: Registry, blobs: FolderBlobStore, hub: Hub, acme: Tenant, tmp_path: Path
) -> None:
    hub.repos[NAME] = Repo(files=adapter())
    fetch = start(registry, acme, hub)
    hub.status = 503
    with fetching(registry, blobs, hub, tmp_path):
        wait_until(lambda: stage_of(registry, fetch) is FetchStage.FETCHING)
        registry.delete_adapter(acme.id, fetch.id)
        hub.status = None
        wait_until(lambda: hub.sent_bytes)
    with pytest.raises(AdapterNotFoundError):
        registry.adapter_or_fetch(acme.id, fetch.id)
    assert list(blobs.digests()) == []
    assert files_below(tmp_path / "staging") == []


def stage_of(registry: Registry, fetch: Fetch) -> FetchStage | None:
    known = registry.fetch(fetch.tenant_id, fetch.id)
    return None if known is None else known.stage
