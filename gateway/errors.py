"""Every error becomes the OpenAI envelope here, or Anthropic's, and nowhere else.

What only the gateway raises, on top of the tree in adapter_sync.errors:

    PermanentError
    ├── InvalidRequestError       a field of the request is missing, wrong or not allowed
    ├── RequestTooLargeError      a body over the limit
    ├── RequestTimeoutError       a body that stopped coming
    ├── ModelNotFoundError        the requested model is unknown or another tenant's
    ├── AdapterFailedError        the requested adapter could not be loaded
    └── EngineRefusedError        vLLM refused the request
    TransientError
    ├── RateLimitError            more in a minute, or at once, than the tenant's tier allows
    ├── AdapterNotReadyError      the requested adapter is still loading
    ├── QueueFullError            too many of the tenant's requests wait for the engine
    ├── QueueTimeoutError         the request has waited for the engine as long as it may
    ├── EngineUnavailableError    the base model's engine has died
    ├── EngineFailedError         vLLM failed
    ├── EngineTimeoutError        the engine did not answer in time
    ├── RequestDeadlineError      the request took longer than it may
    └── ServerStoppingError       the gateway is stopping
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Literal, get_args

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from typing_extensions import TypedDict

from adapter_sync import errors
from adapter_sync.foreign_errors import passing_fault
from gateway.allowed_methods import allowed_methods

NO_RETRY = MappingProxyType({"x-should-retry": "false"})
RETRY_SOON = MappingProxyType({"retry-after": "1"})
RETRY_WHEN_STARTED = MappingProxyType({"retry-after": "10"})
RETRY_LATER = MappingProxyType({"retry-after": "60", **NO_RETRY})
CLIENT_CLOSED_REQUEST = 499
_METHOD_NOT_ALLOWED = 405
_SERVER_ERROR = 500
_UNEXPECTED = "The server had an error while processing your request. Please try again."
_UNAVAILABLE = "The model server can't answer right now. Please try again shortly."
InvalidRequestCode = Literal[
    "array_above_max_length",
    "empty_array",
    "empty_field",
    "field_too_large",
    "integer_above_max_value",
    "integer_below_min_value",
    "invalid_content_type",
    "invalid_form",
    "invalid_type",
    "invalid_value",
    "missing_required_parameter",
    "unknown_parameter",
    "unsupported_parameter",
]


class InvalidRequestError(errors.PermanentError):
    """A field of the request is missing, wrong or not allowed; the message names it."""

    def __init__(
        self, message: str, *, param: str | None, code: InvalidRequestCode | None = None
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class RequestTooLargeError(errors.PermanentError):
    """The request's body is over the limit."""

    code = "request_too_large"

    def __init__(self, *, limit_bytes: int) -> None:
        super().__init__(f"The request's body is larger than {limit_bytes} bytes, the limit.")


class RequestTimeoutError(errors.PermanentError):
    """The request's body stopped coming."""

    code = "request_timeout"

    def __init__(self, *, idle_s: float) -> None:
        super().__init__(f"No byte of the request's body came for {idle_s:g} s.")


class ModelNotFoundError(errors.PermanentError):
    """The requested model is unknown or another tenant's: the same words for both."""

    code = "model_not_found"
    param = "model"

    def __init__(self, *, requested_model: str) -> None:
        super().__init__(
            f"The model `{requested_model}` does not exist or you do not have access to it."
        )


class AdapterFailedError(errors.PermanentError):
    """The requested adapter could not be loaded."""

    code = "adapter_failed"
    param = "model"

    def __init__(self, *, requested_model: str, reason: str) -> None:
        super().__init__(f"The adapter `{requested_model}` could not be loaded: {reason}")


