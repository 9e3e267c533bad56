"""Looks for NaN and infinity in an adapter's numbers, a bounded piece at a time."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from adapter_sync.errors import InvalidAdapterError
from adapter_sync.validation.safetensors_file import ITEM_BYTES, SafetensorsFile, StoredTensor
from adapter_sync.validation.words import quoted

_PIECE_BYTES = 4 * 1024 * 1024
# A number is NaN or infinite exactly when all its exponent bits are set; looking at the bits works
# for bfloat16 too, which numpy does not know.
_EXPONENT_BITS: Mapping[str, int] = {"F32": 0x7F80_0000, "F16": 0x7C00, "BF16": 0x7F80}


def check_finite(file: SafetensorsFile) -> None:
    """Raises InvalidAdapterError for the first tensor that holds NaN or infinity."""
    data: npt.NDArray[np.uint8] = np.memmap(file.path, dtype=np.uint8, mode="r")
    for tensor in file.tensors:
        index = _first_not_finite(data, tensor)
        if index is not None:
            place = tuple(int(axis) for axis in np.unravel_index(index, tensor.shape))
            raise InvalidAdapterError(
                f"The tensor {quoted(tensor.name)} holds NaN or infinity at {place}, expected "
                "finite numbers only."
            )


def _first_not_finite(data: npt.NDArray[np.uint8], tensor: StoredTensor) -> int | None:
    item_bytes, exponent = ITEM_BYTES[tensor.dtype], _EXPONENT_BITS[tensor.dtype]
    for begin in range(tensor.begin, tensor.end, _PIECE_BYTES):
        piece = data[begin : min(begin + _PIECE_BYTES, tensor.end)].view(f"<u{item_bytes}")
        bad = (piece & exponent) == exponent
        if bad.any():
            return (begin - tensor.begin) // item_bytes + int(bad.argmax())
    return None
