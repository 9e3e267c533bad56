"""Adapters on the CPU: held against the formula, and against vLLM's own kernels."""

import pytest
import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from engine.cpu_lora import GroupedPunicaWrapper

HIDDEN, RANK, SLOTS, WIDTHS = 6, 2, 3, (4, 2, 2)
SCALE = 0.5
NO_ADAPTER = -1
BATCHES = (
    [NO_ADAPTER, NO_ADAPTER],
    [1, 1, 1],
    [2, NO_ADAPTER, 0, 2, 1],
    [NO_ADAPTER, 0, 0, NO_ADAPTER],
)


NUMBERS = torch.Generator().manual_seed(0)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=NUMBERS)


LORA_A = tuple(random(SLOTS, 1, RANK, HIDDEN) for _ in WIDTHS)
LORA_B = tuple(random(SLOTS, 1, width, RANK) for width in WIDTHS)


def prepared(
    kind: type[PunicaWrapperCPU], slots: list[int], *, is_prefill: bool
) -> PunicaWrapperCPU:
    """A wrapper that was told of a step; the adapter in the slot n has the id n + 1."""
    wrapper = kind(64, 8, "cpu")
    ids = tuple(slot + 1 for slot in slots)
    mapping = LoRAMapping(index_mapping=ids, prompt_mapping=ids, is_prefill=is_prefill)
    wrapper.update_metadata(mapping, [1, 2, 3], SLOTS + 1, 100)
    return wrapper


def by_formula(x: torch.Tensor, y: torch.Tensor, slots: list[int]) -> torch.Tensor:
    rows = []
    for token, slot in enumerate(slots):
        parts = [
            SCALE * (b[slot, 0] @ (a[slot, 0] @ x[token]))
            for a, b in zip(LORA_A, LORA_B, strict=True)
        ]
        rows.append(y[token] if slot == NO_ADAPTER else y[token] + torch.cat(parts))
    return torch.stack(rows)


@pytest.mark.parametrize("slots", BATCHES)
@pytest.mark.parametrize("is_prefill", [True, False])
def test_each_token_gets_its_own_adapter_s_part_and_one_without_nothing(
    slots: list[int], *, is_prefill: bool
) -> None:
    x, y = random(len(slots), HIDDEN), random(len(slots), sum(WIDTHS))
    expected = by_formula(x, y, slots)
    wrapper = prepared(GroupedPunicaWrapper, slots, is_prefill=is_prefill)
    wrapper.add_lora_linear(y, x, LORA_A, LORA_B, SCALE, WIDTHS)
    assert torch.allclose(y, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_of_adapters_get_what_vllms_own_kernels_give_them(dtype: torch.dtype) -> None:
    slots = [2, 0, 0, 2, 1]
    x = random(len(slots), HIDDEN).to(dtype)
    lora_a, lora_b = ([each.to(dtype) for each in part] for part in (LORA_A, LORA_B))
    made = []
    for kind in (GroupedPunicaWrapper, PunicaWrapperCPU):
        y = torch.zeros(len(slots), sum(WIDTHS), dtype=dtype)
        wrapper = prepared(kind, slots, is_prefill=False)
        wrapper.add_lora_linear(y, x, tuple(lora_a), tuple(lora_b), SCALE, WIDTHS)
        made.append(y)
    assert torch.allclose(*made, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("is_prefill", [True, False])
def test_an_embeddings_adapter_leaves_tokens_without_one_alone(*, is_prefill: bool) -> None:
    slots = [1, NO_ADAPTER, 0]
    x, y = random(len(slots), RANK), random(len(slots), WIDTHS[0])
    expected = y.clone()
    for token in (0, 2):
        expected[token] += LORA_B[0][slots[token], 0] @ x[token]
    prepared(GroupedPunicaWrapper, slots, is_prefill=is_prefill).add_lora_embedding(
        y, x, LORA_B[0], add_inputs=True
    )
    assert torch.allclose(y, expected, atol=1e-6)


def test_logits_get_their_part_up_to_their_own_width() -> None:
    slots = [1, NO_ADAPTER]
    x, y = random(len(slots), HIDDEN), random(len(slots), WIDTHS[0] - 1)
    expected = y.clone()
    expected[0] += SCALE * (LORA_B[0][1, 0] @ (LORA_A[0][1, 0] @ x[0]))[:-1]
    prepared(GroupedPunicaWrapper, slots, is_prefill=False).add_lora_logits(
        y, x, LORA_A[0], LORA_B[0], SCALE
    )
    assert torch.allclose(y, expected, atol=1e-6)


def test_of_sharded_weights_tokens_without_an_adapter_get_nothing() -> None:
    slots = [1, NO_ADAPTER]
    shrunk = [torch.zeros(len(slots), RANK) for _ in WIDTHS]
    wrapper = prepared(GroupedPunicaWrapper, slots, is_prefill=False)
    wrapper.add_shrink(shrunk, random(len(slots), HIDDEN), LORA_A, SCALE)
    for each in shrunk:
        assert each[0].any()
        assert not each[1].any()
