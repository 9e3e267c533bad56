"""An adapter just below the largest size that the tiers allow, and a base model it is valid on."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

RANK = 64
LAYERS = 23
HIDDEN, KEY_VALUE, INNER = 4096, 1024, 14336
# (in, out) of each linear layer: those of Llama 3's 8B model.
MODULES: Mapping[str, tuple[int, int]] = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, KEY_VALUE),
    "self_attn.v_proj": (HIDDEN, KEY_VALUE),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (HIDDEN, INNER),
    "mlp.up_proj": (HIDDEN, INNER),
    "mlp.down_proj": (INNER, HIDDEN),
}
CONFIG: Mapping[str, object] = {
    "peft_type": "LORA",
    "r": RANK,
    "lora_alpha": RANK,
    "target_modules": sorted(name.rpartition(".")[2] for name in MODULES),
}
_BYTES = {"F32": 4, "F16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class LargeAdapter:
    """The weights, of about 480 MB, and the config that goes with them."""

    weights: Path
    config: bytes


def write_large_base_model(folder: Path) -> None:
    """The model as Hugging Face keeps it. Its numbers, 16 GB of nothing, take no place on disk."""
    folder.mkdir(parents=True)
    shapes = {
        f"model.layers.{layer}.{module}.weight": (out_features, in_features)
        for layer in range(LAYERS)
        for module, (in_features, out_features) in MODULES.items()
    }
    header, size_bytes = _header(shapes, "F16")
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size_bytes)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 64}))


def write_large_adapter(folder: Path) -> LargeAdapter:
    """Random numbers, as PEFT would save them in float32."""
    shapes: dict[str, tuple[int, int]] = {}
    for layer in range(LAYERS):
        for module, (in_features, out_features) in MODULES.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            shapes[f"{name}.lora_A.weight"] = (RANK, in_features)
            shapes[f"{name}.lora_B.weight"] = (out_features, RANK)
    header, size_bytes = _header(shapes, "F32")
    weights = folder / "adapter_model.safetensors"
    with weights.open("wb") as file:
        file.write(header)
        for piece in _numbers(size_bytes):
            file.write(piece)
    return LargeAdapter(weights=weights, config=json.dumps(CONFIG).encode())


def _header(shapes: Mapping[str, tuple[int, int]], dtype: str) -> tuple[bytes, int]:
    """A safetensors header, its length included, and how many bytes follow it."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + shape[0] * shape[1] * _BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text, end


def _numbers(size_bytes: int) -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    left = size_bytes // 4
    while left:
        count = min(left, 1_000_000)
        left -= count
        yield rng.standard_normal(count, dtype=np.float32).tobytes()
