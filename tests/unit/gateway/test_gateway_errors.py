"""Every error becomes the OpenAI envelope, and tells a client no more than it should."""

import inspect
import json
from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from adapter_sync import errors
from adapter_sync.errors import (
    AdapterExistsError,
    AdapterLimitError,
    AdapterNotFoundError,
    AdaptersNotSupportedError,
    AdapterTooLargeError,
    AliasLimitError,
    AliasNameTakenError,
    AliasNotFoundError,
    BaseModelNotFoundError,
    ConfigurationError,
    InvalidAdapterError,
    InvalidApiKeyError,
    InvalidNameError,
    KeyNotFoundError,
    LoraServerError,
    TenantExistsError,
    TenantHasAdaptersError,
    TenantNotFoundError,
    TritonRefusedError,
    TritonUnavailableError,
    UnknownCursorError,
    UnknownTierError,
)
from gateway import errors as gateway_errors
from gateway.errors import (
    RULES,
    AdapterFailedError,
    AdapterNotReadyError,
    EngineFailedError,
    EngineRefusedError,
    EngineTimeoutError,
    InvalidRequestError,
    ModelNotFoundError,
    QueueFullError,
    QueueTimeoutError,
    answer_for,
)


def _classes_of(module: object) -> list[type[LoraServerError]]:
    return [
        value
        for _, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, LoraServerError)
    ]


def _envelope(error: Exception) -> dict[str, Any]:
    envelope: dict[str, Any] = json.loads(answer_for(error).body)["error"]
    return envelope


@pytest.mark.parametrize("module", [errors, gateway_errors])
def test_every_error_class_has_a_rule(module: object) -> None:
    assert [cls for cls in _classes_of(module) if cls not in RULES] == []


@pytest.mark.parametrize(
    ("error", "status", "type_", "param", "code"),
    [
        (
            InvalidAdapterError("the tensor x has rank 128", param="config"),
            *(400, "invalid_request_error", "config", "invalid_adapter"),
        ),
        (
            InvalidNameError(name="a b", param="name", rule="use letters"),
            *(400, "invalid_request_error", "name", "invalid_name"),
        ),
        (
            BaseModelNotFoundError(base_model="x", known=["y"]),
            *(404, "invalid_request_error", "base_model", "model_not_found"),
        ),
        (
            AdapterTooLargeError(limit_bytes=10, tier="shared"),
            *(413, "invalid_request_error", "file", "adapter_too_large"),
        ),
        (
            AdapterExistsError(name="a", base_model="b", adapter_id="adp_1"),
            *(409, "invalid_request_error", "name", "adapter_exists"),
        ),
        (
            AdapterLimitError(limit=20, tier="shared"),
            *(429, "insufficient_quota", None, "adapter_limit_reached"),
        ),
        (
            AdapterNotFoundError(adapter_id="adp_1"),
            *(404, "invalid_request_error", None, "adapter_not_found"),
        ),
        (
            AdaptersNotSupportedError(base_model="x", taking=["y"]),
            *(400, "invalid_request_error", "base_model", "adapters_not_supported"),
        ),
        (
            AliasNotFoundError(alias="a"),
            *(404, "invalid_request_error", None, "alias_not_found"),
        ),
        (
            AliasNameTakenError(alias="a"),
            *(409, "invalid_request_error", "alias", "model_exists"),
        ),
        (
            AliasLimitError(limit=100),
            *(429, "insufficient_quota", None, "alias_limit_reached"),
        ),
        (
            InvalidApiKeyError("no"),
            *(401, "invalid_request_error", None, "invalid_api_key"),
        ),
        (
            TenantExistsError(name="acme"),
            *(409, "invalid_request_error", "name", "tenant_exists"),
        ),
        (
            TenantNotFoundError(name="acme"),
            *(404, "invalid_request_error", None, "tenant_not_found"),
        ),
        (
            TenantHasAdaptersError(name="acme", count=2),
            *(409, "invalid_request_error", None, "tenant_has_adapters"),
        ),
        (
            KeyNotFoundError(key_id="0"),
            *(404, "invalid_request_error", None, "key_not_found"),
        ),
        (
            UnknownCursorError(after="adp_1"),
            *(400, "invalid_request_error", "after", "invalid_cursor"),
        ),
        (
            UnknownTierError(tier="golden", known=["shared"]),
            *(400, "invalid_request_error", "tier", "unknown_tier"),
        ),
        (
            ModelNotFoundError(requested_model="x"),
            *(404, "invalid_request_error", "model", "model_not_found"),
        ),
        (
            AdapterNotReadyError(requested_model="x"),
            *(503, "server_error", "model", "adapter_not_ready"),
        ),
        (
            QueueFullError("512 of your requests wait"),
            *(429, "requests", None, "rate_limit_exceeded"),
        ),
        (
            QueueTimeoutError("waited 60 s"),
            *(503, "server_error", None, "server_is_overloaded"),
        ),
        (
            AdapterFailedError(requested_model="x", reason="y"),
            *(409, "invalid_request_error", "model", "adapter_failed"),
        ),
        (
            EngineRefusedError("too long", status=422, param="messages"),
            *(422, "invalid_request_error", "messages", None),
        ),
        (
            EngineTimeoutError(waited_s=3),
            *(504, "server_error", None, "server_error"),
        ),
        (
            TritonUnavailableError("UNAVAILABLE: 127.0.0.1"),
            *(503, "server_error", None, "server_is_overloaded"),
        ),
        (
            InvalidRequestError("no", param="n"),
            *(400, "invalid_request_error", "n", None),
        ),
    ],
)
def test_an_error_has_its_status_and_all_four_keys(
    error: LoraServerError, status: int, type_: str, param: str | None, code: str | None
) -> None:
    assert answer_for(error).status == status
    envelope = _envelope(error)
    assert {key: envelope[key] for key in ("type", "param", "code")} == {
        "type": type_,
        "param": param,
        "code": code,
    }
    assert envelope["message"]


