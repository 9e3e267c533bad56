"""What the document says of chat completions: the fields that the gateway looks at.

All others go to vLLM as they are and are checked there.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from adapter_sync.errors import TierMissingError, TritonRefusedError, TritonUnavailableError
from gateway.chat_request import FORBIDDEN_FIELDS, MAX_CHOICES, MAX_STOPS, MAX_TOP_LOGPROBS
from gateway.errors import (
    AdapterFailedError,
    AdapterNotReadyError,
    EngineFailedError,
    EngineRefusedError,
    EngineTimeoutError,
    ModelNotFoundError,
    RateLimitError,
    ServerStoppingError,
)
from gateway.openapi import Answer, Body, Operation
from gateway.openapi.headers import RATE_LIMIT_HEADERS

ENGINE_ERRORS = (
    AdapterFailedError,
    AdapterNotReadyError,
    EngineFailedError,
    EngineRefusedError,
    EngineTimeoutError,
    ModelNotFoundError,
    RateLimitError,
    ServerStoppingError,
    TierMissingError,
    TritonRefusedError,
    TritonUnavailableError,
)
"""Of every request that an engine answers."""
_NO_TOOLS = {"properties": {"tools": {"type": "null"}}}
_REQUEST: Mapping[str, Any] = MappingProxyType(
    {
        "type": "object",
        "description": "OpenAI's fields and vLLM's; those that are not here are vLLM's to check.",
        "required": ["model", "messages"],
        "properties": {
            "model": {
                "type": "string",
                "minLength": 1,
                "description": "A base model, `base:adapter`, or an alias.",
            },
            "messages": {"type": "array", "minItems": 1, "items": {"type": "object"}},
            "stream": {"type": ["boolean", "null"], "default": False},
            "stream_options": {"type": ["object", "null"]},
            "n": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_CHOICES},
            "stop": {
                "anyOf": [
                    {"type": "array", "maxItems": MAX_STOPS, "items": {"type": "string"}},
                    {"type": ["string", "null"]},
                ]
            },
            "logprobs": {"type": ["boolean", "null"]},
            "top_logprobs": {
                "type": ["integer", "null"],
                "minimum": 0,
                "maximum": MAX_TOP_LOGPROBS,
            },
            "tools": {"type": ["array", "null"], "minItems": 1},
            **dict.fromkeys(sorted(FORBIDDEN_FIELDS), False),
        },
        "allOf": [
            {
                "$comment": "Only for streams.",
                "if": {
                    "required": ["stream_options"],
                    "properties": {"stream_options": {"type": "object"}},
                },
                "then": {"required": ["stream"], "properties": {"stream": {"const": True}}},
            },
            {
                "$comment": "Only with logprobs.",
                "if": {
                    "required": ["top_logprobs"],
                    "properties": {"top_logprobs": {"type": "integer"}},
                },
                "then": {"required": ["logprobs"], "properties": {"logprobs": {"const": True}}},
            },
            {
                "$comment": "Only with tools.",
                "if": {
                    "required": ["tool_choice"],
                    "properties": {"tool_choice": {"not": {"type": "null"}}},
                },
                "then": {"required": ["tools"], "properties": {"tools": {"type": "array"}}},
            },
        ],
    }
)
_ANSWER: Mapping[str, Any] = MappingProxyType(
    {
        "type": "object",
        "description": "vLLM's answer in OpenAI's shape; `model` is the name that was asked for.",
        "required": ["id", "object", "created", "model", "choices"],
        "properties": {
            "id": {"type": "string"},
            "object": {"const": "chat.completion"},
            "created": {"type": "integer"},
            "model": {"type": "string"},
            "choices": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["index", "message", "finish_reason"],
                    "properties": {
                        "index": {"type": "integer"},
                        "message": {"type": "object"},
                        "finish_reason": {"type": ["string", "null"]},
                    },
                },
            },
            "usage": {"type": ["object", "null"]},
        },
    }
)
CHAT_COMPLETION = Operation(
    tag="Inference",
    summary="Answer a conversation",
    description="Streams server-sent events with `stream`: chunks, then `data: [DONE]`. What "
    "fails after the first byte is an event with the error's envelope, and the end.",
    body=Body(
        shape=_REQUEST,
        example={
            "model": "smollm2-135m-instruct:my-finetuned-v3",
            "messages": [{"role": "user", "content": "hello"}],
        },
    ),
    answers={
        200: Answer(
            content={"application/json": _ANSWER, "text/event-stream": {"description": "Chunks."}},
            description="The answer, in one piece or as events.",
            headers=RATE_LIMIT_HEADERS,
        )
    },
    errors=ENGINE_ERRORS,
    error_headers=RATE_LIMIT_HEADERS,
)
