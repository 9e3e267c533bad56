"""Chat completions, from the HTTP client to the wire of the base model and back."""

import hashlib
import hmac
import json
import socket
from typing import Any

import pytest
from openai import NotFoundError

from adapter_sync.record import AdapterStatus
from adapter_sync.tiers import load_tiers
from tests.integration.gateway.running import Client, Gateway, Prompt
from tests.integration.gateway.stand_in import StandIn


def _error(answer: Any) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def test_the_sdk_chats_with_the_base_model(client: Client) -> None:
    answer = client.openai.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hello"}]
    )
    assert answer.choices[0].message.content == "The capital is Paris."
    assert answer.model == "tiny"


def test_the_sdk_streams_from_the_base_model(client: Client) -> None:
    stream = client.openai.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hello"}], stream=True
    )
    words = [chunk.choices[0].delta.content for chunk in stream]
    assert words == ["The", " capital", " is", " Paris", "."]


def test_the_engines_bytes_pass_untouched(client: Client) -> None:
    with client.chat_stream("hello") as answer:
        body = answer.read()
    assert body.startswith(b'data: {"id": "chatcmpl-1"')
    assert body.endswith(b"}\n\ndata: [DONE]\n\n")
    assert body.count(b"data: ") == 6


def test_a_stream_has_the_headers_that_proxies_heed(client: Client) -> None:
    with client.chat_stream("hello") as answer:
        headers = answer.headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert headers["x-request-id"]


def test_an_answer_in_one_piece_is_json(client: Client) -> None:
    answer = client.chat("hello")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["choices"][0]["message"]["content"] == "The capital is Paris."


@pytest.mark.parametrize("stream", [True, False])
def test_the_engine_gets_the_adapters_identity_and_the_clients_body(
    client: Client, stand_in: StandIn, prompt: Prompt, *, stream: bool
) -> None:
    adapter = client.upload_as("finance", AdapterStatus.READY)
    fields = {"model": "tiny:finance", "temperature": 0, "stream": stream, "unknown": [1, "é"]}
    text = prompt("hello")
    answer = client.chat(text, **fields)
    assert answer.status_code == 200
    exchange = stand_in.wait_for(text)
    assert exchange.base_model == "tiny"
    assert exchange.stream_of.empty_final_wanted
    request = exchange.request
    assert request["endpoint"] == "chat.completions"
    assert request["lora_name"] == adapter.lora_name
    assert request["served_name"] == "tiny:finance"
    assert request["body"] == {"messages": [{"role": "user", "content": text}], **fields}
    assert adapter.lora_name not in answer.text
    assert "tiny:finance" in answer.text


def test_the_base_model_needs_no_adapter(client: Client, stand_in: StandIn, prompt: Prompt) -> None:
    text = prompt("hello")
    client.chat(text)
    assert stand_in.wait_for(text).request["lora_name"] is None


def test_the_engines_request_id_is_never_the_clients(
    client: Client, stand_in: StandIn, prompt: Prompt
) -> None:
    text = prompt("hello")
    client.http.headers["x-request-id"] = "mine"
    assert client.chat(text).headers["x-request-id"] == "mine"
    assert len(stand_in.wait_for(text).request["request_id"]) == 32


def test_each_tenant_has_its_own_cache_salt(
    client: Client, other_client: Client, gateway: Gateway, stand_in: StandIn, prompt: Prompt
) -> None:
    texts = [prompt("hello"), prompt("hello"), prompt("hello")]
    for text, asking in zip(texts, (client, client, other_client), strict=True):
        asking.chat(text)
    salts = [stand_in.wait_for(text).request["cache_salt"] for text in texts]
    assert salts[0] == salts[1] != salts[2]
    key = (gateway.data_folder / "secret.key").read_bytes()
    expected = hmac.new(key, client.tenant.id.encode(), hashlib.sha256).hexdigest()
    assert salts[0] == expected


def test_the_engine_is_told_whose_turn_it_is_and_the_weight_of_its_tier(
    client: Client, stand_in: StandIn, prompt: Prompt
) -> None:
    text = prompt("hello")
    client.chat(text)
    request = stand_in.wait_for(text).request
    weight = load_tiers().of(client.tenant).weight
    assert (request["tenant"], request["weight"]) == (client.tenant.id, weight)


