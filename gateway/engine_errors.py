"""vLLM's error JSON, mended: what a client may see of it, as one of the gateway's errors.

vLLM 0.32 sends `code` as an int and its own class names as `type`, and may name an adapter by its
identity inside the engine.
"""

import json
import re
from typing import Any

from adapter_sync.errors import LoraServerError, TritonUnavailableError
from gateway.errors import (
    AdapterNotReadyError,
    EngineFailedError,
    EngineRefusedError,
    EngineUnavailableError,
    QueueFullError,
    QueueTimeoutError,
)

_INTERNAL_NAME = re.compile(r"adp_[0-9a-z]+@[0-9a-f]+")
_SERVER_PATH = re.compile(r"(?<![\w#/.:-])/(?:[\w.@+-]+/)+[\w.@+-]*")
# FastAPI's errors as vLLM prints them; the first says enough.
_VALIDATION = re.compile(
    r"\d+ validation errors?:\s+\{.*?'loc': '(?:body\.?)?(?P<field>[^']*)', "
    r"'msg': (?P<quote>['\"])(?:Value error, )?(?P<words>.*?)(?P=quote), 'input'",
    re.DOTALL,
)
# What str() of a VLLMValidationError ends with: `param` says the first, and the second may be long.
_PARAMETER = re.compile(r" \(parameter=\w+(?:, value=.*)?\)\Z", re.DOTALL)
# Agents shorten their conversation when they see the code.
_TOO_LONG = re.compile(r"maximum context length|exceeds the max_model_len")
_QUEUE_ERRORS = {"queue_full": QueueFullError, "queue_timeout": QueueTimeoutError}
_SERVER_ERROR = 500
_UNAVAILABLE = 503


def engine_error(
    status: int, payload: bytes, *, lora_name: str | None, served_name: str
) -> LoraServerError:
    """The error behind the engine's answer with a 4xx or 5xx `status`."""
    error = _error_of(payload)
    message = str(error.get("message") or f"The engine answered with the status {status}.")
    code = error["code"] if isinstance(error.get("code"), str) else None
    match code:
        case "adapter_not_loaded":
            return AdapterNotReadyError(requested_model=served_name)
        case "queue_full" | "queue_timeout":
            return _QUEUE_ERRORS[code](message)
        case "engine_unavailable":
            return EngineUnavailableError()
    if status == _UNAVAILABLE:
        return TritonUnavailableError(message)
    if status >= _SERVER_ERROR:
        return EngineFailedError(message)
    words, param = _plain(message, error["param"] if isinstance(error.get("param"), str) else None)
    return EngineRefusedError(
        public_words(words, lora_name=lora_name, served_name=served_name),
        status=status,
        param=param,
        code=code or _code_of(words, param),
    )


def _plain(message: str, param: str | None) -> tuple[str, str | None]:
    """What vLLM says and of which field, in a sentence and without the ways of its classes."""
    if (invalid := _VALIDATION.match(message)) is None:
        return _PARAMETER.sub("", message), param
    field = invalid["field"] or None
    words = invalid["words"].rstrip(".")
    return (f"Invalid '{field}': {words}." if field else f"{words}."), field


def _code_of(words: str, param: str | None) -> str | None:
    if _TOO_LONG.search(words) is not None:
        return "context_length_exceeded"
    if words.endswith("': Field required."):
        return "missing_required_parameter"
    return param and "invalid_value"


def public_words(message: str, *, lora_name: str | None, served_name: str) -> str:
    """The message without names from inside the engine and without the server's paths."""
    if lora_name is not None:
        message = message.replace(lora_name, served_name)
    return _SERVER_PATH.sub("…", _INTERNAL_NAME.sub("…", message))


def _error_of(payload: bytes) -> dict[str, Any]:
    try:
        document = json.loads(payload)
    except ValueError:
        return {}
    error = document.get("error") if isinstance(document, dict) else None
    return error if isinstance(error, dict) else {}
