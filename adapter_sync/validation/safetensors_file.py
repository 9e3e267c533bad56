"""The header of a safetensors file, read by hand.

The safetensors library accepts duplicate keys and headers of 100 MB, so what it reads may not be
what was checked; here every byte of the file belongs to exactly one tensor of a known type.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from adapter_sync.errors import InvalidAdapterError
from adapter_sync.validation.strict_json import parse_object
from adapter_sync.validation.words import quoted

MAX_HEADER_BYTES = 1024 * 1024
MAX_TENSORS = 20_000
ITEM_BYTES: Mapping[str, int] = {"F32": 4, "F16": 2, "BF16": 2}
_LENGTH_BYTES = 8
_MAX_DIMENSIONS = 8
_MAX_DIMENSION = 2**40
_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor's place: bytes `begin` to `end` of the file, counted from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsFile:
    """A file's tensors, in the order of their bytes, and its free-form metadata."""

    path: Path
    tensors: tuple[StoredTensor, ...]
    metadata: Mapping[str, str]


def read_safetensors(path: Path) -> SafetensorsFile:
    """Read and check the header; no tensor's data.

    Raises:
        InvalidAdapterError: the file is not safetensors, or is laid out in a way that readers
            may disagree about.

    """
    size_bytes = path.stat().st_size
    text = _header_text(path, size_bytes)
    header = parse_object(text, what="The safetensors header", param="file")
    metadata = _metadata(header.pop("__metadata__", {}))
    if len(header) > MAX_TENSORS:
        raise InvalidAdapterError(
            f"The file holds {len(header)} tensors, at most {MAX_TENSORS} are allowed."
        )
    data_start = _LENGTH_BYTES + len(text)
    tensors = [_tensor(name, entry, data_start) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    _check_layout(tensors, data_start=data_start, size_bytes=size_bytes)
    return SafetensorsFile(path=path, tensors=tuple(tensors), metadata=metadata)


def _header_text(path: Path, size_bytes: int) -> bytes:
    with path.open("rb") as file:
        start = file.read(_LENGTH_BYTES)
        length = int.from_bytes(start, "little")
        if length > size_bytes - _LENGTH_BYTES:
            raise InvalidAdapterError(
                f"The file is not a safetensors file, or is cut off: it has {size_bytes} bytes and "
                f"starts with {start!r}, which would mean a header of {length} bytes."
            )
        if length > MAX_HEADER_BYTES:
            raise InvalidAdapterError(
                f"The safetensors header has {length} bytes, at most {MAX_HEADER_BYTES} are "
                "allowed."
            )
        text = file.read(length)
    if not text.startswith(b"{"):
        raise InvalidAdapterError(
            f"The file is not a safetensors file: its header starts with {text[:8]!r}, "
            "expected '{'."
        )
    return text


def _metadata(value: object) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise InvalidAdapterError(
            f"The header's __metadata__ is {quoted(value)}, expected an object of strings."
        )
    return value


def _tensor(name: str, entry: object, data_start: int) -> StoredTensor:
    where = f"The tensor {quoted(name)}"
    if not isinstance(entry, dict) or set(entry) != _FIELDS:
        raise InvalidAdapterError(
            f"{where} is described by {quoted(entry)}, expected dtype, shape and data_offsets."
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise InvalidAdapterError(
            f"{where} has dtype {quoted(dtype)}, expected one of {', '.join(sorted(ITEM_BYTES))}."
        )
    if (
        not _are_sizes(shape)
        or len(shape) > _MAX_DIMENSIONS
        or max(shape, default=0) > (_MAX_DIMENSION)
    ):
        raise InvalidAdapterError(f"{where} has shape {quoted(shape)}, expected a list of sizes.")
    if not _are_sizes(offsets) or len(offsets) != len(("begin", "end")):
        raise InvalidAdapterError(
            f"{where} has data_offsets {quoted(offsets)}, expected [begin, end]."
        )
    begin, end = offsets
    expected = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != expected:
        raise InvalidAdapterError(
            f"{where} has data_offsets {quoted(offsets)}, expected {expected} bytes for shape "
            f"{tuple(shape)} of {dtype}."
        )
    return StoredTensor(
        name=name, dtype=dtype, shape=tuple(shape), begin=data_start + begin, end=data_start + end
    )


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_layout(tensors: Sequence[StoredTensor], *, data_start: int, size_bytes: int) -> None:
    position = data_start
    for tensor in tensors:
        if tensor.begin != position:
            raise InvalidAdapterError(
                f"The tensor {quoted(tensor.name)} begins at byte {quoted(tensor.begin)} of the "
                f"file, expected {position}: tensors must follow one another without holes or "
                "overlaps."
            )
        position = tensor.end
    if position != size_bytes:
        raise InvalidAdapterError(
            f"The tensors end at byte {position}, but the file has {size_bytes} bytes: it is cut "
            "off or has bytes that belong to no tensor."
        )
