"""NaN and infinity, in each of the number formats."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file

from adapter_sync.errors import InvalidAdapterError
from adapter_sync.record import BaseModel
from adapter_sync.validation import check_adapter, finite

Tensors = dict[str, npt.NDArray[Any]]
NAME = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def check_torch(weights: Path, base: BaseModel) -> Callable[[dict[str, torch.Tensor]], None]:
    def check_torch(tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, weights)
        check_adapter(weights, config=None, lora_alpha=8, base=base)

    return check_torch


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_tensor_with_nan_or_infinity_is_refused(
    check_torch: Callable[..., None], tensors: Tensors, dtype: torch.dtype, value: float
) -> None:
    changed = {name: torch.from_numpy(tensor).to(dtype) for name, tensor in tensors.items()}
    changed[NAME][63, 2] = value

    with pytest.raises(InvalidAdapterError) as caught:
        check_torch(changed)

    assert f"The tensor '{NAME}' holds NaN or infinity at (63, 2)" in str(caught.value)
    assert "expected finite numbers only" in str(caught.value)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_and_smallest_numbers_are_finite(
    check_torch: Callable[..., None], tensors: Tensors, dtype: torch.dtype
) -> None:
    changed = {name: torch.from_numpy(tensor).to(dtype) for name, tensor in tensors.items()}
    info = torch.finfo(dtype)
    changed[NAME][0] = torch.tensor([info.max, info.min, info.tiny, -0.0], dtype=dtype)

    check_torch(changed)


def test_a_tensor_larger_than_a_piece_is_looked_through_to_its_end(
    check_torch: Callable[..., None], tensors: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finite, "_PIECE_BYTES", 48)
    changed = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    changed[NAME][63, 3] = float("nan")

    with pytest.raises(InvalidAdapterError, match=r"infinity at \(63, 3\)"):
        check_torch(changed)


def test_float8_is_refused(check_torch: Callable[..., None], tensors: Tensors) -> None:
    changed = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    changed[NAME] = changed[NAME].to(torch.float8_e4m3fn)

    with pytest.raises(InvalidAdapterError, match="dtype 'F8_E4M3', expected one of BF16, F16"):
        check_torch(changed)


@pytest.mark.parametrize("padding", range(4))
def test_numbers_that_start_at_an_odd_place_are_read(
    refusal: Callable[..., str], raw: Callable[..., bytes], padding: int
) -> None:
    prefix = "base_model.model.model.layers.1.self_attn.q_proj"
    header = {
        f"{prefix}.lora_A.weight": {"dtype": "F32", "shape": [1, 64], "data_offsets": [0, 256]},
        f"{prefix}.lora_B.weight": {"dtype": "F32", "shape": [64, 1], "data_offsets": [256, 512]},
    }
    numbers = np.ones(128, dtype=np.float32)
    numbers[-1] = np.nan

    words = refusal(raw(json.dumps(header) + " " * padding, numbers.tobytes()))

    assert f"The tensor '{prefix}.lora_B.weight' holds NaN or infinity at (63, 0)" in words
