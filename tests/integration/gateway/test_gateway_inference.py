"""The endpoints that ask an engine: what they share, and where their APIs' words differ."""

import json
import threading
import time
from typing import Any

import httpx
import pytest

from adapter_sync.record import AdapterStatus
from gateway.inference.endpoints import INFERENCE_ENDPOINTS
from tests.integration.gateway.running import PATIENCE_S, Client, Prompt, body_for
from tests.integration.gateway.stand_in import StandIn

NAMES = {endpoint.path: endpoint.name for endpoint in INFERENCE_ENDPOINTS}
STREAMING = sorted(endpoint.path for endpoint in INFERENCE_ENDPOINTS if endpoint.streams)
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"


@pytest.mark.parametrize("path", sorted(NAMES))
@pytest.mark.parametrize("model", ["tiny", "tiny:finance"])
def test_every_endpoint_reaches_the_engine_by_its_name(
    client: Client, stand_in: StandIn, prompt: Prompt, path: str, model: str
) -> None:
    adapter = client.upload_as("finance", AdapterStatus.READY)
    text = prompt("hello")
    body = body_for(path, text, model=model)
    answer = client.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    request = stand_in.wait_for(text).request
    assert request["endpoint"] == NAMES[path]
    assert request["lora_name"] == (adapter.lora_name if model == "tiny:finance" else None)
    assert request["served_name"] == model
    assert request["cache_salt"]
    assert request["body"] == body


@pytest.mark.parametrize("path", sorted(NAMES))
def test_every_endpoint_wants_a_key_and_limits_its_rate(client: Client, path: str) -> None:
    body = body_for(path, "hello")
    assert httpx.post(f"{client.url}{path}", json=body).status_code == 401
    answer = client.http.post(path, json={**body, "model": "other"})
    assert answer.status_code == 404
    assert "x-ratelimit-remaining-requests" in answer.headers


def test_the_key_may_come_in_anthropics_header(client: Client) -> None:
    headers = {"x-api-key": client.api_key, "anthropic-version": "2023-06-01"}
    body = body_for(MESSAGES, "hello")
    assert httpx.post(f"{client.url}{MESSAGES}", json=body, headers=headers).status_code == 200
    wrong = {"x-api-key": "pk-0-wrong"}
    refused = httpx.post(f"{client.url}{MESSAGES}", json=body, headers=wrong)
    assert refused.status_code == 401
    assert refused.json()["error"]["type"] == "authentication_error"
    both = {**wrong, "authorization": f"Bearer {client.api_key}"}
    assert httpx.post(f"{client.url}{MESSAGES}", json=body, headers=both).status_code == 200


@pytest.mark.parametrize("path", [MESSAGES, "/v1/messages/count_tokens"])
@pytest.mark.parametrize(
    ("fields", "status", "kind"),
    [
        ({"model": "other"}, 404, "not_found_error"),
        ({"messages": []}, 400, "invalid_request_error"),
        ({"messages": [{"role": "user", "content": "refused"}]}, 400, "invalid_request_error"),
        ({"messages": [{"role": "user", "content": "crashed"}]}, 500, "api_error"),
        ({"messages": [{"role": "user", "content": "error"}]}, 503, "overloaded_error"),
    ],
)
def test_the_messages_api_has_anthropics_errors(
    client: Client, path: str, fields: dict[str, Any], status: int, kind: str
) -> None:
    answer = client.http.post(path, json=body_for(path, "hello", **fields))
    assert answer.status_code == status
    assert answer.json().keys() == {"type", "error"}
    assert answer.json()["type"] == "error"
    assert answer.json()["error"].keys() == {"type", "message"}
    assert answer.json()["error"]["type"] == kind


def test_an_error_in_the_middle_of_a_stream_is_an_event_of_its_api(client: Client) -> None:
    events = {}
    for path in STREAMING:
        body = body_for(path, "breaks", stream=True)
        answer = client.http.post(path, json=body)
        assert answer.status_code == 200
        events[path] = answer.text.rstrip("\n").rpartition("\n\n")[2]
    for path in (CHAT, "/v1/completions"):
        assert events[path].startswith('data: {"error": {')
    name, data = events[MESSAGES].split("\n")
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"]["type"] == "overloaded_error"
    name, data = events[RESPONSES].split("\n")
    assert name == "event: error"
    error = json.loads(data.removeprefix("data: "))
    assert error.keys() == {"type", "message", "param", "code", "sequence_number"}
    assert error["type"] == "error"


@pytest.mark.parametrize("path", STREAMING)
def test_a_stream_that_takes_too_long_ends_with_an_event_and_in_the_engine(
    client: Client, stand_in: StandIn, prompt: Prompt, path: str
) -> None:
    text = prompt("goes on")
    began = time.monotonic()
    answer = client.http.post(
        path, json=body_for(path, text, stream=True), headers={"x-request-timeout": "0.4"}
    )
    assert 0.3 < time.monotonic() - began < 30
    assert "was not finished within 0.4 s" in answer.text.rstrip("\n").rpartition("\n\n")[2]
    assert stand_in.wait_for(text).cancelled.wait(PATIENCE_S)


@pytest.mark.parametrize("seconds", ["soon", "0", "-1", "nan", ""])
def test_a_time_out_that_is_no_time_is_refused(client: Client, seconds: str) -> None:
    answer = client.http.post(
        CHAT, json=body_for(CHAT, "hello"), headers={"x-request-timeout": seconds}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "x-request-timeout"


def test_a_longer_time_out_than_the_servers_changes_nothing(client: Client) -> None:
    for seconds in ("1e9", "inf"):
        answer = client.http.post(
            CHAT, json=body_for(CHAT, "hello"), headers={"x-request-timeout": seconds}
        )
        assert answer.status_code == 200


def test_a_request_waits_for_an_adapter_that_is_loading(client: Client) -> None:
    adapter = client.upload_as("finance", AdapterStatus.LOADING)
    soon = threading.Timer(0.2, client.report, (adapter.id, AdapterStatus.READY))
    soon.start()
    answer = client.chat("hello", model="tiny:finance")
    soon.join()
    assert answer.status_code == 200, answer.text


def test_every_answer_tells_how_long_it_took(client: Client) -> None:
    answer = client.chat("slow hello")
    assert 600 < int(answer.headers["openai-processing-ms"]) < 5000
    assert client.http.get("/v1/nothing").headers["openai-processing-ms"].isdecimal()
