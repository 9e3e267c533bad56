"""vLLM's outputs in the tensors of NVIDIA's vLLM backend. Imports neither vllm nor Triton.

https://github.com/triton-inference-server/vllm_backend/blob/main/docs/additional_outputs.md
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.native_request import NativeRequest

Tensors = Mapping[str, NDArray[Any]]


class NativeAnswer:
    """One request's answer: `n` choices, each an element of every tensor.

    A stream's tensors hold what is new, an answer in one piece everything.
    """

    def __init__(self, request: NativeRequest, *, choices: int) -> None:
        self._request = request
        self._choices = choices
        self._cumulative = [0.0] * choices

    def tensors(self, output: Any) -> Tensors:
        """The tensors of one of vLLM's RequestOutputs, `text_output` and those that are wanted."""
        # Of a stream with several choices each output has only those that went on.
        by_index = {choice.index: choice for choice in output.outputs}
        choices = [by_index.get(index) for index in range(self._choices)]
        prompt = self._request.prompt if self._request.prepend_prompt else ""
        texts = _strings([prompt + (choice.text if choice else "") for choice in choices])
        more = self._more(output, choices)
        wanted = {name: more[name] for name in more if f"return_{name}" in self._request.returns}
        return {"text_output": texts, **wanted}

    def _more(self, output: Any, choices: list[Any]) -> Tensors:
        for index, choice in enumerate(choices):
            if choice is not None and choice.cumulative_logprob is not None:
                self._cumulative[index] = choice.cumulative_logprob
        counts = [len(choice.token_ids) if choice else 0 for choice in choices]
        reasons = [str(choice.finish_reason if choice else None) for choice in choices]
        return {
            "finish_reason": _strings(reasons),
            "cumulative_logprob": np.array(self._cumulative, dtype=np.float32),
            "logprobs": _strings([self._logprobs(choice) for choice in choices]),
            "num_input_tokens": np.array([len(output.prompt_token_ids or ())], dtype=np.uint32),
            "num_output_tokens": np.array(counts, dtype=np.uint32),
        }

    def _logprobs(self, choice: Any) -> str:
        """A JSON array with an object of tokens for each position; null when not asked for."""
        asked = "logprobs" in self._request.sampling
        if not asked or choice is None or choice.logprobs is None:
            return "null"
        return json.dumps([_position(tokens) for tokens in choice.logprobs])


def _position(tokens: Mapping[int, Any]) -> dict[str, Any]:
    return {
        str(token_id): {
            "logprob": each.logprob,
            "rank": each.rank,
            "decoded_token": each.decoded_token,
        }
        for token_id, each in tokens.items()
    }


def _strings(texts: list[str]) -> NDArray[Any]:
    # A lone surrogate, which half a character may be, has no UTF-8.
    return np.array([text.encode(errors="replace") for text in texts], dtype=np.object_)
