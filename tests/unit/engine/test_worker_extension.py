"""What the worker's extension does to vLLM's CPU kernels."""

import torch
from vllm.lora.ops.torch_ops import lora_ops

from engine.worker_extension import without_base_model

TOKENS, HIDDEN, RANK, SLOTS = 3, 4, 2, 2
INDICES = torch.tensor([1, -1, 0])


def shrunk(shrink: object, indices: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    inputs, lora_a = torch.rand(TOKENS, HIDDEN), torch.rand(SLOTS, 1, RANK, HIDDEN)
    output = torch.full((TOKENS, RANK), 7.0)
    assert callable(shrink)
    shrink(inputs, lora_a, output, indices, 0.5)
    return output


def test_tokens_without_an_adapter_get_nothing_of_the_last_slot_s() -> None:
    output = shrunk(without_base_model(lora_ops.bgmv_shrink), INDICES)
    theirs = shrunk(lora_ops.bgmv_shrink, INDICES)
    assert output[1].tolist() == [0, 0]
    assert torch.equal(output[[0, 2]], theirs[[0, 2]])


def test_vllm_s_own_kernel_still_takes_the_last_slot() -> None:
    """When this fails, vLLM is mended and the extension has one thing less to do."""
    last = shrunk(lora_ops.bgmv_shrink, torch.tensor([1, 1, 0]))
    assert torch.equal(shrunk(lora_ops.bgmv_shrink, INDICES), last)
