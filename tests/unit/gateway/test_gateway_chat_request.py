"""A chat completion's body is checked in OpenAI's words before the engine sees it."""

import json
from typing import Any

import pytest

from gateway.chat_request import FORBIDDEN_FIELDS, parse_chat_request
from gateway.errors import InvalidRequestError

MESSAGES = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "f"}}


def _parse(**fields: Any) -> Any:
    body = {"model": "base", "messages": MESSAGES, **fields}
    return parse_chat_request(json.dumps(body).encode())


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
        parse_chat_request(raw)


@pytest.mark.parametrize("raw", [b"[]", b"null", b'"text"', b"1"])
def test_what_is_not_an_object_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="expected a JSON object"):
        parse_chat_request(raw)


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
