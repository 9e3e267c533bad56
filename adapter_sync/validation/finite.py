"""Looks for NaN and infinity in an adapter's numbers, a bounded piece at a time."""

from collections.abc import Mapping
from io import BufferedReader
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from adapter_sync.errors import InvalidAdapterError
from adapter_sync.validation.safetensors_file import ITEM_BYTES, SafetensorsFile, StoredTensor
from adapter_sync.validation.words import quoted

Bytes: TypeAlias = npt.NDArray[np.uint8]
_PIECE_BYTES = 1024 * 1024
# A number is NaN or infinite exactly when all its exponent bits are set; looking at the bits works
# for bfloat16 too, which numpy does not know.
_EXPONENT_BITS: Mapping[str, int] = {"F32": 0x7F80_0000, "F16": 0x7C00, "BF16": 0x7F80}


def check_finite(file: SafetensorsFile) -> None:
    """Raises InvalidAdapterError for the first tensor that holds NaN or infinity."""
    # The same memory for every piece: with arrays of its own for each, most of the time went into
    # the kernel's handing out of pages.
    buffers = np.empty(_PIECE_BYTES, np.uint8), np.empty(_PIECE_BYTES, np.uint8)
    # Read, not mapped: mapped pages would count as this process's memory, all of them.
    with file.path.open("rb") as data:
        for tensor in file.tensors:
            index = _first_not_finite(data, tensor, *buffers)
            if index is not None:
                place = tuple(int(axis) for axis in np.unravel_index(index, tensor.shape))
                raise InvalidAdapterError(
                    f"The tensor {quoted(tensor.name)} holds NaN or infinity at {place}, expected "
                    "finite numbers only."
                )


def _first_not_finite(
    data: BufferedReader, tensor: StoredTensor, piece: Bytes, scratch: Bytes
) -> int | None:
    kind, exponent = f"<u{ITEM_BYTES[tensor.dtype]}", _EXPONENT_BITS[tensor.dtype]
    data.seek(tensor.begin)
    for begin in range(tensor.begin, tensor.end, _PIECE_BYTES):
        size = min(_PIECE_BYTES, tensor.end - begin)
        data.readinto(piece[:size].data)
        bits = np.bitwise_and(piece[:size].view(kind), exponent, out=scratch[:size].view(kind))
        if bits.max() == exponent:
            return (begin - tensor.begin) // bits.itemsize + int((bits == exponent).argmax())
    return None
