"""Looks for NaN and infinity in an adapter's numbers, a bounded piece at a time."""

from collections.abc import Mapping
from io import FileIO

import numpy as np

from adapter_sync.errors import InvalidAdapterError
from adapter_sync.validation.safetensors_file import ITEM_BYTES, SafetensorsFile, StoredTensor
from adapter_sync.validation.words import quoted

_PIECE_BYTES = 4 * 1024 * 1024
# A number is NaN or infinite exactly when all its exponent bits are set; looking at the bits works
# for bfloat16 too, which numpy does not know.
_EXPONENT_BITS: Mapping[str, int] = {"F32": 0x7F80_0000, "F16": 0x7C00, "BF16": 0x7F80}


def check_finite(file: SafetensorsFile) -> None:
    """Raises InvalidAdapterError for the first tensor that holds NaN or infinity."""
    # Read, not mapped: mapped pages would count as this process's memory, all of them.
    with file.path.open("rb", buffering=0) as data:
        for tensor in file.tensors:
            index = _first_not_finite(data, tensor)
            if index is not None:
                place = tuple(int(axis) for axis in np.unravel_index(index, tensor.shape))
                raise InvalidAdapterError(
                    f"The tensor {quoted(tensor.name)} holds NaN or infinity at {place}, expected "
                    "finite numbers only."
                )


def _first_not_finite(data: FileIO, tensor: StoredTensor) -> int | None:
    item_bytes, exponent = ITEM_BYTES[tensor.dtype], _EXPONENT_BITS[tensor.dtype]
    data.seek(tensor.begin)
    for begin in range(tensor.begin, tensor.end, _PIECE_BYTES):
        count = min(_PIECE_BYTES, tensor.end - begin) // item_bytes
        piece = np.fromfile(data, dtype=f"<u{item_bytes}", count=count)
        bad = (piece & exponent) == exponent
        if bad.any():
            return (begin - tensor.begin) // item_bytes + int(bad.argmax())
    return None
