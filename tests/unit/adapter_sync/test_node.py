"""The node as adapter_sync announces it."""

import tomllib
from pathlib import Path

import pytest

import adapter_sync
from adapter_sync.engine_status import EngineStatus
from adapter_sync.node import NODE_ID_FILE, ThisNode
from adapter_sync.record import BaseModel

TINY = BaseModel(name="tiny", max_lora_rank=8, max_model_len=64, tensor_shapes={})
EMBEDDER = BaseModel(
    name="embedder", max_lora_rank=16, max_model_len=256, tensor_shapes={}, takes_adapters=False
)


def status(revision: int | None) -> EngineStatus:
    return EngineStatus(companion_revision=9, revision=revision, adapters={}, max_loras=4)


def test_a_data_folder_s_node_keeps_its_id(tmp_path: Path) -> None:
    first = ThisNode.load(tmp_path, "triton:8000")
    assert ThisNode.load(tmp_path, "elsewhere:8000").id == first.id
    other = tmp_path / "other"
    other.mkdir()
    assert ThisNode.load(other, "triton:8000").id != first.id
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [NODE_ID_FILE]


@pytest.mark.parametrize("content", [b"", b"nod_0", b"\xff" * 24])
def test_a_broken_id_is_made_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NODE_ID_FILE).write_bytes(content)
    made = ThisNode.load(tmp_path, "triton:8000").id
    assert ThisNode.load(tmp_path, "triton:8000").id == made


def test_limits_come_from_the_files_and_the_applied_map_from_the_engine(tmp_path: Path) -> None:
    node = ThisNode.load(tmp_path, "triton:8000")
    [tiny, embedder] = node.announcement([TINY, EMBEDDER], {"tiny": status(7)}).base_models
    assert (tiny.max_lora_rank, tiny.max_loras, tiny.lora_map_revision) == (8, 4, 7)
    assert (embedder.max_lora_rank, embedder.max_loras, embedder.max_model_len) == (None, None, 256)
    for engines in ({}, {"tiny": status(None)}):
        [tiny] = node.announcement([TINY], engines).base_models
        assert (tiny.max_loras, tiny.lora_map_revision) == (None, None)


def test_the_release_is_the_project_s() -> None:
    project = Path(adapter_sync.__file__).parents[1] / "pyproject.toml"
    assert adapter_sync.__version__ == tomllib.loads(project.read_text())["project"]["version"]
