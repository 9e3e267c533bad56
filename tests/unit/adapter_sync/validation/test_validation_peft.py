"""What PEFT saves is accepted, and the config to serve gives the same answers as PEFT's own."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from adapter_sync.record import BaseModel
from adapter_sync.validation import AdapterFacts, check_adapter

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def logits(llama: LlamaForCausalLM) -> Callable[[Path | None], torch.Tensor]:
    def logits(folder: Path | None) -> torch.Tensor:
        model: torch.nn.Module = copy.deepcopy(llama)
        if folder is not None:
            model = PeftModel.from_pretrained(model, folder).eval()
        with torch.no_grad():
            answer: torch.Tensor = model(torch.arange(12).reshape(1, 12)).logits
        return answer

    return logits


def serve(facts: AdapterFacts, weights: Path, folder: Path) -> Path:
    """A folder as the engine gets it."""
    folder.mkdir()
    (folder / WEIGHTS).symlink_to(weights)
    (folder / CONFIG).write_text(json.dumps(facts.config))
    return folder


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        pytest.param({"target_modules": ["q_proj", "v_proj"]}, False, id="two projections"),
        pytest.param({"target_modules": ALL, "r": 16, "lora_alpha": 32}, False, id="all modules"),
        pytest.param({"target_modules": "all-linear"}, False, id="all-linear"),
        pytest.param(
            {"target_modules": ALL, "use_rslora": True, "lora_alpha": 7}, False, id="rsLoRA"
        ),
        pytest.param(
            {
                "target_modules": ALL,
                "use_rslora": True,
                "rank_pattern": {"layers.0.mlp.up_proj": 16, "v_proj": 2, "self_attn.o.proj": 1},
                "alpha_pattern": {"layers.1.mlp.up_proj": 3, "down_proj": 0.5},
            },
            False,
            id="patterns",
        ),
        pytest.param(
            {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
            False,
            id="one layer",
        ),
        pytest.param(
            {
                "target_modules": ["q_proj"],
                "layers_to_transform": 0,
                "layers_pattern": "layers",
            },
            False,
            id="one layer by its pattern",
        ),
        pytest.param(
            {"target_modules": ALL, "exclude_modules": ["layers.0.mlp.up_proj", "q_proj"]},
            False,
            id="exclusions",
        ),
        pytest.param({"target_modules": "model.layers.1.mlp.up_proj"}, False, id="a string"),
        pytest.param(
            {"target_modules": ["model.layers.1.mlp.up_proj", "k_proj"]}, False, id="a whole name"
        ),
        pytest.param(
            {
                "target_modules": ["model.layers.1.mlp.up_proj", "q_proj"],
                "layers_to_transform": [0],
            },
            False,
            id="a whole name beside one layer",
        ),
        pytest.param({"target_modules": ["q_proj", "query_key_value"]}, True, id="unknown target"),
        pytest.param(
            {"target_modules": ["q_proj"], "task_type": None, "lora_dropout": 0.3},
            False,
            id="no task type",
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peft_gives_the_same_logits_with_the_config_to_serve(
    settings: dict[str, Any],
    warned: bool,  # noqa: FBT001 - a parameter of the test
    dtype: torch.dtype,
    train: Callable[..., Path],
    logits: Callable[[Path | None], torch.Tensor],
    base: BaseModel,
    tmp_path: Path,
) -> None:
    trained = train(dtype, **settings)
    facts = check_adapter(
        trained / WEIGHTS, config=(trained / CONFIG).read_bytes(), lora_alpha=None, base=base
    )

    served = serve(facts, trained / WEIGHTS, tmp_path / "served")

    assert torch.equal(logits(served), logits(trained))
    assert not torch.equal(logits(served), logits(None))
    # PEFT's configs are written for a model without a name, so that warning is there each time.
    others = [warning for warning in facts.warnings if "base_model_name_or_path" not in warning]
    assert bool(others) == warned


def test_peft_gives_the_same_logits_without_the_uploaded_config(
    train: Callable[..., Path],
    logits: Callable[[Path | None], torch.Tensor],
    base: BaseModel,
    tmp_path: Path,
) -> None:
    patterns = {"layers.0.mlp.up_proj": 16, "v_proj": 2}
    trained = train(target_modules=ALL, rank_pattern=patterns, alpha_pattern=patterns, lora_alpha=4)

    facts = check_adapter(trained / WEIGHTS, config=None, lora_alpha=None, base=base)

    served = serve(facts, trained / WEIGHTS, tmp_path / "served")
    assert torch.equal(logits(served), logits(trained))
    assert "(2 or 4 or 16)" in facts.warnings[0]


@pytest.mark.parametrize(
    ("settings", "param", "words"),
    [
        ({"use_dora": True}, "config", "use_dora is True"),
        ({"lora_bias": True}, "config", "lora_bias is True"),
        ({"bias": "lora_only"}, "config", "bias is 'lora_only'"),
        ({"modules_to_save": ["lm_head"]}, "config", "modules_to_save is ['lm_head']"),
        ({"trainable_token_indices": [3]}, "config", "trainable_token_indices is [3]"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "config", "layer_replication is [[0, 2]"),
        ({"r": 32}, "file", "has rank 32 (shape (32, 64)), at most 16 is served"),
        ({"target_modules": ["q_proj", "lm_head"]}, "file", "the output layer have LoRA"),
        ({"target_modules": ["embed_tokens"]}, "file", "embeddings or the output layer"),
    ],
)
def test_what_vllm_can_not_serve_is_refused_as_peft_saves_it(
    settings: dict[str, Any],
    param: str,
    words: str,
    train: Callable[..., Path],
    refusal: Callable[..., str],
) -> None:
    trained = train(**({"target_modules": ["q_proj"]} | settings))

    found = refusal((trained / WEIGHTS).read_bytes(), (trained / CONFIG).read_bytes(), param=param)

    assert words in found


def test_tensors_saved_with_an_adapters_name_are_refused(
    train: Callable[..., Path], refusal: Callable[..., str], tmp_path: Path
) -> None:
    trained = train(target_modules=["q_proj"])
    tensors = {
        name.replace(".weight", ".default.weight"): tensor
        for name, tensor in load_file(trained / WEIGHTS).items()
    }
    save_file(tensors, tmp_path / "named")

    words = refusal((tmp_path / "named").read_bytes(), (trained / CONFIG).read_bytes())

    assert "q_proj.lora_A.default.weight' can't be served: it has PEFT's adapter name" in words
