"""A single adapter_model.safetensors, without a config."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from adapter_sync.validation import AdapterFacts

Refusal = Callable[..., str]
Check = Callable[..., AdapterFacts]
Tensors = dict[str, npt.NDArray[Any]]


def test_rank_and_target_modules_are_read_from_the_tensors(check: Check, tensors: Tensors) -> None:
    facts = check(tensors, lora_alpha=12.0)

    assert (facts.rank, facts.lora_alpha, facts.warnings) == (4, 12, ())
    assert facts.target_modules == ("q_proj", "v_proj")
    assert facts.config["r"] == 4
    assert facts.config["target_modules"] == ["q_proj", "v_proj"]


def test_an_unknown_lora_alpha_is_assumed_equal_to_the_rank_and_said_so(
    check: Check, tensors: Tensors
) -> None:
    facts = check(tensors)

    assert facts.lora_alpha == 4
    [warning] = facts.warnings
    assert (
        "no adapter_config.json and no lora_alpha: it is assumed equal to the rank (4)" in warning
    )
    assert "Send lora_alpha if the adapter was trained with another." in warning


@pytest.mark.parametrize("key", ["lora_alpha", "ss_network_alpha", "network_alpha"])
def test_lora_alpha_is_taken_from_the_files_metadata(
    check: Check, tensors: Tensors, key: str
) -> None:
    facts = check(tensors, metadata={"format": "pt", key: "9.5"})

    assert (facts.lora_alpha, facts.warnings) == (9.5, ())
    assert facts.config["lora_alpha"] == 9.5


@pytest.mark.parametrize("text", ["None", "nan", "inf", "-3", "0", "1e9", ""])
def test_metadata_that_is_no_alpha_is_passed_over(
    check: Check, tensors: Tensors, text: str
) -> None:
    facts = check(tensors, metadata={"lora_alpha": text})

    assert facts.lora_alpha == 4
    assert "assumed equal to the rank (4)" in facts.warnings[0]


def test_the_senders_lora_alpha_comes_before_the_metadatas(check: Check, tensors: Tensors) -> None:
    assert check(tensors, lora_alpha=3.0, metadata={"lora_alpha": "9"}).lora_alpha == 3


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan, 1e7])
def test_a_lora_alpha_that_is_none_is_refused(
    refusal: Refusal, tensors: Tensors, value: float
) -> None:
    words = refusal(tensors, lora_alpha=value, param="lora_alpha")

    assert f"lora_alpha is {value!r}, expected a number above 0, at most 1000000" in words


def with_ranks(tensors: Tensors, module: str, rank: int) -> Tensors:
    """The tensors with the module's rank changed."""
    changed = dict(tensors)
    for name, tensor in tensors.items():
        if module in name:
            shape = (rank, 64) if "lora_A" in name else (tensor.shape[0], rank)
            changed[name] = np.ones(shape, dtype=np.float32)
    return changed


def test_different_ranks_become_a_rank_pattern(check: Check, tensors: Tensors) -> None:
    facts = check(with_ranks(tensors, "layers.1.self_attn.v_proj", 16), lora_alpha=8.0)

    assert facts.rank == 16
    assert facts.config["r"] == 4
    assert facts.config["rank_pattern"] == {"model.layers.1.self_attn.v_proj": 16}
    assert facts.config["alpha_pattern"] == {}


def test_with_different_ranks_each_alpha_is_assumed_equal_to_its_rank(
    check: Check, tensors: Tensors
) -> None:
    facts = check(with_ranks(tensors, ".v_proj", 2))

    assert facts.config["r"] == 4
    assert facts.config["rank_pattern"] == facts.config["alpha_pattern"] == {"v_proj": 2}
    assert "assumed equal to the rank (2 or 4)" in facts.warnings[0]
