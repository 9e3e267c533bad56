"""A tiny Llama, adapters that PEFT makes for it, and files written by hand."""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from adapter_sync.errors import InvalidAdapterError
from adapter_sync.record import BaseModel
from adapter_sync.validation import AdapterFacts, check_adapter

Tensors = dict[str, npt.NDArray[Any]]
RANK = 4


@pytest.fixture(scope="session")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def base(llama: LlamaForCausalLM) -> BaseModel:
    shapes = {name: tuple(tensor.shape) for name, tensor in llama.state_dict().items()}
    return BaseModel(name="tiny-llama", max_lora_rank=16, max_model_len=128, tensor_shapes=shapes)


@pytest.fixture
def train(llama: LlamaForCausalLM, tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder as PEFT's save_pretrained writes it, with weights that are not zero."""

    def train(dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
        settings = {"task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 6} | settings
        torch.manual_seed(1)
        model = get_peft_model(
            copy.deepcopy(llama), LoraConfig(init_lora_weights=False, **settings)
        )
        folder = tmp_path / "trained"
        model.to(dtype).save_pretrained(folder)
        return folder

    return train


@pytest.fixture
def tensors() -> Tensors:
    """LoRA of rank 4 on every q_proj and v_proj of the tiny Llama."""
    rng = np.random.default_rng(0)
    found: Tensors = {}
    for layer in range(2):
        for leaf, out_features in (("q_proj", 64), ("v_proj", 32)):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{leaf}"
            found[f"{prefix}.lora_A.weight"] = rng.random((RANK, 64), dtype=np.float32)
            found[f"{prefix}.lora_B.weight"] = rng.random((out_features, RANK), dtype=np.float32)
    return found


@pytest.fixture
def config() -> dict[str, object]:
    """The adapter_config.json of `tensors`."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "somewhere/tiny-llama",
        "r": RANK,
        "lora_alpha": 6,
        "target_modules": ["q_proj", "v_proj"],
    }


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return tmp_path / "adapter_model.safetensors"


Check = Callable[..., AdapterFacts]


@pytest.fixture
def check(base: BaseModel, weights: Path) -> Check:
    """Writes the tensors (or raw bytes) and checks them."""

    def check(
        tensors: Tensors | bytes,
        config: Mapping[str, object] | bytes | None = None,
        *,
        lora_alpha: float | None = None,
        metadata: dict[str, str] | None = None,
    ) -> AdapterFacts:
        if isinstance(tensors, bytes):
            weights.write_bytes(tensors)
        else:
            save_file(tensors, weights, metadata)
        data = json.dumps(config).encode() if isinstance(config, Mapping) else config
        return check_adapter(weights, config=data, lora_alpha=lora_alpha, base=base)

    return check


@pytest.fixture
def refusal(check: Check) -> Callable[..., str]:
    """The words of the refusal; `param` is the field it has to blame."""

    def refusal(*arguments: Any, param: str = "file", **settings: Any) -> str:
        with pytest.raises(InvalidAdapterError) as caught:
            check(*arguments, **settings)
        assert caught.value.param == param
        return str(caught.value)

    return refusal


@pytest.fixture
def raw() -> Callable[..., bytes]:
    """A safetensors file from a header as text or object, and its data."""

    def raw(header: object, data: bytes = b"") -> bytes:
        text = header if isinstance(header, str) else json.dumps(header)
        encoded = text.encode("utf-8", "surrogatepass")
        return len(encoded).to_bytes(8, "little") + encoded + data

    return raw
