"""What the OpenAPI document says of the endpoints that ask an engine: the fields looked at here.

All others go to vLLM as they are and are checked there.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import with_config
from typing_extensions import TypedDict

from adapter_sync.errors import TierMissingError, TritonRefusedError, TritonUnavailableError
from gateway.errors import (
    AdapterFailedError,
    AdapterNotReadyError,
    EngineFailedError,
    EngineRefusedError,
    EngineTimeoutError,
    EngineUnavailableError,
    ErrorEnvelope,
    ModelNotFoundError,
    QueueFullError,
    QueueTimeoutError,
    RateLimitError,
    RequestDeadlineError,
    ServerStoppingError,
)
from gateway.inference.endpoints import MAX_INPUTS, MAX_TOP_LOGPROBS, RESPONSE_TOOLS, Endpoint
from gateway.inference.fields import FORBIDDEN_FIELDS, MAX_CHOICES, MAX_STOPS
from gateway.list_object import EXACT
from gateway.openapi import Answer, Body, Operation
from gateway.openapi.headers import RATE_LIMIT_HEADERS, REQUEST_TIMEOUT

ENGINE_ERRORS = (
    AdapterFailedError,
    AdapterNotReadyError,
    EngineFailedError,
    EngineRefusedError,
    EngineTimeoutError,
    ModelNotFoundError,
    QueueFullError,
    EngineUnavailableError,
    QueueTimeoutError,
    RateLimitError,
    RequestDeadlineError,
    ServerStoppingError,
    TierMissingError,
    TritonRefusedError,
    TritonUnavailableError,
)
"""Of every request that an engine answers."""


@with_config(EXACT)
class AnthropicErrorObject(TypedDict):
    """What went wrong."""

    type: str
    message: str


@with_config(EXACT)
class AnthropicErrorEnvelope(TypedDict):
    """Anthropic's envelope of every error."""

    type: Literal["error"]
    error: AnthropicErrorObject


_MODEL = "smollm2-135m-instruct:my-finetuned-v3"
_CONVERSATION = [{"role": "user", "content": "hello"}]
_MESSAGES = {"type": "array", "minItems": 1, "items": {"type": "object"}}
_TEXT_OR_TOKENS = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "minItems": 1, "items": {"type": "integer"}},
        {"type": "array", "minItems": 1, "maxItems": MAX_INPUTS, "items": {"type": "string"}},
        {"type": "array", "minItems": 1, "maxItems": MAX_INPUTS, "items": {"type": "array"}},
    ]
}
_STREAM = {"type": ["boolean", "null"], "default": False}
_GENERATION = {
    "stream": _STREAM,
    "stream_options": {"type": ["object", "null"]},
    "n": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_CHOICES},
    "stop": {
        "anyOf": [
            {"type": "array", "maxItems": MAX_STOPS, "items": {"type": "string"}},
            {"type": ["string", "null"]},
        ]
    },
}
_ONLY_FOR_STREAMS = {
    "$comment": "Only for streams.",
    "if": {"required": ["stream_options"], "properties": {"stream_options": {"type": "object"}}},
    "then": {"required": ["stream"], "properties": {"stream": {"const": True}}},
}
_ONLY_WITH_LOGPROBS = {
    "$comment": "Only with logprobs.",
    "if": {"required": ["top_logprobs"], "properties": {"top_logprobs": {"type": "integer"}}},
    "then": {"required": ["logprobs"], "properties": {"logprobs": {"const": True}}},
}
_ONLY_WITH_TOOLS = {
    "$comment": "Only with tools.",
    "if": {"required": ["tool_choice"], "properties": {"tool_choice": {"not": {"type": "null"}}}},
    "then": {"required": ["tools"], "properties": {"tools": {"type": "array"}}},
}


def _request(
    *required: str, only: tuple[Mapping[str, Any], ...] = (), **properties: object
) -> Mapping[str, Any]:
    """A body: the fields looked at here, those refused, and any others."""
    model = {
        "type": "string",
        "minLength": 1,
        "description": "A base model, `base:adapter`, or an alias.",
    }
    return {
        "type": "object",
        "description": "The API's fields and vLLM's; those that are not here are vLLM's to check.",
        "required": ["model", *required],
        "properties": {
            "model": model,
            **properties,
            **dict.fromkeys(sorted(FORBIDDEN_FIELDS - properties.keys()), False),
        },
        **({"allOf": list(only)} if only else {}),
    }


def _answer(**properties: object) -> Mapping[str, Any]:
    """An answer of vLLM's: what is always there."""
    return {"type": "object", "required": sorted(properties), "properties": properties}


