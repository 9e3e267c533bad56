"""vLLM's own code reads what check_adapter lets through as PEFT does."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from vllm.config.lora import LoRAConfig
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper

from adapter_sync.record import BaseModel
from adapter_sync.validation import check_adapter

TARGETS = ["q_proj", "v_proj", "up_proj"]


def test_vllm_finds_each_modules_rank_and_scaling(
    train: Callable[..., Path], base: BaseModel
) -> None:
    folder = train(
        target_modules=TARGETS,
        use_rslora=True,
        rank_pattern={"layers.0.mlp.up_proj": 16, "v_proj": 1},
        alpha_pattern={"layers.1.self_attn.q_proj": 20},
    )
    config = folder / "adapter_config.json"
    facts = check_adapter(
        folder / "adapter_model.safetensors",
        config=config.read_bytes(),
        lora_alpha=None,
        base=base,
    )
    config.write_text(json.dumps(facts.config))

    helper = PEFTHelper.from_local_dir(str(folder), max_position_embeddings=128)
    helper.validate_legal(LoRAConfig(max_lora_rank=16, lora_dtype=torch.float32))
    model = LoRAModel.from_local_checkpoint(
        str(folder), set(TARGETS), helper, lora_model_id=1, device="cpu"
    )

    found = {name: (lora.rank, lora.scaling) for name, lora in model.loras.items()}
    assert found == {
        "model.layers.0.self_attn.q_proj": (4, 6 / 2),
        "model.layers.1.self_attn.q_proj": (4, 20 / 2),
        "model.layers.0.self_attn.v_proj": (1, 6),
        "model.layers.1.self_attn.v_proj": (1, 6),
        "model.layers.0.mlp.up_proj": (16, 6 / 4),
        "model.layers.1.mlp.up_proj": (4, 6 / 2),
    }
    assert all(
        lora.lora_a.shape[0] == lora.lora_b.shape[1] == lora.rank for lora in model.loras.values()
    )
