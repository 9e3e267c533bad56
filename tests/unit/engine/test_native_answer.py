"""vLLM's outputs become the tensors of NVIDIA's vLLM backend."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.native_answer import NativeAnswer
from engine.native_request import RETURNS, NativeRequest


@dataclass(frozen=True, slots=True)
class Logprob:
    logprob: float
    rank: int
    decoded_token: str


@dataclass(frozen=True, slots=True)
class Choice:
    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None


@dataclass(frozen=True, slots=True)
class Output:
    outputs: list[Choice]
    prompt_token_ids: list[int] = field(default_factory=lambda: [1, 2, 3])
    finished: bool = False


def answer(*returns: str, choices: int = 1, stream: bool = False, **sampling: int) -> NativeAnswer:
    request = NativeRequest(
        prompt="Once ",
        stream=stream,
        prepend_prompt=not stream,
        lora_name=None,
        sampling=sampling,
        structured_outputs=None,
        returns=frozenset(returns),
    )
    return NativeAnswer(request, choices=choices)


def texts(tensor: Any) -> list[str]:
    return [element.decode() for element in tensor]


def test_the_text_comes_with_its_prompt_and_nothing_else() -> None:
    tensors = answer().tensors(Output([Choice(0, "upon", [7])]))
    assert tensors.keys() == {"text_output"}
    assert texts(tensors["text_output"]) == ["Once upon"]


def test_a_stream_has_only_what_is_new() -> None:
    streamed = answer("return_num_output_tokens", stream=True)
    tensors = streamed.tensors(Output([Choice(0, "upon", [7, 8])]))
    assert texts(tensors["text_output"]) == ["upon"]
    assert tensors["num_output_tokens"].tolist() == [2]


def test_everything_that_is_wanted_is_there_in_its_type() -> None:
    logprobs = [{7: Logprob(-0.5, 1, "upon")}]
    tensors = answer(*RETURNS, logprobs=1).tensors(
        Output([Choice(0, "upon", [7], "stop", -0.5, logprobs)])
    )
    assert texts(tensors["finish_reason"]) == ["stop"]
    assert tensors["cumulative_logprob"].dtype == np.float32
    assert tensors["cumulative_logprob"].tolist() == [-0.5]
    told = {"7": {"logprob": -0.5, "rank": 1, "decoded_token": "upon"}}
    assert json.loads(tensors["logprobs"][0]) == [told]
    for name, value in (("num_input_tokens", 3), ("num_output_tokens", 1)):
        assert tensors[name].dtype == np.uint32
        assert tensors[name].tolist() == [value]


def test_logprobs_that_were_not_asked_for_are_null() -> None:
    # vLLM gives some also when only their sum is wanted.
    some = [{7: Logprob(-0.5, 1, "upon")}]
    tensors = answer("return_logprobs").tensors(Output([Choice(0, "upon", [7], None, -0.5, some)]))
    assert texts(tensors["logprobs"]) == ["null"]


def test_of_several_streamed_choices_each_keeps_its_place() -> None:
    streamed = answer("return_finish_reason", "return_cumulative_logprob", choices=2, stream=True)
    first = streamed.tensors(Output([Choice(1, "b", [8], None, -2.0)]))
    assert texts(first["text_output"]) == ["", "b"]
    assert texts(first["finish_reason"]) == ["None", "None"]
    second = streamed.tensors(Output([Choice(0, "a", [7], "length", -1.0)]))
    assert texts(second["text_output"]) == ["a", ""]
    assert texts(second["finish_reason"]) == ["length", "None"]
    assert second["cumulative_logprob"].tolist() == [-1.0, -2.0]


def test_half_a_character_is_no_error() -> None:
    tensors = answer(stream=True).tensors(Output([Choice(0, "\ud83d", [7])]))
    assert texts(tensors["text_output"]) == ["?"]
