"""vLLM's errors are mended and tell nothing from inside the server."""

import json

import pytest

from adapter_sync.errors import TritonUnavailableError
from gateway.engine_errors import engine_error, public_words
from gateway.errors import (
    AdapterNotReadyError,
    EngineFailedError,
    EngineRefusedError,
    QueueFullError,
    QueueTimeoutError,
    answer_for,
)

LORA_NAME = "adp_0123456789abcdefghij@0123456789abcdef"


def _vllm_error(message: str, *, code: int | str = 400, param: str | None = None) -> bytes:
    error = {"message": message, "type": "BadRequestError", "param": param, "code": code}
    return json.dumps({"error": error}).encode()


def test_a_refusal_becomes_the_openai_envelope() -> None:
    words = "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)"
    payload = _vllm_error(words, param="max_tokens")
    error = engine_error(400, payload, lora_name=None, served_name="base")
    assert json.loads(answer_for(error).body) == {
        "error": {
            "message": "max_tokens must be at least 1, got 0.",
            "type": "invalid_request_error",
            "param": "max_tokens",
            "code": "invalid_value",
        }
    }


def test_a_code_that_is_a_string_is_kept() -> None:
    payload = _vllm_error("too long", code="context_length_exceeded")
    error = engine_error(400, payload, lora_name=None, served_name="base")
    assert error.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("message", "param", "code"),
    [
        (
            (
                "This model's maximum context length is 2048 tokens. However, your prompt contains "
                "at least 2049 input tokens. (parameter=input_tokens, value=2049)"
            ),
            "input_tokens",
            "context_length_exceeded",
        ),
        (
            "The engine prompt length 2048 exceeds the max_model_len 2048. Please reduce prompt.",
            "input",
            "context_length_exceeded",
        ),
        ("temperature must be in [0, 2], got 3.0.", "temperature", "invalid_value"),
        ("stop cannot contain an empty string.", None, None),
    ],
)
def test_a_refusal_gets_a_code_that_clients_know(
    message: str, param: str | None, code: str | None
) -> None:
    payload = _vllm_error(message, param=param)
    error = engine_error(400, payload, lora_name=None, served_name="base")
    assert (error.param, error.code) == (param, code)
    assert "(parameter=" not in str(error)


def test_the_internal_name_becomes_the_one_that_the_client_used() -> None:
    payload = _vllm_error(f"The model `{LORA_NAME}` does not support that.")
    error = engine_error(400, payload, lora_name=LORA_NAME, served_name="base:finance")
    assert str(error) == "The model `base:finance` does not support that."


@pytest.mark.parametrize(
    ("message", "public"),
    [
        (f"no {LORA_NAME} here", "no … here"),
        ("can't read /srv/data/adapters/x.safetensors", "can't read …"),
        ("'/root/.cache/hub' is missing", "'…' is missing"),
        ("the type application/json and 1/2/3", "the type application/json and 1/2/3"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        ("#/properties/age/type is wrong", "#/properties/age/type is wrong"),
    ],
)
def test_names_and_paths_from_inside_are_taken_out(message: str, public: str) -> None:
    assert public_words(message, lora_name=None, served_name="base") == public


def test_an_adapter_that_the_engine_does_not_have_yet_is_not_ready() -> None:
    payload = _vllm_error("not loaded", code="adapter_not_loaded")
    error = engine_error(404, payload, lora_name=LORA_NAME, served_name="base:finance")
    assert isinstance(error, AdapterNotReadyError)


@pytest.mark.parametrize(
    ("status", "code", "cls"),
    [(429, "queue_full", QueueFullError), (503, "queue_timeout", QueueTimeoutError)],
)
def test_who_found_no_place_in_the_engine_is_told_in_its_words(
    status: int, code: str, cls: type[Exception]
) -> None:
    payload = _vllm_error("It waited 60 s.", code=code)
    error = engine_error(status, payload, lora_name=None, served_name="base")
    assert (type(error), str(error)) == (cls, "It waited 60 s.")


@pytest.mark.parametrize(
    ("status", "cls"),
    [(500, EngineFailedError), (503, TritonUnavailableError), (422, EngineRefusedError)],
)
def test_the_status_decides_whose_fault_it_is(status: int, cls: type[Exception]) -> None:
    error = engine_error(status, _vllm_error("x"), lora_name=None, served_name="base")
    assert type(error) is cls


@pytest.mark.parametrize("payload", [b"", b"not json", b"[]", b'{"error": "words"}', b"\xff"])
def test_an_error_without_its_json_still_has_words(payload: bytes) -> None:
    error = engine_error(400, payload, lora_name=None, served_name="base")
    assert str(error) == "The engine answered with the status 400."


@pytest.mark.parametrize(
    ("printed", "message", "param"),
    [
        (
            (
                "1 validation error:\n  {'type': 'value_error', 'loc': 'body.max_tokens', 'msg': "
                "'Value error, max_tokens must be positive', 'input': '0', 'ctx': {'error': "
                "ValueError('max_tokens must be positive')}}"
            ),
            "Invalid 'max_tokens': max_tokens must be positive.",
            "max_tokens",
        ),
        (
            (
                "2 validation errors:\n  {'type': 'literal_error', 'loc': 'body.messages.0.role', "
                "'msg': \"Input should be 'user' or 'system'\", 'input': 'robot', 'ctx': {}}\n  "
                "{'type': 'missing', 'loc': 'body.x', 'msg': 'Field required', 'input': '{}'}"
            ),
            "Invalid 'messages.0.role': Input should be 'user' or 'system'.",
            "messages.0.role",
        ),
        (
            (
                "1 validation error:\n  {'type': 'value_error', 'loc': 'body', 'msg': "
                "'Value error, use one of them', 'input': '{}'}"
            ),
            "use one of them.",
            None,
        ),
        (
            (
                "1 validation error:\n  {'type': 'missing', 'loc': 'body.tools.0.input_schema', "
                "'msg': 'Field required', 'input': '<dict of 2 items>'}"
            ),
            "Invalid 'tools.0.input_schema': Field required.",
            "tools.0.input_schema",
        ),
        ("1 validation error: of another form", "1 validation error: of another form", None),
    ],
)
def test_a_validation_error_is_told_in_a_sentence(
    printed: str, message: str, param: str | None
) -> None:
    # vLLM's own `param` begins with where FastAPI found the field.
    payload = _vllm_error(printed, param=param and f"body.{param}")
    error = engine_error(400, payload, lora_name=None, served_name="base")
    assert isinstance(error, EngineRefusedError)
    assert (str(error), error.param) == (message, param)
    missing = "Field required" in message
    assert error.code == ("missing_required_parameter" if missing else param and "invalid_value")
