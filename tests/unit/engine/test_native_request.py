"""Requests in the tensors of NVIDIA's vLLM backend: what passes, and the words of what does not."""

import json
from typing import Any

import numpy as np
import pytest

from engine.native_request import RETURNS, NativeRequest, NativeRequestError, parse_native_request

TYPES = {
    "n": int,
    "temperature": float,
    "max_tokens": int | None,
    "stop": str | list[str] | None,
    "ignore_eos": bool,
    "logit_bias": dict[int, float] | None,
}


def strings(*texts: str | bytes) -> Any:
    elements = [text if isinstance(text, bytes) else text.encode() for text in texts]
    return np.array(elements, dtype=np.object_)


def flag(*, value: bool) -> Any:
    return np.array([value])


def parse(parameters: str = "{}", **tensors: Any) -> NativeRequest:
    given = {"text_input": strings("Hello"), **tensors}
    return parse_native_request(given, parameters, sampling_types=TYPES)


def sampling(**fields: Any) -> Any:
    return strings(json.dumps(fields))


def test_a_text_alone_is_answered_whole_with_its_prompt() -> None:
    request = parse()
    assert (request.prompt, request.stream, request.prepend_prompt) == ("Hello", False, True)
    assert (request.lora_name, request.sampling, request.returns) == (None, {}, frozenset())


def test_numbers_may_come_as_strings_as_the_sample_client_sends_them() -> None:
    asked = sampling(temperature="0.1", max_tokens="100", ignore_eos="true", n=2)
    request = parse(sampling_parameters=asked)
    assert request.sampling == {"temperature": 0.1, "max_tokens": 100, "ignore_eos": True, "n": 2}


def test_the_adapter_and_the_constraints_are_set_apart() -> None:
    asked = sampling(lora_name="adp_1", structured_outputs='{"choice": ["a"]}', stop=["x"])
    request = parse(sampling_parameters=asked)
    assert request.lora_name == "adp_1"
    assert request.structured_outputs == {"choice": ["a"]}
    assert request.sampling == {"stop": ["x"]}
    old = parse(sampling_parameters=sampling(guided_decoding={"regex": "a+", "backend": "auto"}))
    assert old.structured_outputs == {"regex": "a+"}


def test_the_requests_own_parameters_count_where_there_is_no_tensor() -> None:
    own = json.dumps({"temperature": "0", "triton_enable_empty_final_response": True})
    assert parse(own).sampling == {"temperature": 0.0}
    assert parse(own, sampling_parameters=sampling(n=2)).sampling == {"n": 2}
    assert parse("").sampling == {}


def test_null_is_the_default() -> None:
    assert parse(sampling_parameters=sampling(temperature=None, lora_name=None)).sampling == {}


def test_a_stream_has_no_prompt_in_its_output() -> None:
    assert not parse(stream=flag(value=True)).prepend_prompt
    assert not parse(exclude_input_in_output=flag(value=True)).prepend_prompt
    assert parse(exclude_input_in_output=flag(value=False)).prepend_prompt


def test_what_is_to_be_returned_is_known() -> None:
    wanted = {name: flag(value=True) for name in RETURNS}
    assert parse(**wanted).returns == frozenset(RETURNS)
    assert parse(return_logprobs=flag(value=False)).returns == frozenset()


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"image": strings("aGVsbG8=")}, "image: this model reads text only"),
        ({"text_input": strings("a", "b")}, "text_input: expected one string"),
        ({"text_input": strings(b"\xff")}, "text_input: not UTF-8"),
        ({"stream": np.array([1])}, "stream: expected one BOOL"),
        ({"return_logprobs": np.array([True, True])}, "return_logprobs: expected one BOOL"),
        (
            {"stream": flag(value=True), "exclude_input_in_output": flag(value=False)},
            "exclude_input_in_output: must be true",
        ),
        ({"sampling_parameters": strings("{")}, "sampling_parameters: not JSON"),
        ({"sampling_parameters": strings("[]")}, "sampling_parameters: expected a JSON object"),
        ({"sampling_parameters": strings("[" * 100_000)}, "sampling_parameters: not JSON"),
        ({"sampling_parameters": sampling(temprature=1)}, "there is no 'temprature'; there are"),
        ({"sampling_parameters": sampling(temperature="hot")}, "temperature: Expected `float`"),
        ({"sampling_parameters": sampling(n=1.5)}, "n: Expected `int`"),
        ({"sampling_parameters": sampling(stop=[1])}, "stop: Expected `str`"),
        ({"sampling_parameters": sampling(lora_name=5)}, "lora_name must be a string"),
        ({"sampling_parameters": sampling(structured_outputs="{")}, "structured_outputs is not"),
        ({"sampling_parameters": sampling(structured_outputs=5)}, "structured_outputs must be"),
        (
            {"sampling_parameters": sampling(structured_outputs={}, guided_decoding={})},
            "structured_outputs and guided_decoding are one thing",
        ),
    ],
)
def test_what_is_wrong_is_named(tensors: dict[str, Any], words: str) -> None:
    with pytest.raises(NativeRequestError) as caught:
        parse(**tensors)
    assert words in str(caught.value)


def test_no_adapter_is_told_of_in_a_refusal() -> None:
    with pytest.raises(NativeRequestError) as caught:
        parse(sampling_parameters=sampling(nonsense=1))
    assert "adp_" not in str(caught.value)