@pytest.mark.parametrize(
    "error",
    [
        AdapterExistsError(name="a", base_model="b", adapter_id="adp_1"),
        AdapterLimitError(limit=20, tier="shared"),
        AliasNameTakenError(alias="a"),
        AliasLimitError(limit=100),
        AdapterFailedError(requested_model="x", reason="y"),
        TenantExistsError(name="acme"),
        TenantHasAdaptersError(name="acme", count=2),
    ],
)
def test_an_error_that_a_retry_cannot_cure_says_so(error: LoraServerError) -> None:
    assert answer_for(error).headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    "error",
    [
        AdapterNotReadyError(requested_model="x"),
        QueueFullError("512 of your requests wait"),
        QueueTimeoutError("waited 60 s"),
        TritonUnavailableError("UNAVAILABLE"),
        TritonRefusedError("INTERNAL"),
    ],
)
def test_a_transient_error_says_when_to_come_back(error: LoraServerError) -> None:
    assert answer_for(error).headers["retry-after"] == "1"


@pytest.mark.parametrize(
    "error",
    [
        ConfigurationError("/srv/data/secret.key is broken"),
        TritonUnavailableError("UNAVAILABLE: /srv/data"),
        TritonRefusedError("/srv/data/model.py failed"),
        EngineFailedError("Traceback: /srv/data"),
        RuntimeError("/srv/data"),
    ],
)
def test_what_went_wrong_inside_is_not_told(error: Exception) -> None:
    answer = answer_for(error)
    assert answer.status >= 500
    assert b"/srv" not in answer.body


def test_a_subclass_without_a_rule_is_answered_like_its_parent() -> None:
    class StrangeAdapterError(InvalidAdapterError):
        pass

    assert answer_for(StrangeAdapterError("odd")).status == 400


def test_a_validation_error_of_fastapi_is_a_400_that_names_the_field() -> None:
    error = RequestValidationError(
        [{"type": "int_parsing", "loc": ("query", "limit"), "msg": "not an integer", "input": "x"}]
    )
    assert answer_for(error).status == 400
    assert _envelope(error)["param"] == "limit"


@pytest.mark.parametrize(("status", "code"), [(404, "unknown_url"), (405, "method_not_supported")])
def test_a_routing_error_names_the_method_and_the_path(status: int, code: str) -> None:
    answer = answer_for(HTTPException(status), method="PUT", path="/v1/x")
    assert (answer.status, answer.code) == (status, code)
    assert "PUT" in answer.message
    assert "/v1/x" in answer.message


def test_a_message_with_a_lone_surrogate_can_be_sent() -> None:
    envelope = _envelope(ModelNotFoundError(requested_model="\ud800"))
    assert "\ud800" in envelope["message"]


def test_an_error_after_the_first_byte_is_one_event() -> None:
    event = answer_for(EngineTimeoutError(waited_s=3)).event
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2
