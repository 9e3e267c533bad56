"""What a client sees, and what the base model is told, when something breaks on the way."""

import json
import socket
import time
from typing import Any

import httpx
import pytest

from adapter_sync.record import AdapterStatus
from tests.integration.gateway.running import Client, Prompt
from tests.integration.gateway.stand_in import StandIn

PATIENCE_S = 60


def _error(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def _events(answer: httpx.Response) -> list[str]:
    events = answer.read().decode().split("\n\n")
    assert events.pop() == ""
    return events


def _error_event(event: str) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(event.removeprefix("data: "))["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        ("refused", 400, None),
        ("crashed", 500, "server_error"),
        ("not loaded", 503, "adapter_not_ready"),
        ("error", 503, "server_error"),
        ("cut", 503, "server_error"),
        ("no status", 503, "server_error"),
        ("only final", 503, "server_error"),
    ],
)
def test_a_fault_before_the_first_byte_is_a_status(
    client: Client, script: str, status: int, code: str | None, *, stream: bool
) -> None:
    adapter = client.upload_as("finance", AdapterStatus.READY)
    answer = client.chat(script, model="tiny:finance", stream=stream)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert _error(answer)["code"] == code
    assert adapter.id not in answer.text
    assert "/srv" not in answer.text


def test_an_answer_in_one_piece_that_does_not_come_in_time_is_a_504(
    client: Client, stand_in: StandIn, prompt: Prompt
) -> None:
    text = prompt("hangs")
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}]}
    answer = client.http.post(
        "/v1/chat/completions", json=body, headers={"x-request-timeout": "0.5"}
    )
    assert answer.status_code == 504
    assert answer.headers["x-should-retry"] == "false"
    assert (_error(answer)["type"], _error(answer)["code"]) == ("server_error", "deadline_exceeded")
    assert "0.5 s" in _error(answer)["message"]
    assert stand_in.wait_for(text).cancelled.wait(PATIENCE_S)


def test_a_refusal_names_the_model_as_the_client_does(client: Client) -> None:
    client.upload_as("finance", AdapterStatus.READY)
    answer = client.chat("refused", model="tiny:finance")
    assert _error(answer) == {
        "message": "tiny:finance at … is not good",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("breaks", "server_error"),
        ("aborts", "server_error"),
        ("ends", "server_is_overloaded"),
        ("fails midway", "server_error"),
        ("hangs midway", "server_error"),
    ],
)
def test_a_fault_after_the_first_byte_is_an_event_and_the_end(
    client: Client, script: str, code: str
) -> None:
    with client.chat_stream(script) as answer:
        assert answer.status_code == 200
        # On a busy machine the first one takes a while.
        first, last = (event for event in _events(answer) if event != ": keep-alive")
    assert '"content": "The"' in first
    assert _error_event(last)["code"] == code
    assert "/srv" not in last


@pytest.mark.parametrize("script", ["breaks", "aborts", "ends", "fails midway", "hangs midway"])
def test_half_an_answer_in_one_piece_is_an_error(client: Client, script: str) -> None:
    answer = client.chat(script)
    assert answer.status_code in {500, 503, 504}
    assert _error(answer)["type"] == "server_error"


def test_a_stream_is_kept_alive_until_its_first_token(client: Client) -> None:
    with client.chat_stream("slow hello") as answer:
        events = _events(answer)
    assert events[:2] == [": keep-alive"] * 2
    assert events[-1] == "data: [DONE]"
    assert len([event for event in events if event.startswith("data: ")]) == 6


def test_a_refusal_after_a_keep_alive_is_an_event(client: Client) -> None:
    with client.chat_stream("slow refusal") as answer:
        events = _events(answer)
    assert events[0] == ": keep-alive"
    assert _error_event(events[-1])["type"] == "invalid_request_error"


