"""A request in the tensors of NVIDIA's vLLM backend, checked. Imports neither vllm nor Triton.

The tensors and their meaning: https://github.com/triton-inference-server/vllm_backend. What that
backend lets pass silently or answers without a reason is refused here in words.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

RETURNS = (
    "return_finish_reason",
    "return_cumulative_logprob",
    "return_logprobs",
    "return_num_input_tokens",
    "return_num_output_tokens",
)
FLAGS = ("stream", "exclude_input_in_output", *RETURNS)
INPUTS = ("text_input", "image", "sampling_parameters", *FLAGS)
"""The names of the tensors that a request may have."""
_STRUCTURED = ("structured_outputs", "guided_decoding")
"""The same constraints by vLLM's name and by the one that it had before 0.11."""

Tensors = Mapping[str, NDArray[Any]]


class NativeRequestError(ValueError):
    """The request is wrong; the message names the tensor, or the sampling parameter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeRequest:
    """What is asked.

    `sampling` is for vLLM's SamplingParams, `structured_outputs` for its StructuredOutputsParams.
    `returns` are those of RETURNS that are wanted beside the text.
    """

    prompt: str
    stream: bool
    prepend_prompt: bool
    lora_name: str | None
    sampling: Mapping[str, Any]
    structured_outputs: Mapping[str, Any] | None
    returns: frozenset[str]


def parse_native_request(
    tensors: Tensors, parameters: str, *, sampling_types: Mapping[str, Any]
) -> NativeRequest:
    """Check the tensors that are there.

    `parameters` is the JSON of the request's own parameters, which count where there is no tensor
    `sampling_parameters`. `sampling_types` are the types of the sampling parameters by name.
    Raises NativeRequestError.
    """
    if len(tensors.get("image", ())):
        raise NativeRequestError("image: this model reads text only")
    flags = {name: _flag(tensors, name) for name in FLAGS}
    stream = bool(flags["stream"])
    excluded = flags["exclude_input_in_output"]
    if stream and excluded is False:
        raise NativeRequestError(
            "exclude_input_in_output: must be true, or left out, when streaming"
        )
    asked = _sampling(tensors, parameters)
    lora_name = asked.pop("lora_name", None)
    if lora_name is not None and not isinstance(lora_name, str):
        raise NativeRequestError("sampling_parameters: lora_name must be a string")
    structured = _structured_outputs(asked)
    return NativeRequest(
        prompt=_text(tensors, "text_input"),
        stream=stream,
        prepend_prompt=not (stream or excluded),
        lora_name=lora_name,
        sampling={name: _value(name, each, sampling_types) for name, each in asked.items()},
        structured_outputs=structured,
        returns=frozenset(name for name in RETURNS if flags[name]),
    )


def _flag(tensors: Tensors, name: str) -> bool | None:
    tensor = tensors.get(name)
    if tensor is None:
        return None
    if tensor.dtype != np.bool_ or tensor.size != 1:
        raise NativeRequestError(f"{name}: expected one BOOL")
    return bool(tensor.flat[0])


def _text(tensors: Tensors, name: str) -> str:
    tensor = tensors[name]
    if tensor.size != 1:
        raise NativeRequestError(f"{name}: expected one string, got {tensor.size}")
    element = tensor.flat[0]
    if isinstance(element, str):
        return element
    try:
        return bytes(element).decode()
    except UnicodeDecodeError as error:
        raise NativeRequestError(f"{name}: not UTF-8: {error}") from error


def _sampling(tensors: Tensors, parameters: str) -> dict[str, Any]:
    given = "sampling_parameters" in tensors
    text = _text(tensors, "sampling_parameters") if given else parameters
    try:
        document = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise NativeRequestError(f"sampling_parameters: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise NativeRequestError("sampling_parameters: expected a JSON object")
    # None stands for vLLM's default, as in its own API.
    return {
        name: value
        for name, value in document.items()
        if value is not None and (given or not name.startswith("triton_"))
    }


def _structured_outputs(asked: dict[str, Any]) -> Mapping[str, Any] | None:
    found = [asked.pop(name) for name in _STRUCTURED if name in asked]
    if not found:
        return None
    if len(found) > 1:
        raise NativeRequestError(
            f"sampling_parameters: {' and '.join(_STRUCTURED)} are one thing: give one of them"
        )
    (value,) = found
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise NativeRequestError(
                f"sampling_parameters: structured_outputs is not JSON: {error}"
            ) from error
    if not isinstance(value, dict):
        raise NativeRequestError("sampling_parameters: structured_outputs must be an object")
    # The old name's choice of a backend is the operator's now.
    return {name: each for name, each in value.items() if name != "backend"}


def _value(name: str, value: object, types: Mapping[str, Any]) -> Any:
    if name not in types:
        known = ", ".join(sorted([*types, "lora_name", *_STRUCTURED]))
        raise NativeRequestError(f"sampling_parameters: there is no {name!r}; there are: {known}")
    try:
        # Not strict: vllm_backend's own sample client sends its numbers as strings.
        return msgspec.convert(value, types[name], strict=False)
    except (msgspec.ValidationError, TypeError) as error:
        raise NativeRequestError(f"sampling_parameters: {name}: {error}") from error
