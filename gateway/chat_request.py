"""Reading a chat completion's body: what must be there, and what a client may not ask.

Everything else in it is validated by vLLM. The words and codes are OpenAI's.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, NoneType
from typing import Any, NoReturn

from gateway.errors import InvalidRequestError

# Set by the gateway, or a way into the engine: another tenant's cache, the scheduler, templates
# run as code, raw embeddings.
FORBIDDEN_FIELDS = frozenset(
    {
        "cache_salt",
        "chat_template",
        "chat_template_kwargs",
        "ec_transfer_params",
        "kv_transfer_params",
        "lora_name",
        "media_io_kwargs",
        "mm_processor_kwargs",
        "priority",
        "prompt_embeds",
        "request_id",
        "vllm_xargs",
    }
)
MAX_CHOICES = 128
MAX_STOPS = 4
MAX_TOP_LOGPROBS = 20
_KINDS: Mapping[type, str] = MappingProxyType(
    {
        NoneType: "null",
        bool: "a boolean",
        int: "an integer",
        float: "a decimal number",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A checked request; `body` is the client's whole body."""

    requested_model: str
    stream: bool
    body: Mapping[str, Any]


def parse_chat_request(raw: bytes) -> ChatRequest:
    """Read the body. Raises InvalidRequestError, which names the field at fault."""
    body = _json_object(raw)
    requested_model = _requested_model(body)
    _check_messages(body)
    _check_forbidden(body)
    stream = _flag(body, "stream")
    _check_stream_options(body, stream=stream)
    _check_range(body, "n", 1, MAX_CHOICES)
    _check_stop(body)
    _check_logprobs(body)
    _check_tools(body)
    return ChatRequest(requested_model=requested_model, stream=stream, body=body)


def _json_object(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(
            "We could not parse the JSON body of your request. The API expects a JSON payload, "
            "but what was sent was not valid JSON.",
            param=None,
        ) from error
    if not isinstance(body, dict):
        raise InvalidRequestError(
            f"Invalid body: expected a JSON object, but got {_kind(body)} instead.",
            param=None,
            code="invalid_type",
        )
    return body


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _requested_model(body: Mapping[str, Any]) -> str:
    requested_model = _required(body, "model")
    if not isinstance(requested_model, str):
        raise _wrong_type("model", "a string", requested_model)
    return requested_model


def _check_messages(body: Mapping[str, Any]) -> None:
    messages = _required(body, "messages")
    if not isinstance(messages, list):
        raise _wrong_type("messages", "an array of objects", messages)
    if not messages:
        raise _empty_array("messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _wrong_type(f"messages[{index}]", "an object", message)


def _check_forbidden(body: Mapping[str, Any]) -> None:
    for name in sorted(FORBIDDEN_FIELDS & body.keys()):
        raise InvalidRequestError(
            f"Unsupported parameter: '{name}' can't be set by a client.",
            param=name,
            code="unsupported_parameter",
        )


def _check_stream_options(body: Mapping[str, Any], *, stream: bool) -> None:
    options = body.get("stream_options")
    if options is None:
        return
    if not isinstance(options, dict):
        raise _wrong_type("stream_options", "an object", options)
    if not stream:
        raise _only_with("stream_options", "'stream' is enabled")


def _check_stop(body: Mapping[str, Any]) -> None:
    stop = body.get("stop")
    if isinstance(stop, list) and len(stop) > MAX_STOPS:
        raise InvalidRequestError(
            f"Invalid 'stop': array too long. Expected an array with maximum length {MAX_STOPS}, "
            f"but got an array with length {len(stop)} instead.",
            param="stop",
            code="array_above_max_length",
        )


def _check_logprobs(body: Mapping[str, Any]) -> None:
    _check_range(body, "top_logprobs", 0, MAX_TOP_LOGPROBS)
    if body.get("top_logprobs") is not None and not _flag(body, "logprobs"):
        raise _only_with("top_logprobs", "'logprobs' is enabled")


def _check_tools(body: Mapping[str, Any]) -> None:
    tools = body.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise _wrong_type("tools", "an array of objects", tools)
    if tools == []:
        raise _empty_array("tools")
    if tools is None and body.get("tool_choice") is not None:
        raise _only_with("tool_choice", "'tools' are specified")


def _check_range(body: Mapping[str, Any], name: str, lowest: int, highest: int) -> None:
    value = body.get(name)
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong_type(name, "an integer", value)
    if value < lowest:
        raise InvalidRequestError(
            f"Invalid '{name}': integer below minimum value. Expected a value >= {lowest}, but "
            f"got {value} instead.",
            param=name,
            code="integer_below_min_value",
        )
    if value > highest:
        raise InvalidRequestError(
            f"Invalid '{name}': integer above maximum value. Expected a value <= {highest}, but "
            f"got {value} instead.",
            param=name,
            code="integer_above_max_value",
        )


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise _wrong_type(name, "a boolean", value)
    return value


def _required(body: Mapping[str, Any], name: str) -> object:
    if body.get(name) in (None, ""):
        raise InvalidRequestError(
            f"Missing required parameter: '{name}'.",
            param=name,
            code="missing_required_parameter",
        )
    return body[name]


def _wrong_type(name: str, expected: str, value: object) -> InvalidRequestError:
    return InvalidRequestError(
        f"Invalid type for '{name}': expected {expected}, but got {_kind(value)} instead.",
        param=name,
        code="invalid_type",
    )


def _empty_array(name: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Invalid '{name}': empty array. Expected an array with minimum length 1, but got an "
        "empty array instead.",
        param=name,
        code="empty_array",
    )


def _only_with(name: str, condition: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"The '{name}' parameter is only allowed when {condition}.", param=name
    )


def _kind(value: object) -> str:
    return _KINDS[type(value)]
