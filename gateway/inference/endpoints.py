"""The endpoints that ask an engine, and what each checks of a request before the engine sees it.

Only what OpenAI or Anthropic refuse and vLLM would not, what would break the tenants' isolation,
and what vLLM would silently leave out. vLLM, which has the request's class, checks the rest.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.inference.fields import (
    MAX_CHOICES,
    MAX_STOPS,
    check_forbidden,
    check_length,
    check_messages,
    check_range,
    check_stream_options,
    empty_array,
    flag,
    json_object,
    only_with,
    requested_model,
    required,
    unsupported,
    wrong_type,
)

MAX_TOP_LOGPROBS = 20
MAX_INPUTS = 2048
"""Of an embeddings request, as OpenAI has it; and of a completions request, which has no limit."""
RESPONSE_TOOLS = frozenset({"function", "custom", "namespace"})

Check = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A path and the engine's name for it. What `streams` may be asked for a stream."""

    path: str
    name: str
    check: Check
    streams: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRequest:
    """A checked request; `body` is the client's whole body."""

    requested_model: str
    stream: bool
    body: Mapping[str, Any]


def parse_request(endpoint: Endpoint, raw: bytes) -> InferenceRequest:
    """Read the body. Raises InvalidRequestError, which names the field at fault."""
    body = json_object(raw)
    model = requested_model(body)
    check_forbidden(body)
    stream = endpoint.streams and flag(body, "stream")
    endpoint.check(body)
    return InferenceRequest(requested_model=model, stream=stream, body=body)


def _check_chat(body: Mapping[str, Any]) -> None:
    check_messages(body)
    _check_generation(body)
    check_range(body, "top_logprobs", 0, MAX_TOP_LOGPROBS)
    if body.get("top_logprobs") is not None and not flag(body, "logprobs"):
        raise only_with("top_logprobs", "'logprobs' is enabled")
    _check_tools(body)


def _check_completion(body: Mapping[str, Any]) -> None:
    prompt = required(body, "prompt", may_be_empty=True)
    if not isinstance(prompt, str | list):
        raise wrong_type("prompt", "a string or an array", prompt)
    if prompt == []:
        raise empty_array("prompt")
    if _is_batch(prompt):
        check_length(body, "prompt", MAX_INPUTS)
    if body.get("suffix") not in (None, ""):
        raise unsupported("suffix", "'suffix' is not supported by this model")
    _check_generation(body)
    check_range(body, "best_of", 1, MAX_CHOICES)
    if (body.get("best_of") or 1) > (body.get("n") or 1):
        raise unsupported("best_of", "'best_of' can't be larger than 'n'")


def _check_generation(body: Mapping[str, Any]) -> None:
    check_stream_options(body, stream=flag(body, "stream"))
    check_range(body, "n", 1, MAX_CHOICES)
    check_length(body, "stop", MAX_STOPS)


def _check_tools(body: Mapping[str, Any]) -> None:
    tools = body.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise wrong_type("tools", "an array of objects", tools)
    if tools == []:
        raise empty_array("tools")
    if tools is None and body.get("tool_choice") is not None:
        raise only_with("tool_choice", "'tools' are specified")


def _check_response(body: Mapping[str, Any]) -> None:
    """Nothing is stored, so nothing can be gone back to; and no tool is run here."""
    if required(body, "input", may_be_empty=True) == []:
        raise empty_array("input")
    for name in ("previous_response_id", "conversation", "prompt"):
        if body.get(name) is not None:
            raise unsupported(name, f"'{name}' needs stored responses, and nothing is stored here")
    if flag(body, "background"):
        raise unsupported("background", "'background' needs stored responses")
    tools = [] if body.get("tools") is None else body["tools"]
    if not isinstance(tools, list):
        raise wrong_type("tools", "an array of objects", tools)
    for index, tool in enumerate(tools):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if not (isinstance(kind, str) and kind in RESPONSE_TOOLS):
            raise unsupported(
                f"tools[{index}].type", f"no tool of the type '{kind}' is run here, only functions"
            )


def _check_messages(body: Mapping[str, Any]) -> None:
    check_messages(body)
    required(body, "max_tokens", may_be_empty=True)


def _check_embeddings(body: Mapping[str, Any]) -> None:
    if body.get("messages") is not None:
        check_messages(body)
        return
    value = required(body, "input", may_be_empty=True)
    if not isinstance(value, str | list):
        raise wrong_type("input", "a string or an array", value)
    if value == []:
        raise empty_array("input")
    if _is_batch(value):
        check_length(body, "input", MAX_INPUTS)


def _is_batch(value: object) -> bool:
    """Whether it is an array of texts or of arrays of tokens, not one array of tokens."""
    return isinstance(value, list) and not isinstance(value[0], int)


def _check_tokenize(body: Mapping[str, Any]) -> None:
    if body.get("messages") is None:
        required(body, "prompt", may_be_empty=True)
    else:
        check_messages(body)


def _check_detokenize(body: Mapping[str, Any]) -> None:
    if not isinstance(required(body, "tokens"), list):
        raise wrong_type("tokens", "an array of integers", body["tokens"])


INFERENCE_ENDPOINTS = (
    Endpoint(path="/v1/chat/completions", name="chat.completions", check=_check_chat),
    Endpoint(path="/v1/completions", name="completions", check=_check_completion),
    Endpoint(path="/v1/responses", name="responses", check=_check_response),
    Endpoint(path="/v1/messages", name="messages", check=_check_messages),
    Endpoint(
        path="/v1/messages/count_tokens",
        name="messages.count_tokens",
        check=check_messages,
        streams=False,
    ),
    Endpoint(path="/v1/embeddings", name="embeddings", check=_check_embeddings, streams=False),
    Endpoint(path="/tokenize", name="tokenize", check=_check_tokenize, streams=False),
    Endpoint(path="/detokenize", name="detokenize", check=_check_detokenize, streams=False),
)
