"""What is left of vLLM's own errors in the middle of a stream."""

import json
from typing import Any

import pytest

from engine.endpoints import (
    ENGINE_FAILED,
    ErrorEvent,
    anthropic_error_event,
    mend_error_event,
    openai_error_event,
    responses_error_event,
)

DIALECTS = [openai_error_event, responses_error_event, anthropic_error_event]


def mended(body: bytes, dialect: ErrorEvent) -> tuple[dict[str, Any], bytes]:
    event = mend_error_event(body, dialect, lora_name="adp_1@ab", served_name="m:finance")
    first, _, rest = event.partition(b"\n\n")
    return json.loads(first.partition(b"data: ")[2]), rest


def vllms(code: int, message: str) -> bytes:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": code}
    return b"data: " + json.dumps({"error": error}).encode() + b"\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_a_client_did_wrong_is_said_in_the_words_of_its_api(dialect: ErrorEvent) -> None:
    event, rest = mended(vllms(400, "adp_1@ab: logprobs are too many"), dialect)
    assert "m:finance: logprobs are too many" in json.dumps(event)
    assert "invalid" in json.dumps(event)
    assert rest == b"data: [DONE]\n\n"


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "body",
    [
        vllms(500, "EngineCore encountered an issue. See stack trace (above)."),
        b'event: error\ndata: {"error":{"type":"internal_error","message":"/opt"}}\n\n',
    ],
)
def test_nothing_is_told_of_an_error_of_the_engines_own(body: bytes, dialect: ErrorEvent) -> None:
    event, _ = mended(body, dialect)
    assert ENGINE_FAILED in json.dumps(event)
    assert "stack trace" not in json.dumps(event)
    assert "/opt" not in json.dumps(event)


def test_anything_else_passes_as_it_is() -> None:
    body = b'data: {"choices": [{"text": "error"}]}\n\n'
    assert mend_error_event(body, openai_error_event, lora_name=None, served_name="m") == body
