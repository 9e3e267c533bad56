"""Looks for NaN and infinity in an adapter's numbers, a bounded piece at a time."""

from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from adapter_sync.errors import InvalidAdapterError
from adapter_sync.validation.safetensors_file import ITEM_BYTES, SafetensorsFile, StoredTensor
from adapter_sync.validation.words import quoted

_PIECE_BYTES = 1024 * 1024
# A number is NaN or infinite exactly when all its exponent bits are set; looking at the bits works
# for bfloat16 too, which numpy does not know.
_EXPONENT_BITS: Mapping[str, int] = {"F32": 0x7F80_0000, "F16": 0x7C00, "BF16": 0x7F80}


def check_finite(file: SafetensorsFile) -> None:
    """Raises InvalidAdapterError for the first tensor that holds NaN or infinity."""
    # Read, not mapped: the pages of a mapped file are the process's memory.
    with file.path.open("rb") as data:
        for tensor in file.tensors:
            index = _first_not_finite(data, tensor)
            if index is not None:
                place = tuple(int(axis) for axis in np.unravel_index(index, tensor.shape))
                raise InvalidAdapterError(
                    f"The tensor {quoted(tensor.name)} holds NaN or infinity at {place}, expected "
                    "finite numbers only."
                )


def _first_not_finite(data: BinaryIO, tensor: StoredTensor) -> int | None:
    item_bytes, exponent = ITEM_BYTES[tensor.dtype], _EXPONENT_BITS[tensor.dtype]
    data.seek(tensor.begin)
    for begin in range(tensor.begin, tensor.end, _PIECE_BYTES):
        raw = data.read(min(_PIECE_BYTES, tensor.end - begin))
        piece = np.frombuffer(raw, dtype=f"<u{item_bytes}")
        bad = (piece & exponent) == exponent
        if bad.any():
            return (begin - tensor.begin) // item_bytes + int(bad.argmax())
    return None
