"""Requests' bodies are checked in OpenAI's words before the engine sees them."""

import json
from typing import Any

import pytest

from gateway.errors import InvalidRequestError
from gateway.inference.endpoints import INFERENCE_ENDPOINTS, InferenceRequest, parse_request
from gateway.inference.fields import FORBIDDEN_FIELDS

MESSAGES = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "f"}}


ENDPOINTS = {endpoint.path: endpoint for endpoint in INFERENCE_ENDPOINTS}
CHAT = ENDPOINTS["/v1/chat/completions"]


def _parse(**fields: Any) -> InferenceRequest:
    body = {"model": "base", "messages": MESSAGES, **fields}
    return parse_request(CHAT, json.dumps(body).encode())


def _refusal(**fields: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        _parse(**fields)
    return caught.value


def test_a_plain_request_passes_whole() -> None:
    request = _parse(stream=True, temperature=0.5, some_new_field={"a": [1]})
    assert (request.requested_model, request.stream) == ("base", True)
    assert request.body["some_new_field"] == {"a": [1]}


def test_null_is_the_same_as_absent() -> None:
    names = ("stream", "stream_options", "n", "stop", "logprobs", "top_logprobs", "tools")
    request = _parse(tool_choice=None, **dict.fromkeys(names))
    assert request.stream is False


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff\xfe{}",
        b'{"model": NaN}',
        b'{"temperature": Infinity}',
        b"[" * 100_000,
        b'{"seed": ' + b"9" * 10_000 + b"}",
    ],
)
def test_what_is_not_json_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="not valid JSON"):
        parse_request(CHAT, raw)


@pytest.mark.parametrize("raw", [b"[]", b"null", b'"text"', b"1"])
def test_what_is_not_an_object_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="expected a JSON object"):
        parse_request(CHAT, raw)


@pytest.mark.parametrize("name", ["model", "messages"])
@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_field_is_named(name: str, value: object) -> None:
    error = _refusal(**{name: value})
    assert (error.param, error.code) == (name, "missing_required_parameter")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 1}, "model"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": ["Hello"]}, "messages[0]"),
        ({"stream": "true"}, "stream"),
        ({"n": "2"}, "n"),
        ({"n": True}, "n"),
        ({"n": 1.5}, "n"),
        ({"top_logprobs": "5", "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 5, "logprobs": 1}, "logprobs"),
        ({"tools": {}}, "tools"),
        ({"stream_options": True, "stream": True}, "stream_options"),
    ],
)
def test_a_wrong_type_is_named(fields: dict[str, Any], param: str) -> None:
    error = _refusal(**fields)
    assert (error.param, error.code) == (param, "invalid_type")


@pytest.mark.parametrize("name", sorted(FORBIDDEN_FIELDS))
@pytest.mark.parametrize("value", ["x", None])
def test_a_field_that_is_not_for_clients_is_refused(name: str, value: object) -> None:
    error = _refusal(**{name: value})
    assert (error.param, error.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"n": 0}, "n", "integer_below_min_value"),
        ({"n": 129}, "n", "integer_above_max_value"),
        ({"stop": list("abcde")}, "stop", "array_above_max_length"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs", "integer_below_min_value"),
        ({"top_logprobs": 1}, "top_logprobs", None),
        ({"logprobs": False, "top_logprobs": 0}, "top_logprobs", None),
        ({"stream_options": {"include_usage": True}}, "stream_options", None),
        ({"stream_options": {}, "stream": False}, "stream_options", None),
        ({"tools": []}, "tools", "empty_array"),
        ({"messages": []}, "messages", "empty_array"),
        ({"tool_choice": "auto"}, "tool_choice", None),
    ],
)
def test_a_value_over_a_limit_is_refused(
    fields: dict[str, Any], param: str, code: str | None
) -> None:
    error = _refusal(**fields)
    assert (error.param, error.code) == (param, code)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1},
        {"n": 128},
        {"stop": list("abcd")},
        {"stop": "one"},
        {"logprobs": True, "top_logprobs": 20},
        {"logprobs": True, "top_logprobs": 0},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"tools": [TOOL], "tool_choice": "required"},
    ],
)
def test_a_value_at_a_limit_passes(fields: dict[str, Any]) -> None:
    assert fields.items() <= _parse(**fields).body.items()


GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "Once"},
    "/v1/responses": {"input": "Hello"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 5},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
    "/v1/embeddings": {"input": ["Hello", "there"]},
    "/tokenize": {"prompt": "Hello"},
    "/detokenize": {"tokens": [1, 2]},
}


