"""Tensors that don't fit the base model, or that vLLM would not serve."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

from adapter_sync.errors import InvalidAdapterError
from adapter_sync.record import BaseModel
from adapter_sync.validation import check_adapter

PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"
Q_PROJ_A = f"{PREFIX}.lora_A.weight"
Q_PROJ_B = f"{PREFIX}.lora_B.weight"
Refusal = Callable[..., str]
Tensors = dict[str, npt.NDArray[Any]]


def zeros(*shape: int) -> npt.NDArray[Any]:
    return np.zeros(shape, dtype=np.float32)


def pair(module: str, out_features: int, in_features: int, rank: int = 4) -> Tensors:
    return {
        f"base_model.model.{module}.lora_A.weight": zeros(rank, in_features),
        f"base_model.model.{module}.lora_B.weight": zeros(out_features, rank),
    }


def test_a_file_without_tensors_is_refused(refusal: Refusal) -> None:
    words = refusal({})

    assert "The file holds no tensors; expected names like" in words
    assert "'base_model.model.<module>.lora_A.weight'" in words


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (f"{PREFIX}.lora_A.default.weight", "it has PEFT's adapter name in it"),
        (f"{PREFIX}.lora_magnitude_vector", "it belongs to a DoRA adapter"),
        (f"{PREFIX}.lora_magnitude_vector.weight", "it belongs to a DoRA adapter"),
        (f"{PREFIX}.lora_B.bias", "it is a LoRA bias"),
        (f"{PREFIX}.base_layer.weight", "it is a weight of the base model"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "LoRA on embeddings"),
        ("base_model.model.lm_head.modules_to_save.weight", "whole modules (modules_to_save)"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "it lacks the prefix"),
        ("lora_unet_down_blocks_0.lora_down.weight", "it is in another tool's format"),
        ("model.layers.0.self_attn.q_proj.weight", "it is not a LoRA weight"),
        (f"../../{Q_PROJ_A}", "it lacks the prefix"),
        (f"{Q_PROJ_A}\n", "it is not a LoRA weight"),
    ],
)
def test_a_tensor_with_another_name_is_refused_with_the_expected_form(
    refusal: Refusal, tensors: Tensors, name: str, kind: str
) -> None:
    words = refusal(tensors | {name: zeros(4, 64)})

    assert f"The tensor {name!r} can't be served: {kind}" in words
    assert "expected names like 'base_model.model.<module>.lora_A.weight'" in words


def test_a_layer_that_the_base_model_lacks_is_refused(refusal: Refusal, tensors: Tensors) -> None:
    words = refusal(tensors | pair("model.layers.2.self_attn.q_proj", 64, 64))

    assert "model.layers.2.self_attn.q_proj.lora_A.weight' would silently do nothing" in words
    assert "'tiny-llama' has no module 'model.layers.2.self_attn.q_proj'" in words
    assert "its layers are 0 to 1" in words


def test_a_module_on_a_wrong_path_is_refused_with_a_right_one(refusal: Refusal) -> None:
    words = refusal(pair("layers.0.self_attn.q_proj", 64, 64))

    assert "has no module 'layers.0.self_attn.q_proj'" in words
    assert "expected one like 'model.layers.0.self_attn.q_proj'" in words


def test_a_module_that_a_layer_lacks_is_refused_with_one_that_it_has(refusal: Refusal) -> None:
    words = refusal(pair("model.layers.1.mlp.q_proj", 64, 64))

    assert "has no module 'model.layers.1.mlp.q_proj'" in words
    assert "expected one like 'model.layers.0.self_attn.q_proj'" in words
    assert "expected one like 'model.layers.0." in refusal(pair("model.layers.1.mlp.w1", 64, 64))


def test_the_layers_of_the_same_stack_are_said(weights: Path, base: BaseModel) -> None:
    names = [f"encoder.layers.{number}.fc1.weight" for number in range(2)]
    names += [f"decoder.layers.{number}.fc1.weight" for number in range(4)]
    both = dataclasses.replace(base, tensor_shapes=dict.fromkeys(names, (8, 8)))
    save_file(pair("encoder.layers.2.fc1", 8, 8), weights)

    with pytest.raises(InvalidAdapterError, match="its layers are 0 to 1"):
        check_adapter(weights, config=None, lora_alpha=8, base=both)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        ("model.layers.0.input_layernorm", "(64,)"),
        ("model.embed_tokens", "(100, 64)"),
        ("lm_head", "(100, 64)"),
        ("model.norm", "(64,)"),
    ],
)
def test_a_module_that_takes_no_lora_is_refused(refusal: Refusal, module: str, shape: str) -> None:
    words = refusal(pair(module, 100, 64))

    assert f"'base_model.model.{module}.lora_A.weight' would silently do nothing" in words
    assert f"{module!r} (weight {shape}) is not one of them" in words
    assert "LoRA is served on the linear layers of its blocks only" in words


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        (Q_PROJ_A, (4, 32), "(rank, 64)"),
        (Q_PROJ_A, (4, 128), "(rank, 64)"),
        (Q_PROJ_A, (64, 4), "(rank, 64)"),
        (Q_PROJ_A, (64,), "(rank, 64)"),
        (Q_PROJ_A, (4, 64, 1), "(rank, 64)"),
        (Q_PROJ_A, (0, 64), "(rank, 64)"),
        (Q_PROJ_B, (32, 4), "(64, rank)"),
        (Q_PROJ_B, (32, 64), "(64, rank)"),
        (Q_PROJ_B, (64, 0), "(64, rank)"),
    ],
)
def test_a_shape_that_does_not_fit_the_module_is_refused(
    refusal: Refusal, tensors: Tensors, name: str, shape: tuple[int, ...], expected: str
) -> None:
    words = refusal(tensors | {name: zeros(*shape)})

    assert f"The tensor '{name}' has shape {shape}, expected {expected}" in words
    assert "'model.layers.0.self_attn.q_proj' of the base model takes 64 features" in words


@pytest.mark.parametrize(("name", "other"), [(Q_PROJ_A, "lora_A"), (Q_PROJ_B, "lora_B")])
def test_one_of_a_pair_alone_is_refused(
    refusal: Refusal, tensors: Tensors, name: str, other: str
) -> None:
    del tensors[name]

    words = refusal(tensors)

    assert f"The tensor '{PREFIX}." in words
    assert f"is alone, expected {other}.weight of 'model.layers.0.self_attn.q_proj'" in words


def test_a_pair_of_different_ranks_is_refused(refusal: Refusal, tensors: Tensors) -> None:
    words = refusal(tensors | {Q_PROJ_B: zeros(64, 8)})

    assert f"The tensor '{Q_PROJ_B}' has shape (64, 8), expected rank 4" in words
    assert f"'{Q_PROJ_A}' has shape (4, 64)" in words


def test_a_rank_above_the_base_models_limit_is_refused(refusal: Refusal) -> None:
    words = refusal(pair("model.layers.0.self_attn.q_proj", 64, 64, rank=17))

    assert f"The tensor '{Q_PROJ_A}' has rank 17 (shape (17, 64)), at most 16 is served" in words


@pytest.mark.parametrize("module", ["visual.blocks.0.attn.proj", "mtp.layers.0.mlp.up_proj"])
def test_parts_of_a_model_that_vllm_leaves_alone_are_refused(weights: Path, module: str) -> None:
    base = BaseModel(
        name="seeing",
        max_lora_rank=16,
        max_model_len=128,
        tensor_shapes={f"{module}.weight": (64, 64)},
    )
    save_file(pair(module, 64, 64), weights)

    with pytest.raises(InvalidAdapterError, match="would silently do nothing"):
        check_adapter(weights, config=None, lora_alpha=8, base=base)


class TestExperts:
    """vLLM packs a block's experts: all of them must have LoRA."""

    @pytest.fixture
    def base(self, base: BaseModel) -> BaseModel:
        elsewhere = "model.layers.1.mlp.experts.0.w1"
        shapes = {f"{module}.weight": (64, 64) for module in [*self.modules(), elsewhere]}
        return dataclasses.replace(base, tensor_shapes=shapes)

    @staticmethod
    def modules() -> list[str]:
        experts = [f"mlp.experts.{number}.{leaf}" for number in range(2) for leaf in ("w1", "w2")]
        return [f"model.layers.0.{module}" for module in ("self_attn.q_proj", *experts)]

    def test_all_experts_of_a_block_are_taken(self, base: BaseModel, weights: Path) -> None:
        tensors = [pair(module, 64, 64) for module in self.modules()]
        save_file({name: tensor for part in tensors for name, tensor in part.items()}, weights)

        facts = check_adapter(weights, config=None, lora_alpha=8, base=base)

        assert facts.target_modules == ("q_proj", "w1", "w2")

    def test_none_of_a_blocks_experts_are_taken(self, base: BaseModel, weights: Path) -> None:
        save_file(pair("model.layers.0.self_attn.q_proj", 64, 64), weights)

        assert check_adapter(weights, config=None, lora_alpha=8, base=base).rank == 4

    def test_some_experts_of_a_block_are_refused(self, base: BaseModel, weights: Path) -> None:
        save_file(pair("model.layers.0.mlp.experts.0.w1", 64, 64), weights)

        with pytest.raises(InvalidAdapterError, match=r"nothing for .*experts\.1\.w1'.*or none"):
            check_adapter(weights, config=None, lora_alpha=8, base=base)

    def test_experts_of_different_ranks_are_refused(self, base: BaseModel, weights: Path) -> None:
        tensors = [pair(module, 64, 64) for module in self.modules()]
        tensors.append(pair("model.layers.0.mlp.experts.1.w1", 64, 64, rank=8))
        save_file({name: tensor for part in tensors for name, tensor in part.items()}, weights)

        with pytest.raises(InvalidAdapterError, match=r"'w1' in .* have the ranks \[4, 8\]"):
            check_adapter(weights, config=None, lora_alpha=8, base=base)