def test_an_unknown_model_is_not_found(client: Client) -> None:
    with pytest.raises(NotFoundError) as caught:
        client.openai.chat.completions.create(
            model="gpt-4", messages=[{"role": "user", "content": "hello"}]
        )
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


def test_another_tenants_adapter_is_not_found_in_the_same_words(
    client: Client, other_client: Client
) -> None:
    other_client.upload_as("finance", AdapterStatus.READY)
    theirs, nobodys = (
        client.chat("hello", model=f"tiny:{name}") for name in ("finance", "nobodys")
    )
    assert theirs.status_code == nobodys.status_code == 404
    assert theirs.text == nobodys.text.replace("nobodys", "finance")
    assert _error(theirs)["code"] == "model_not_found"


def test_two_tenants_adapters_of_one_name_are_two(
    client: Client, other_client: Client, stand_in: StandIn, prompt: Prompt
) -> None:
    names = []
    for asking in (client, other_client):
        adapter = asking.upload_as("finance", AdapterStatus.READY)
        text = prompt("hello")
        asking.chat(text, model="tiny:finance")
        assert stand_in.wait_for(text).request["lora_name"] == adapter.lora_name
        names.append(adapter.lora_name)
    assert names[0] != names[1]


def test_a_deleted_adapter_is_not_found(client: Client) -> None:
    adapter = client.upload_as("finance", AdapterStatus.READY)
    client.http.delete(f"/v1/adapters/{adapter.id}")
    assert client.chat("hello", model="tiny:finance").status_code == 404


def test_an_adapter_that_is_loading_is_not_ready(client: Client) -> None:
    client.upload_as("finance", AdapterStatus.LOADING)
    answer = client.chat("hello", model="tiny:finance")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert _error(answer)["code"] == "adapter_not_ready"


def test_an_adapter_that_failed_says_why(client: Client) -> None:
    client.upload_as("finance", AdapterStatus.FAILED, "out of memory")
    answer = client.chat("hello", model="tiny:finance")
    assert (answer.status_code, answer.headers["x-should-retry"]) == (409, "false")
    assert "out of memory" in _error(answer)["message"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "expected a JSON object"),
        (b'{"model": "tiny"}', "Missing required parameter: 'messages'"),
        (b'{"messages": [{}]}', "Missing required parameter: 'model'"),
        (b'{"model": "tiny", "messages": [{}], "cache_salt": "x"}', "Unsupported parameter"),
    ],
)
def test_a_bad_body_is_a_400(client: Client, content: bytes, message: str) -> None:
    answer = client.http.post("/v1/chat/completions", content=content)
    assert answer.status_code == 400
    assert message in _error(answer)["message"]
    assert _error(answer)["type"] == "invalid_request_error"


def test_a_model_with_a_lone_surrogate_is_not_found(client: Client) -> None:
    body = rb'{"model": "tiny:\ud800", "messages": [{"role": "user", "content": "hello"}]}'
    assert client.http.post("/v1/chat/completions", content=body).status_code == 404


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_over_the_limit_is_refused(client: Client, *, announced: bool) -> None:
    body = json.dumps({"model": "tiny", "messages": [{"content": "x" * 200_000}]}).encode()
    pieces = (body[start : start + 10_000] for start in range(0, len(body), 10_000))
    answer = client.http.post("/v1/chat/completions", content=body if announced else pieces)
    assert answer.status_code == 413
    assert _error(answer)["code"] == "request_too_large"


def test_a_body_that_is_announced_too_large_is_refused_before_it_comes(client: Client) -> None:
    url = client.http.base_url
    with socket.create_connection((url.host, url.port), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
            + f"authorization: Bearer {client.api_key}\r\n".encode()
            + b"content-length: 100001\r\n\r\n"
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_deeply_nested_body_is_passed_on_or_refused(client: Client) -> None:
    for depth in range(100, 1100, 50):
        content = b'{"model":"tiny","messages":[{"role":"user","content":"hello"}],"x":%s%s}'
        answer = client.http.post(
            "/v1/chat/completions", content=content % (b"[" * depth, b"]" * depth)
        )
        assert answer.status_code in {200, 400}
