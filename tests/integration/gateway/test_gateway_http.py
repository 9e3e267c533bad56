"""What holds for every request: keys, the envelope, request ids, models and health."""

import socket
from typing import Any

import httpx
import pytest

from adapter_sync.record import AdapterStatus
from tests.integration.gateway.running import Client, Gateway, base_model
from tests.integration.gateway.stand_in import DEAD_BASE_MODEL, STARTING_BASE_MODEL

PATIENCE_S = 60


def _error(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("PUT", "/v1/chat/completions"),
        ("POST", "/v1/adapters/upload"),
        ("GET", "/v1/adapters/adp_1"),
        ("GET", "/v1/nothing"),
        ("GET", "/v1"),
        ("GET", "/%761/models"),
    ],
)
@pytest.mark.parametrize("key", [None, "Bearer", "Bearer pk-wrong", "Basic abc", "Bearer é"])
def test_without_a_good_key_there_is_only_a_401(
    gateway: Gateway, method: str, path: str, key: str | None
) -> None:
    headers = [] if key is None else [(b"authorization", key.encode())]
    answer = httpx.request(method, gateway.url + path, headers=headers)
    assert answer.status_code == 401
    assert _error(answer)["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["x-request-id"]


def test_a_wrong_key_is_told_before_the_body_is_read(gateway: Gateway) -> None:
    url = httpx.URL(gateway.url)
    with socket.create_connection((url.host, url.port), timeout=PATIENCE_S) as connection:
        connection.sendall(
            b"POST /v1/adapters/upload HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n"
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("GET", "/v1/models/", 404, "unknown_url"),
        ("GET", "/nothing", 404, "unknown_url"),
        ("GET", "/docs", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 405, "method_not_supported"),
        ("PUT", "/v1/adapters", 405, "method_not_supported"),
        ("PUT", "/health/live", 405, "method_not_supported"),
    ],
)
def test_what_is_not_there_is_told_in_the_envelope(
    client: Client, method: str, path: str, status: int, code: str
) -> None:
    answer = client.http.request(method, path)
    assert answer.status_code == status
    error = _error(answer)
    assert (error["code"], error["type"]) == (code, "invalid_request_error")
    assert path in error["message"]
    assert ("allow" in answer.headers) == (status == 405)


def test_a_path_tells_all_of_its_methods(client: Client) -> None:
    answer = client.http.request("PATCH", "/v1/aliases/mine")
    assert (answer.status_code, answer.headers["allow"]) == (405, "DELETE, GET, PUT")


@pytest.mark.parametrize(("sent", "kept"), [("my.id-1", True), ("not valid!", False)])
@pytest.mark.parametrize("path", ["/health/live", "/v1/models", "/v1/nothing"])
def test_every_answer_has_a_request_id(client: Client, path: str, sent: str, *, kept: bool) -> None:
    answered = client.http.get(path, headers={"x-request-id": sent}).headers["x-request-id"]
    assert (answered == sent) is kept
    assert answered


def test_the_models_are_the_base_models_and_ones_own_ready_adapters(
    client: Client, other_client: Client
) -> None:
    client.upload_as("ready", AdapterStatus.READY)
    client.upload_as("loading", AdapterStatus.LOADING)
    client.upload_as("failed", AdapterStatus.FAILED, "bad")
    other_client.upload_as("theirs", AdapterStatus.READY)
    models = client.http.get("/v1/models").json()
    assert models["object"] == "list"
    assert all(isinstance(model.pop("created"), int) for model in models["data"])
    assert models["data"] == [
        {
            "id": name,
            "object": "model",
            "owned_by": "system",
            "root": name,
            "parent": None,
            "max_model_len": 128,
        }
        for name in ("org/cold", "tiny")
    ] + [
        {
            "id": "tiny:ready",
            "object": "model",
            "owned_by": client.tenant.name,
            "root": "tiny:ready",
            "parent": "tiny",
            "max_model_len": 128,
        }
    ]


def test_the_sdk_lists_the_models(client: Client) -> None:
    assert {"tiny", "org/cold"} <= {model.id for model in client.openai.models.list()}


def test_a_base_model_that_comes_later_is_seen(client: Client, gateway: Gateway) -> None:
    tiny = gateway.registry.base_model("tiny")
    later = type(tiny)(
        name="later", max_lora_rank=8, max_model_len=64, tensor_shapes=tiny.tensor_shapes
    )
    gateway.registry.put_base_model(later)
    assert client.chat("hello", model="later").status_code == 200
    gateway.registry.remove_base_model("later")
    assert client.chat("hello", model="later").status_code == 404


def test_the_gateway_is_live_and_ready(gateway: Gateway) -> None:
    live = httpx.get(gateway.url + "/health/live")
    ready = httpx.get(gateway.url + "/health/ready")
    assert (live.status_code, live.json()) == (200, {"status": "live"})
    assert ready.status_code == 200
    assert ready.json()["status"] == "ready"
    assert ready.json()["base_models"]["tiny"] == {"proof_age_s": 0.5}


def test_the_gateway_is_live_but_not_ready_while_an_engine_is_dead(gateway: Gateway) -> None:
    gateway.registry.put_base_model(base_model(DEAD_BASE_MODEL))
    try:
        live = httpx.get(gateway.url + "/health/live")
        ready = httpx.get(gateway.url + "/health/ready")
    finally:
        gateway.registry.remove_base_model(DEAD_BASE_MODEL)
    assert live.status_code == 200
    assert ready.status_code == 503
    missing = "the engine of the base model 'dead' has died and is being restarted"
    assert ready.json() == {"status": "not_ready", "missing": [missing]}
    assert httpx.get(gateway.url + "/health/ready").status_code == 200


def test_a_base_model_that_loads_for_the_first_time_leaves_the_others_ready(
    gateway: Gateway,
) -> None:
    gateway.registry.put_base_model(base_model(STARTING_BASE_MODEL))
    try:
        ready = httpx.get(gateway.url + "/health/ready")
    finally:
        gateway.registry.remove_base_model(STARTING_BASE_MODEL)
    assert ready.status_code == 200
    assert "tiny" in ready.json()["base_models"]
    assert STARTING_BASE_MODEL not in ready.json()["base_models"]
