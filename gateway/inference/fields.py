"""A request's fields: what every endpoint checks of them, in OpenAI's words and codes.

Each function raises InvalidRequestError, which names the field at fault. vLLM checks the rest.
"""

import json
from collections.abc import Mapping
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


def json_object(raw: bytes) -> dict[str, Any]:
    """The body, which has to be a JSON object."""
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


def requested_model(body: Mapping[str, Any]) -> str:
    """The client's `model`."""
    requested_model = required(body, "model")
    if not isinstance(requested_model, str):
        raise wrong_type("model", "a string", requested_model)
    return requested_model


def check_forbidden(body: Mapping[str, Any]) -> None:
    """No field that is not for clients."""
    for name in sorted(FORBIDDEN_FIELDS & body.keys()):
        raise unsupported(name, f"'{name}' can't be set by a client")


def check_object(body: Mapping[str, Any], name: str) -> None:
    """An object, if it is there. For fields that vLLM looks into before it checks their type."""
    if not isinstance(body.get(name), dict | None):
        raise wrong_type(name, "an object", body[name])


def check_stream_options(body: Mapping[str, Any], *, stream: bool) -> None:
    """An object, and only for a stream."""
    check_object(body, "stream_options")
    if body.get("stream_options") is not None and not stream:
        raise only_with("stream_options", "'stream' is enabled")


def check_length(body: Mapping[str, Any], name: str, longest: int) -> None:
    """No more elements than that, if it is an array."""
    value = body.get(name)
    if isinstance(value, list) and len(value) > longest:
        raise InvalidRequestError(
            f"Invalid '{name}': array too long. Expected an array with maximum length {longest}, "
            f"but got an array with length {len(value)} instead.",
            param=name,
            code="array_above_max_length",
        )


def check_range(body: Mapping[str, Any], name: str, lowest: int, highest: int) -> None:
    """An integer within the bounds, if it is there."""
    value = body.get(name)
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong_type(name, "an integer", value)
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


def flag(body: Mapping[str, Any], name: str) -> bool:
    """A boolean, false where it is absent or null."""
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise wrong_type(name, "a boolean", value)
    return value


def required(body: Mapping[str, Any], name: str, *, may_be_empty: bool = False) -> object:
    """What has to be there."""
    if body.get(name) is None or (body[name] == "" and not may_be_empty):
        raise InvalidRequestError(
            f"Missing required parameter: '{name}'.",
            param=name,
            code="missing_required_parameter",
        )
    return body[name]


def check_messages(body: Mapping[str, Any]) -> None:
    """An array of objects, at least one."""
    messages = required(body, "messages")
    if not isinstance(messages, list):
        raise wrong_type("messages", "an array of objects", messages)
    if not messages:
        raise empty_array("messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise wrong_type(f"messages[{index}]", "an object", message)


def unsupported(name: str, reason: str) -> InvalidRequestError:
    """The error of a field, or of a value, that this server does not serve."""
    return InvalidRequestError(
        f"Unsupported parameter: {reason}.", param=name, code="unsupported_parameter"
    )


def wrong_type(name: str, expected: str, value: object) -> InvalidRequestError:
    """The error of a value of another type."""
    return InvalidRequestError(
        f"Invalid type for '{name}': expected {expected}, but got {_kind(value)} instead.",
        param=name,
        code="invalid_type",
    )


def empty_array(name: str) -> InvalidRequestError:
    """The error of an array without elements."""
    return InvalidRequestError(
        f"Invalid '{name}': empty array. Expected an array with minimum length 1, but got an "
        "empty array instead.",
        param=name,
        code="empty_array",
    )


def only_with(name: str, condition: str) -> InvalidRequestError:
    """The error of a field that needs another."""
    return InvalidRequestError(
        f"The '{name}' parameter is only allowed when {condition}.", param=name
    )


def _kind(value: object) -> str:
    return _KINDS[type(value)]
