"""One base model with everything real but Triton and the engine."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from adapter_sync.blobs import FolderBlobStore
from adapter_sync.companion_folder import CompanionFolder
from adapter_sync.intake import Intake
from adapter_sync.lora_map import adapter_files_folder, companion_name, read_lora_map
from adapter_sync.node import ThisNode
from adapter_sync.reconciler.apply import BaseModelReconciler
from adapter_sync.record import Adapter, AdapterStatus, Overwrite, Revision, Tenant
from adapter_sync.registry import Registry
from tests.integration.adapter_sync.in_memory_triton import InMemoryTriton

BASE_MODEL = "tiny"
PASSES_TO_SETTLE = 10


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One machine's adapter_sync, on folders and a registry of its own."""

    registry: Registry
    tenant: Tenant
    blobs: FolderBlobStore
    repository: Path
    staging: Path
    triton: InMemoryTriton
    this: ThisNode
    names: Iterator[int] = field(default_factory=itertools.count)

    @property
    def companion(self) -> Path:
        return self.repository / companion_name(BASE_MODEL) / "1"

    @property
    def adapter_files(self) -> Path:
        return adapter_files_folder(self.repository, BASE_MODEL)

    def folder(self) -> CompanionFolder:
        return CompanionFolder(
            repository=self.repository, base_model=BASE_MODEL, staging=self.staging
        )

    def start(self, registry: Registry | None = None) -> BaseModelReconciler:
        """A reconciler as the process starts it, after one that may have been killed."""
        Intake(self.registry, self.blobs, self.staging).remove_unused_blobs()
        folder = self.folder()
        folder.remove_leftovers()
        return BaseModelReconciler(
            BASE_MODEL,
            node_id=self.this.id,
            registry=registry or self.registry,
            blobs=self.blobs,
            folder=folder,
            control=self.triton,
        )

    def upload(self, weights: bytes | None = None) -> Adapter:
        """An adapter whose checks are over, as the gateway leaves it."""
        number = next(self.names)
        revision = self._revision(b"{}", weights or b"weights %d" % number)
        return self.registry.create_adapter(
            tenant=self.tenant, name=f"name-{number}", base_model=BASE_MODEL, revision=revision
        )

    def replace(self, adapter: Adapter, weights: bytes | None = None) -> Adapter:
        """A new revision, as the gateway leaves it."""
        content = weights or b"weights %d" % next(self.names)
        replaced = self.registry.create_adapter(
            tenant=self.tenant,
            name=adapter.name,
            base_model=BASE_MODEL,
            revision=self._revision(b"{}", content),
            overwrite=Overwrite(replace=True),
        )
        for digest in self.registry.prune_revisions(adapter.id):
            self.blobs.remove(digest)
        return replaced

    def serving(self, adapter: Adapter) -> str | None:
        """What answers the adapter's requests, by lora_name."""
        found = self.registry.adapter(self.tenant.id, adapter.id)
        return None if found.serving is None else found.lora_name_of(found.serving)

    def delete(self, adapter: Adapter) -> None:
        self.registry.delete_adapter(self.tenant.id, adapter.id)

    def settle(self, reconciler: BaseModelReconciler) -> None:
        """Passes until there is nothing to do and nothing to wait for."""
        for _ in range(PASSES_TO_SETTLE):
            result = reconciler.run_pass()
            if not result.changed and not result.waiting:
                return
        raise AssertionError(f"still busy: {result}")

    def status(self, adapter: Adapter) -> AdapterStatus:
        return self.registry.adapter(self.tenant.id, adapter.id).status

    def rows(self) -> list[str]:
        return sorted(each.id for each in self.registry.desired_adapters(BASE_MODEL).adapters)

    def check(self, *, served: Sequence[Adapter], failed: Sequence[Adapter] = ()) -> None:
        """Everything is in place for these adapters, and nothing is left over of others."""
        names = sorted(each.lora_name for each in served)
        assert [self.status(each) for each in served] == [AdapterStatus.READY] * len(served)
        assert [self.status(each) for each in failed] == [AdapterStatus.FAILED] * len(failed)
        assert self.rows() == sorted(each.id for each in (*served, *failed))
        lora_map = read_lora_map(self.companion)
        assert [entry.lora_name for entry in lora_map.adapters] == names
        assert self.triton.served() == sorted(self.triton.engine) == names
        assert self.triton.engine_revision == lora_map.revision
        assert self.adapter_folders() == names
        for each in served:
            weights = self.adapter_files / each.lora_name / "adapter_model.safetensors"
            assert sha256(weights.read_bytes()) == each.revision.weights_blob
        assert [self.serving(each) for each in served] == [each.lora_name for each in served]
        revisions = [
            kept.revision
            for each in (*served, *failed)
            for kept in self.registry.revisions(self.tenant.id, each.id)
        ]
        blobs = {each.weights_blob for each in revisions} | {each.config_blob for each in revisions}
        assert set(self.blobs.digests()) == blobs
        assert self.staged_files() == []

    def adapter_folders(self) -> list[str]:
        return sorted(path.name for path in self.adapter_files.iterdir() if path.is_dir())

    def staged_files(self) -> list[Path]:
        staged = [path for path in self.staging.rglob("*") if path.is_file()]
        return [path for path in staged if path.suffix != ".lock"]

    def _revision(self, config: bytes, weights: bytes) -> Revision:
        for content in (config, weights):
            file = self.staging.parent / "received"
            file.write_bytes(content)
            self.blobs.add(file, sha256(content))
            file.unlink(missing_ok=True)
        return Revision(
            number=1,
            digest=sha256((sha256(config) + sha256(weights)).encode()),
            config_blob=sha256(config),
            weights_blob=sha256(weights),
            size_bytes=len(weights),
            rank=8,
            lora_alpha=8.0,
            target_modules=("q_proj",),
            warnings=(),
        )


def write_engine_arguments(folder: Path, **arguments: object) -> None:
    text = json.dumps({"model": folder.name, "max_lora_rank": 8, **arguments})
    (folder / "1" / "model.json").write_text(text)


def write_base_model(node: Node, name: str) -> Path:
    model = node.staging.parent / "models" / name
    model.mkdir(parents=True)
    weights = {"model.layers.0.mlp.up_proj.weight": np.zeros((8, 4), np.float16)}
    save_file(weights, model / "model.safetensors")
    (model / "config.json").write_text(json.dumps({"max_position_embeddings": 64}))
    folder = node.repository / name
    (folder / "1").mkdir(parents=True)
    write_engine_arguments(folder, enable_lora=True)
    return folder
