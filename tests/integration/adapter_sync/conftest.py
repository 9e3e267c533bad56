from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from adapter_sync.blobs import FolderBlobStore
from adapter_sync.node import ThisNode
from adapter_sync.record import BaseModel
from adapter_sync.registry import Registry
from tests.integration.adapter_sync.in_memory_triton import InMemoryTriton
from tests.integration.adapter_sync.node import BASE_MODEL, Node


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    repository, staging = tmp_path / "repository", tmp_path / "data" / "staging"
    repository.mkdir()
    staging.mkdir(parents=True)
    with closing(Registry.open(f"sqlite:///{tmp_path / 'data' / 'registry.db'}")) as registry:
        registry.put_base_model(
            BaseModel(
                name=BASE_MODEL,
                max_lora_rank=8,
                max_model_len=64,
                tensor_shapes={"model.layers.0.mlp.up_proj.weight": (8, 4)},
            )
        )
        this = ThisNode.load(tmp_path / "data", "127.0.0.1:8000")
        registry.announce_node(this.announcement([], {}))
        yield Node(
            this=this,
            registry=registry,
            tenant=registry.create_tenant("acme", "dedicated"),
            blobs=FolderBlobStore(tmp_path / "data" / "blobs"),
            repository=repository,
            staging=staging,
            triton=InMemoryTriton(repository=repository),
        )