def _parse_for(path: str, fields: dict[str, Any]) -> InferenceRequest:
    body = {"model": "base", **fields}
    return parse_request(ENDPOINTS[path], json.dumps(body).encode())


@pytest.mark.parametrize("path", sorted(ENDPOINTS))
def test_every_endpoint_passes_a_plain_request_on_whole(path: str) -> None:
    request = _parse_for(path, GOOD[path])
    assert request.body == {"model": "base", **GOOD[path]}
    assert not request.stream


@pytest.mark.parametrize("path", sorted(ENDPOINTS))
@pytest.mark.parametrize("name", sorted(FORBIDDEN_FIELDS))
def test_no_endpoint_takes_a_field_that_is_not_for_clients(path: str, name: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        _parse_for(path, {**GOOD[path], name: "x"})
    assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize("path", sorted(ENDPOINTS))
def test_every_endpoint_names_what_is_missing(path: str) -> None:
    for name in GOOD[path]:
        with pytest.raises(InvalidRequestError) as caught:
            _parse_for(path, {**GOOD[path], name: None})
        assert caught.value.code == "missing_required_parameter"


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": ""}),
        ("/v1/completions", {"prompt": [1, 2, 3]}),
        ("/v1/completions", {"prompt": [[1, 2], [3]]}),
        ("/v1/completions", {"suffix": ""}),
        ("/v1/completions", {"best_of": 2, "n": 2}),
        ("/v1/responses", {"tools": [{"type": "function", "name": "f"}], "store": True}),
        ("/v1/responses", {"previous_response_id": None, "background": False}),
        ("/v1/embeddings", {"input": [1] * 3000}),
        ("/v1/embeddings", {"messages": MESSAGES, "input": None}),
        ("/tokenize", {"prompt": ""}),
        ("/tokenize", {"messages": MESSAGES, "prompt": None}),
        ("/detokenize", {"tokens": []}),
    ],
)
def test_what_the_engine_can_answer_passes(path: str, fields: dict[str, Any]) -> None:
    assert _parse_for(path, {**GOOD[path], **fields}).requested_model == "base"


@pytest.mark.parametrize(
    ("path", "fields", "param", "code"),
    [
        ("/v1/completions", {"prompt": []}, "prompt", "empty_array"),
        ("/v1/completions", {"prompt": 5}, "prompt", "invalid_type"),
        ("/v1/completions", {"prompt": ["a"] * 2049}, "prompt", "array_above_max_length"),
        ("/v1/completions", {"suffix": "end"}, "suffix", "unsupported_parameter"),
        ("/v1/completions", {"best_of": 3, "n": 2}, "best_of", "unsupported_parameter"),
        ("/v1/completions", {"n": 129}, "n", "integer_above_max_value"),
        ("/v1/completions", {"stream_options": {}}, "stream_options", None),
        ("/v1/responses", {"input": []}, "input", "empty_array"),
        ("/v1/responses", {"previous_response_id": "resp_1"}, "previous_response_id", None),
        ("/v1/responses", {"background": True}, "background", None),
        ("/v1/responses", {"conversation": "conv_1"}, "conversation", None),
        ("/v1/responses", {"tools": [{"type": "mcp"}]}, "tools[0].type", None),
        ("/v1/responses", {"tools": [5]}, "tools[0].type", None),
        ("/v1/responses", {"tools": [{"type": {}}]}, "tools[0].type", None),
        ("/v1/responses", {"tools": 0}, "tools", "invalid_type"),
        ("/v1/messages", {"messages": []}, "messages", "empty_array"),
        ("/v1/embeddings", {"input": []}, "input", "empty_array"),
        ("/v1/embeddings", {"input": ["a"] * 2049}, "input", "array_above_max_length"),
        ("/v1/embeddings", {"input": {}}, "input", "invalid_type"),
        ("/detokenize", {"tokens": "1"}, "tokens", "invalid_type"),
    ],
)
def test_what_the_engine_would_not_answer_rightly_is_refused(
    path: str, fields: dict[str, Any], param: str, code: str | None
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        _parse_for(path, {**GOOD[path], **fields})
    assert caught.value.param == param
    assert caught.value.code == code or (code is None and caught.value.code != "invalid_type")


def test_only_what_streams_can_be_asked_for_a_stream() -> None:
    streaming = {
        path for path in ENDPOINTS if _parse_for(path, {**GOOD[path], "stream": True}).stream
    }
    assert streaming == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
    }