class EngineRefusedError(errors.PermanentError):
    """VLLM refused the request; `status` is its 4xx."""

    def __init__(
        self, message: str, *, status: int, param: str | None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code


class RateLimitError(errors.TransientError):
    """The tenant asks for more in a minute, or at once, than its tier allows.

    `kind` is OpenAI's `type`: "requests" or "tokens".
    """

    code = "rate_limit_exceeded"

    def __init__(
        self, *, kind: str, unit: str, tier: str, limit: int, used: int, wait_s: float
    ) -> None:
        super().__init__(
            f"Rate limit reached for your tier '{tier}' on {unit}: limit {limit}, used {used}. "
            f"Please try again in {wait_s:.3g}s."
        )
        self.kind = kind
        self.retry_after_ms = max(1, math.ceil(wait_s * 1000))


class AdapterNotReadyError(errors.TransientError):
    """The requested adapter is still loading."""

    code = "adapter_not_ready"
    param = "model"

    def __init__(self, *, requested_model: str) -> None:
        super().__init__(f"The adapter `{requested_model}` is still loading. Try again shortly.")


class QueueFullError(errors.TransientError):
    """Too many of the tenant's requests wait for the engine; the message is the engine's."""

    code = "rate_limit_exceeded"


class QueueTimeoutError(errors.TransientError):
    """The request has waited for the engine as long as it may; the message is the engine's."""

    code = "server_is_overloaded"


class EngineUnavailableError(errors.TransientError):
    """The base model's engine has died, and is being started again."""

    code = "engine_unavailable"

    def __init__(self) -> None:
        super().__init__("The model is being restarted. Please try again shortly.")


class EngineFailedError(errors.TransientError):
    """VLLM failed; the message is vLLM's and not for clients."""


class EngineTimeoutError(errors.TransientError):
    """The engine did not answer in time."""

    def __init__(self, *, waited_s: float) -> None:
        super().__init__(f"The model server sent nothing for {waited_s:g} s.")


class RequestDeadlineError(errors.TransientError):
    """The request took longer than its client, or the server, lets it; the engine has stopped."""

    code = "deadline_exceeded"

    def __init__(self, *, deadline_s: float) -> None:
        super().__init__(
            f"The request was not finished within {deadline_s:g} s and was ended. Ask for fewer "
            "tokens, stream the answer, or allow more time in the x-request-timeout header."
        )


class ServerStoppingError(errors.TransientError):
    """The gateway is stopping and ends what still runs."""

    def __init__(self) -> None:
        super().__init__("The server is restarting. Please try again shortly.")


class Envelope(StrEnum):
    """How the API that a path belongs to words its errors."""

    OPENAI = "openai"
    RESPONSES = "responses"
    """OpenAI's, but for an error in a stream, which is an event of its own."""
    ANTHROPIC = "anthropic"


_ENVELOPES = MappingProxyType(
    {
        "/v1/responses": Envelope.RESPONSES,
        "/v1/messages": Envelope.ANTHROPIC,
        "/v1/messages/count_tokens": Envelope.ANTHROPIC,
    }
)
# https://docs.anthropic.com/en/api/errors
_ANTHROPIC_TYPES = MappingProxyType(
    {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        503: "overloaded_error",
        504: "timeout_error",
    }
)


class ErrorObject(TypedDict):
    """What went wrong; `param` names the field at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(TypedDict):
    """OpenAI's envelope of every error."""

    error: ErrorObject


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorAnswer:
    """An HTTP answer in the envelope of the API that was asked."""

    status: int
    message: str
    type: str
    param: str | None
    code: str | None
    headers: Mapping[str, str] = field(default_factory=dict)
    envelope: Envelope = Envelope.OPENAI

    @property
    def body(self) -> bytes:
        """The envelope, in ASCII: a client's own words may hold lone surrogates."""
        if self.envelope is Envelope.ANTHROPIC:
            by_status = "api_error" if self.status >= _SERVER_ERROR else "invalid_request_error"
            kind = _ANTHROPIC_TYPES.get(self.status, by_status)
            return _json({"type": "error", "error": {"type": kind, "message": self.message}})
        envelope: ErrorEnvelope = {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }
        return _json(envelope)

    @property
    def event(self) -> bytes:
        """The error as a server-sent event, for after the first byte."""
        match self.envelope:
            case Envelope.OPENAI:
                return b"data: " + self.body + b"\n\n"
            case Envelope.ANTHROPIC:
                return b"event: error\ndata: " + self.body + b"\n\n"
            case Envelope.RESPONSES:
                event = {"type": "error", "message": self.message, **self._details}
                return b"event: error\ndata: " + _json({**event, "sequence_number": 0}) + b"\n\n"

    @property
    def _details(self) -> dict[str, str | None]:
        return {"param": self.param, "code": self.code}

    def response(self) -> Response:
        """The answer to send when no byte was sent yet."""
        return Response(
            self.body, self.status, headers=dict(self.headers), media_type="application/json"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How a class of errors is answered; `words` replace a message that is not for clients."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    type: str | None = None
    words: str | None = None

    @property
    def is_internal(self) -> bool:
        """Whether nothing of the error is told but that there was one."""
        return self.words is _UNEXPECTED


_INTERNAL = Rule(status=500, words=_UNEXPECTED)
_RETRYABLE = Rule(status=503, headers=RETRY_SOON, words=_UNAVAILABLE)

RULES: Mapping[type[errors.LoraServerError], Rule] = MappingProxyType(
    {
        errors.LoraServerError: _INTERNAL,
        errors.PermanentError: _INTERNAL,
        errors.InvalidAdapterError: Rule(status=400),
        errors.AdapterTooLargeError: Rule(status=413),
        errors.AdapterLimitError: Rule(status=429, headers=NO_RETRY, type="insufficient_quota"),
        errors.AdapterExistsError: Rule(status=409, headers=NO_RETRY),
        errors.AdapterNotFoundError: Rule(status=404),
        errors.RevisionNotFoundError: Rule(status=404),
        errors.NoEarlierRevisionError: Rule(status=409, headers=NO_RETRY),
        errors.PreconditionFailedError: Rule(status=412),
        errors.BaseModelNotFoundError: Rule(status=404),
        errors.FetchInProgressError: Rule(status=409, headers=NO_RETRY),
        errors.FetchGoneError: Rule(status=404),
        errors.InvalidRepoError: Rule(status=400),
        errors.RepoNotFoundError: Rule(status=400),
        errors.HubUnavailableError: Rule(status=503, headers=RETRY_SOON),
        errors.AdaptersNotSupportedError: Rule(status=400),
        errors.AliasNotFoundError: Rule(status=404),
        errors.AliasNameTakenError: Rule(status=409, headers=NO_RETRY),
        errors.AliasLimitError: Rule(status=429, headers=NO_RETRY, type="insufficient_quota"),
        errors.InvalidNameError: Rule(status=400),
        errors.InvalidApiKeyError: Rule(
            status=401, headers=MappingProxyType({"www-authenticate": "Bearer"})
        ),
        errors.TenantExistsError: Rule(status=409, headers=NO_RETRY),
        errors.TenantNotFoundError: Rule(status=404),
        errors.TenantHasAdaptersError: Rule(status=409, headers=NO_RETRY),
        errors.KeyNotFoundError: Rule(status=404),
        errors.UnknownCursorError: Rule(status=400),
        errors.UnknownTierError: Rule(status=400),
        errors.OwnBaseModelError: Rule(status=400),
        errors.TierMissingError: Rule(status=500, headers=NO_RETRY),
        errors.ConfigurationError: _INTERNAL,
        errors.TransientError: _RETRYABLE,
        errors.RegistryReplacedError: Rule(
            status=503, headers=RETRY_SOON, words=str(errors.RegistryUnavailableError())
        ),
        errors.RegistryUnavailableError: Rule(status=503, headers=RETRY_SOON),
        errors.StorageUnavailableError: Rule(status=503, headers=RETRY_SOON),
        # Minutes, not seconds: somebody has to make room.
        errors.StorageFullError: Rule(status=507, headers=RETRY_LATER),
        EngineUnavailableError: Rule(status=503, headers=RETRY_WHEN_STARTED),
        errors.TritonUnavailableError: _RETRYABLE,
        errors.TritonRefusedError: _RETRYABLE,
        InvalidRequestError: Rule(status=400),
        RequestTooLargeError: Rule(status=413),
        RequestTimeoutError: Rule(status=408),
        ModelNotFoundError: Rule(status=404),
        AdapterFailedError: Rule(status=409, headers=NO_RETRY),
        EngineRefusedError: Rule(status=400),
        RateLimitError: Rule(status=429),
        AdapterNotReadyError: Rule(status=503, headers=RETRY_SOON),
        QueueFullError: Rule(status=429, headers=RETRY_SOON, type="requests"),
        QueueTimeoutError: Rule(status=503, headers=RETRY_SOON),
        EngineFailedError: Rule(status=500, words=_UNEXPECTED),
        EngineTimeoutError: Rule(status=504),
        RequestDeadlineError: Rule(status=504, headers=NO_RETRY),
        ServerStoppingError: Rule(status=503, headers=RETRY_SOON),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorKind:
    """How a class of errors looks over HTTP; None as codes stands for any."""

    status: int
    codes: tuple[str | None, ...] | None
    headers: tuple[str, ...]


def error_kind(cls: type[errors.LoraServerError]) -> ErrorKind:
    """What `answer_for` makes of the class's errors, for documents."""
    rule = _rule(cls)
    headers = ("retry-after", "retry-after-ms") if cls is RateLimitError else tuple(rule.headers)
    return ErrorKind(status=rule.status, codes=_codes(cls, rule), headers=headers)


def answer_for(error: Exception, *, method: str = "", path: str = "") -> ErrorAnswer:
    """The envelope for any error; an unexpected one tells nothing of itself."""
    answer = _openai_answer(error, method=method, path=path)
    return replace(answer, envelope=_ENVELOPES.get(path, Envelope.OPENAI))


def _openai_answer(error: Exception, *, method: str, path: str) -> ErrorAnswer:
    if isinstance(error, errors.LoraServerError):
        return _project_error(error)
    if isinstance(error, RequestValidationError):
        return _validation_error(error)
    if isinstance(error, HTTPException):
        return _http_error(error, method=method, path=path)
    if (fault := passing_fault(error)) is not None:
        return _project_error(fault)
    return _answer(status=500, message=_UNEXPECTED, code="server_error")


async def handle_error(request: Request, error: Exception) -> Response:
    """Starlette's exception handler for all of them; the access log tells what happened."""
    request.state.error = error
    if isinstance(error, ClientDisconnect):
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    if isinstance(error, HTTPException) and error.status_code == _METHOD_NOT_ALLOWED:
        allowed = allowed_methods(request.app.routes, request.scope)
        error = HTTPException(error.status_code, error.detail, {"allow": allowed})
    answer = answer_for(error, method=request.method, path=request.scope["path"])
    request.state.log_fields["error_code"] = answer.code
    return answer.response()


def _json(document: Mapping[str, object]) -> bytes:
    return json.dumps(document).encode("ascii")


def _answer(
    *,
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] = MappingProxyType({}),
    type_: str | None = None,
) -> ErrorAnswer:
    by_status = "server_error" if status >= _SERVER_ERROR else "invalid_request_error"
    return ErrorAnswer(
        status=status,
        message=message,
        type=type_ or by_status,
        param=param,
        code=code,
        headers=headers,
    )


def _rule(cls: type[errors.LoraServerError]) -> Rule:
    return next(RULES[each] for each in cls.__mro__ if each in RULES)


def _codes(cls: type[errors.LoraServerError], rule: Rule) -> tuple[str | None, ...] | None:
    if cls is InvalidRequestError:
        return (*get_args(InvalidRequestCode), None)
    if cls is EngineRefusedError:
        return None
    return ("server_error" if rule.is_internal else cls.code,)


def _project_error(error: errors.LoraServerError) -> ErrorAnswer:
    rule = _rule(type(error))
    return _answer(
        status=error.status if isinstance(error, EngineRefusedError) else rule.status,
        message=rule.words or str(error),
        param=None if rule.is_internal else error.param,
        code="server_error" if rule.is_internal else error.code,
        headers={**rule.headers, **_retry_after(error)},
        type_=error.kind if isinstance(error, RateLimitError) else rule.type,
    )


def _retry_after(error: errors.LoraServerError) -> Mapping[str, str]:
    if not isinstance(error, RateLimitError):
        return {}
    return {
        "retry-after": str(math.ceil(error.retry_after_ms / 1000)),
        "retry-after-ms": str(error.retry_after_ms),
    }


def _validation_error(error: RequestValidationError) -> ErrorAnswer:
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:]) or None
    return _answer(status=400, message=f"Invalid '{param}': {first['msg']}.", param=param)


def _http_error(error: HTTPException, *, method: str, path: str) -> ErrorAnswer:
    words = {
        404: (f"Unknown request URL: {method} {path}. Please check the URL.", "unknown_url"),
        405: (f"Not allowed to {method} on {path}. Try another method.", "method_not_supported"),
    }
    message, code = words.get(error.status_code, (str(error.detail), None))
    return _answer(
        status=error.status_code, message=message, code=code, headers=error.headers or {}
    )
