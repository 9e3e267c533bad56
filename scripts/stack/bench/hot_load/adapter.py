"""Adapters of a given size on the real base model, and the engine's arguments that take them."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from safetensors.numpy import save_file

from adapter_sync.base_models import read_base_model
from adapter_sync.validation.linear_layers import linear_layers
from stack.bench.servers import BASE_MODEL, MODEL_JSON, TOKENIZER

FLOAT_BYTES = 4
MAX_LORA_RANKS = (16, 32, 64, 128, 256, 320, 512)
"""VLLM takes these: vllm/config/lora.py. The smaller ones save nothing here."""
MAX_LORAS, MAX_CPU_LORAS = 2, 4
"""Each slot takes as much memory as the largest adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A PEFT folder's two files."""

    folder: Path

    @property
    def weights(self) -> Path:
        """The tensors."""
        return self.folder / "adapter_model.safetensors"

    @property
    def config(self) -> Path:
        """PEFT's config."""
        return self.folder / "adapter_config.json"

    @property
    def mb(self) -> float:
        """How large it is."""
        return round(self.weights.stat().st_size / 1e6, 1)


def write_adapter(folder: Path, size_mb: int) -> Adapter:
    """Small random numbers on every linear layer, in float32, of the rank that gives the size."""
    rank = rank_of(size_mb)
    numbers = np.random.default_rng(size_mb)
    tensors = {}
    for module, (outputs, inputs) in _layers().items():
        for part, shape in (("lora_A", (rank, inputs)), ("lora_B", (outputs, rank))):
            values = 0.001 * numbers.standard_normal(shape, dtype=np.float32)
            tensors[f"base_model.model.{module}.{part}.weight"] = values
    adapter = Adapter(folder=folder)
    folder.mkdir(parents=True)
    save_file(tensors, adapter.weights)
    modules = sorted({module.rpartition(".")[2] for module in _layers()})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": modules}
    adapter.config.write_text(json.dumps(config), encoding="utf-8")
    return adapter


def rank_of(size_mb: int) -> int:
    """The rank of an adapter of about this size."""
    bytes_a_rank = FLOAT_BYTES * sum(map(sum, _layers().values()))
    return max(1, round(size_mb * 1e6 / bytes_a_rank))


def write_base_model(
    repository: Path, sizes_mb: Sequence[int], more: Mapping[str, str] = MappingProxyType({})
) -> Path:
    """The default base model with an engine that takes adapters of these sizes; its model.json.

    `more` are further arguments of vLLM. Raises StopIteration when one is too large for any.
    """
    folder = repository / BASE_MODEL
    shutil.copytree(MODEL_JSON.parent.parent, folder)
    model_json = folder / "1" / MODEL_JSON.name
    rank = max(map(rank_of, sizes_mb))
    arguments = json.loads(model_json.read_text(encoding="utf-8")) | {
        "max_lora_rank": next(each for each in MAX_LORA_RANKS if each >= rank),
        "max_loras": MAX_LORAS,
        "max_cpu_loras": MAX_CPU_LORAS,
        **more,
    }
    model_json.write_text(json.dumps(arguments), encoding="utf-8")
    return model_json


def _layers() -> dict[str, tuple[int, int]]:
    base = read_base_model(MODEL_JSON.parent.parent, models_dir=TOKENIZER.parent)
    return dict(linear_layers(base.tensor_shapes))