_STRING, _INTEGER, _ARRAY = {"type": "string"}, {"type": "integer"}, {"type": "array"}
_REQUESTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "chat.completions": _request(
            "messages",
            only=(_ONLY_FOR_STREAMS, _ONLY_WITH_LOGPROBS, _ONLY_WITH_TOOLS),
            messages=_MESSAGES,
            **_GENERATION,
            logprobs={"type": ["boolean", "null"]},
            top_logprobs={
                "type": ["integer", "null"],
                "minimum": 0,
                "maximum": MAX_TOP_LOGPROBS,
            },
            tools={"type": ["array", "null"], "minItems": 1},
        ),
        "completions": _request(
            "prompt",
            only=(_ONLY_FOR_STREAMS,),
            prompt=_TEXT_OR_TOKENS,
            **_GENERATION,
            suffix={"enum": [None, ""]},
            best_of={
                "type": ["integer", "null"],
                "minimum": 1,
                "maximum": MAX_CHOICES,
                "description": "No larger than `n`.",
            },
        ),
        "responses": _request(
            "input",
            input={"anyOf": [_STRING, {"type": "array", "minItems": 1}]},
            stream=_STREAM,
            background={"enum": [None, False]},
            tools={
                "type": ["array", "null"],
                "items": {
                    "type": "object",
                    "required": ["type"],
                    "properties": {"type": {"enum": sorted(RESPONSE_TOOLS)}},
                },
            },
            previous_response_id={"type": "null"},
            conversation={"type": "null"},
            prompt={"type": "null"},
        ),
        "messages": _request(
            "messages",
            "max_tokens",
            messages=_MESSAGES,
            max_tokens={"not": {"type": "null"}},
            stream=_STREAM,
        ),
        "messages.count_tokens": _request("messages", messages=_MESSAGES),
        "embeddings": {
            **_request(input=_TEXT_OR_TOKENS, messages=_MESSAGES),
            "anyOf": [{"required": ["input"]}, {"required": ["messages"]}],
        },
        "tokenize": {
            **_request(prompt=_STRING, messages=_MESSAGES),
            "anyOf": [{"required": ["prompt"]}, {"required": ["messages"]}],
        },
        "detokenize": _request("tokens", tokens=_ARRAY),
    }
)
_ANSWERS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "chat.completions": _answer(
            id=_STRING,
            object={"const": "chat.completion"},
            created=_INTEGER,
            model=_STRING,
            choices=_ARRAY,
        ),
        "completions": _answer(
            id=_STRING,
            object={"const": "text_completion"},
            created=_INTEGER,
            model=_STRING,
            choices=_ARRAY,
        ),
        "responses": _answer(
            id=_STRING, object={"const": "response"}, model=_STRING, output=_ARRAY, status=_STRING
        ),
        "messages": _answer(
            id=_STRING, type={"const": "message"}, role=_STRING, model=_STRING, content=_ARRAY
        ),
        "messages.count_tokens": _answer(input_tokens=_INTEGER),
        "embeddings": _answer(object={"const": "list"}, data=_ARRAY, model=_STRING),
        "tokenize": _answer(count=_INTEGER, max_model_len=_INTEGER, tokens=_ARRAY),
        "detokenize": _answer(prompt=_STRING),
    }
)
_SUMMARIES: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "chat.completions": ("Answer a conversation", {"messages": _CONVERSATION}),
        "completions": ("Go on with a text", {"prompt": "Once upon a time", "max_tokens": 20}),
        "responses": ("Answer, in the Responses API", {"input": "hello"}),
        "messages": (
            "Answer, in Anthropic's Messages API",
            {"messages": _CONVERSATION, "max_tokens": 20},
        ),
        "messages.count_tokens": ("Count a conversation's tokens", {"messages": _CONVERSATION}),
        "embeddings": ("Turn texts into vectors", {"input": ["hello", "there"]}),
        "tokenize": ("Turn a text into tokens", {"prompt": "hello"}),
        "detokenize": ("Turn tokens into a text", {"tokens": [504, 3575]}),
    }
)


def operation_for(endpoint: Endpoint) -> Operation:
    """The endpoint's part of the document."""
    summary, example = _SUMMARIES[endpoint.name]
    content: dict[str, Any] = {"application/json": _ANSWERS[endpoint.name]}
    if endpoint.streams:
        content["text/event-stream"] = {"description": "Its API's events."}
    is_anthropics = endpoint.name.startswith("messages")
    return Operation(
        tag="Inference",
        summary=summary,
        description=(
            "Streams server-sent events with `stream`. What fails after the first byte is an event "
            "in the words of the API, and the end."
            if endpoint.streams
            else None
        ),
        body=Body(shape=_REQUESTS[endpoint.name], example={"model": _MODEL, **example}),
        parameters=(REQUEST_TIMEOUT,),
        answers={
            200: Answer(content=content, description="The answer.", headers=RATE_LIMIT_HEADERS)
        },
        errors=ENGINE_ERRORS,
        error_headers=RATE_LIMIT_HEADERS,
        error_envelope=AnthropicErrorEnvelope if is_anthropics else ErrorEnvelope,
    )