def test_a_stream_without_a_first_token_ends_in_time(
    client: Client, stand_in: StandIn, prompt: Prompt
) -> None:
    text = prompt("hangs")
    started = time.monotonic()
    with client.chat_stream(text) as answer:
        events = _events(answer)
    assert 1.4 < time.monotonic() - started < 30
    assert set(events[:-1]) == {": keep-alive"}
    assert "1.5 s" in _error_event(events[-1])["message"]
    assert stand_in.wait_for(text).cancelled.wait(PATIENCE_S)


def test_a_client_that_leaves_a_stream_ends_it_in_the_engine(
    client: Client, stand_in: StandIn, prompt: Prompt
) -> None:
    text = prompt("goes on")
    with client.chat_stream(text) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        exchange = stand_in.wait_for(text)
        assert not exchange.cancelled.is_set()
    assert exchange.cancelled.wait(PATIENCE_S)


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_client_that_leaves_before_the_first_byte_ends_the_request(
    client: Client, stand_in: StandIn, prompt: Prompt, stream: str
) -> None:
    text = prompt("hangs")
    body = f'{{"model":"tiny","stream":{stream},"messages":[{{"content":"{text}"}}]}}'.encode()
    url = client.http.base_url
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
            + f"authorization: Bearer {client.api_key}\r\n".encode()
            + f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        exchange = stand_in.wait_for(text)
        left = time.monotonic()
    assert exchange.cancelled.wait(PATIENCE_S)
    # Well before either deadline would have ended it.
    assert time.monotonic() - left < 1.3


@pytest.mark.parametrize("stream", [True, False])
def test_a_stream_that_the_base_model_ends_is_not_cancelled(
    client: Client, stand_in: StandIn, prompt: Prompt, *, stream: bool
) -> None:
    asked = prompt("hello")
    assert client.chat(asked, stream=stream).is_success
    assert stand_in.wait_for(asked).stream_of.ended_here.wait(PATIENCE_S)


def test_requests_share_a_stream_until_the_base_model_ends_it(
    client: Client, stand_in: StandIn, prompt: Prompt
) -> None:
    streams = []
    for wait_s in (0, 0, 0.5):
        time.sleep(wait_s)
        asked = prompt("hello")
        assert client.chat(asked).is_success
        streams.append(stand_in.wait_for(asked).stream_of)
    assert streams[0] is streams[1] is not streams[2]


def test_a_client_that_leaves_ends_no_other_request_of_its_stream(
    client: Client, stand_in: StandIn, prompt: Prompt
) -> None:
    stays, leaves = prompt("slow hello"), prompt("goes on")
    with client.chat_stream(stays) as answer:
        with client.chat_stream(leaves) as left:
            next(left.iter_raw())
        assert stand_in.wait_for(leaves).cancelled.wait(PATIENCE_S)
        assert _events(answer)[-1] == "data: [DONE]"
    assert stand_in.wait_for(stays).stream_of is stand_in.wait_for(leaves).stream_of


@pytest.mark.parametrize("stream", [True, False])
def test_a_base_model_that_was_reloaded_is_asked_on_a_new_stream(
    client: Client, stand_in: StandIn, prompt: Prompt, *, stream: bool
) -> None:
    asked = prompt("reloaded")
    assert "Paris" in client.chat(asked, stream=stream).text
    assert stand_in.attempts[asked] == 2


def test_a_base_model_that_knows_no_channel_is_given_up(
    client: Client, stand_in: StandIn, prompt: Prompt
) -> None:
    asked = prompt("always reloaded")
    assert client.chat(asked).status_code == 503
    assert stand_in.attempts[asked] == 3


def test_the_gateway_goes_on_after_every_fault(client: Client) -> None:
    for script in ("breaks", "aborts", "ends", "error", "cut"):
        client.chat(script, stream=True)
    assert client.chat("hello").status_code == 200


def test_a_body_that_stops_coming_is_given_up(client: Client) -> None:
    url = client.http.base_url
    with socket.create_connection((url.host, url.port), timeout=PATIENCE_S) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
            + f"authorization: Bearer {client.api_key}\r\n".encode()
            + b"content-length: 100\r\n\r\n{"
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
