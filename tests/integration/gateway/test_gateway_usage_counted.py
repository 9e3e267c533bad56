"""What a tenant used is told to the token, however its requests end, and to nobody else."""

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from adapter_sync.record import AdapterStatus
from tests.integration.gateway.running import (
    BASE_MODEL,
    FAST_LIMITS,
    Client,
    Gateway,
    Prompt,
    base_model,
    client_of,
    running_gateway,
)
from tests.integration.gateway.stand_in import PROMPT_TOKENS, WORDS, StandIn

PATIENCE_S = 60
TOKENS = len(WORDS)


def used(client: Client, **asked: str) -> list[dict[str, Any]]:
    answer = client.http.get("/v1/usage", params=asked)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert (document["object"], document["has_more"]) == ("list", False)
    buckets: list[dict[str, Any]] = document["data"]
    return buckets


def numbers(bucket: Mapping[str, Any]) -> tuple[int, int, int]:
    return bucket["requests"], bucket["prompt_tokens"], bucket["completion_tokens"]


def total(client: Client) -> tuple[int, int, int]:
    buckets = used(client, group_by="model")
    return numbers(buckets[0]) if buckets else (0, 0, 0)


def wait_for_total(client: Client, expected: tuple[int, int, int]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while total(client) != expected:
        assert time.monotonic() < deadline, total(client)
        time.sleep(0.02)


@contextmanager
def broken_registry(gateway: Gateway) -> Iterator[None]:
    """The gateway's database refuses usage."""
    file = gateway.data_folder / "registry.db"
    with closing(sqlite3.connect(file, isolation_level=None, timeout=PATIENCE_S)) as connection:
        connection.execute(
            "CREATE TRIGGER fault BEFORE INSERT ON usage BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
        try:
            yield
        finally:
            connection.execute("DROP TRIGGER fault")


def test_a_tenant_that_asked_nothing_has_no_usage(client: Client) -> None:
    assert used(client) == []


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_counts_as_the_engine_counts_it(client: Client, *, stream: bool) -> None:
    for _ in range(3):
        assert client.chat("counts", stream=stream).is_success
    assert used(client) == [
        {
            "object": "usage.bucket",
            "day": datetime.now(UTC).date().isoformat(),
            "model": BASE_MODEL,
            "requests": 3,
            "prompt_tokens": 3 * PROMPT_TOKENS,
            "completion_tokens": 3 * TOKENS,
        }
    ]


def test_a_client_that_stops_at_done_has_used_everything(client: Client) -> None:
    with client.chat_stream("counts") as answer:
        assert any(line == "data: [DONE]" for line in answer.iter_lines())
        assert total(client) == (1, PROMPT_TOKENS, TOKENS)


def test_a_client_that_leaves_in_mid_stream_has_used_what_came(
    client: Client, stand_in: StandIn, prompt: Prompt
) -> None:
    text = prompt("counts and hangs")
    with client.chat_stream(text) as answer:
        next(answer.iter_raw())
    assert stand_in.wait_for(text).cancelled.wait(PATIENCE_S)
    assert total(client) == (1, PROMPT_TOKENS, 3)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_before_the_first_byte_has_used_its_prompt(
    client: Client, stand_in: StandIn, prompt: Prompt, *, stream: bool
) -> None:
    text = prompt("takes the prompt")
    with pytest.raises(httpx.ReadTimeout):
        client.http.post(
            "/v1/chat/completions",
            json={"model": BASE_MODEL, "messages": [{"content": text}], "stream": stream},
            timeout=0.15,
        )
    assert stand_in.wait_for(text).cancelled.wait(PATIENCE_S)
    wait_for_total(client, (1, PROMPT_TOKENS, 0))


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_breaks_has_used_what_was_made(client: Client, *, stream: bool) -> None:
    client.chat("counts and breaks", stream=stream)
    assert total(client) == (1, PROMPT_TOKENS, 3)


@pytest.mark.parametrize("script", ["refused", "crashed", "not loaded", "error", "cut"])
def test_a_request_that_the_engine_refuses_is_no_usage(client: Client, script: str) -> None:
    assert not client.chat(script).is_success
    assert used(client) == []


def test_an_engine_that_tells_nothing_counts_as_a_request(client: Client) -> None:
    assert client.chat("hello").is_success
    assert total(client) == (1, 0, 0)


def test_usage_is_told_apart_by_model_and_adapter(client: Client) -> None:
    adapter = client.upload_as("finance", AdapterStatus.READY)
    for model in (BASE_MODEL, "tiny:finance", "tiny:finance"):
        assert client.chat("counts", model=model).is_success
    by_model = {each["model"]: numbers(each) for each in used(client)}
    once = (1, PROMPT_TOKENS, TOKENS)
    twice = (2, 2 * PROMPT_TOKENS, 2 * TOKENS)
    assert by_model == {"tiny": once, "tiny:finance": twice}
    by_adapter = {each["adapter"]: numbers(each) for each in used(client, group_by="adapter")}
    assert by_adapter == {None: once, adapter.id: twice}


def test_a_tenant_sees_its_own_usage_alone(client: Client, other_client: Client) -> None:
    other_client.chat("counts")
    assert used(client) == []
    assert client.http.get("/v1/usage", headers={"authorization": ""}).status_code == 401


def test_days_outside_the_question_are_not_told(client: Client) -> None:
    client.chat("counts")
    today = datetime.now(UTC).date()
    yesterday = (today - timedelta(1)).isoformat()
    assert used(client, end=yesterday) == []
    assert len(used(client, start=yesterday, end=(today + timedelta(1)).isoformat())) == 1


@pytest.mark.parametrize("param", ["start", "end", "group_by"])
def test_a_bad_parameter_is_a_400_that_names_it(client: Client, param: str) -> None:
    answer = client.http.get("/v1/usage", params={param: "x"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_an_adapter_shows_when_it_was_last_used(client: Client) -> None:
    adapter = client.upload_as("finance", AdapterStatus.READY)

    def last_used_at() -> int | None:
        shown = client.http.get(f"/v1/adapters/{adapter.id}").json()
        last: int | None = shown["last_used_at"]
        return last

    assert last_used_at() is None
    before = int(time.time())
    client.chat("counts", model="tiny:finance")
    used(client)
    last = last_used_at()
    assert last is not None
    assert before <= last <= time.time()


def test_what_nobody_asks_for_is_written_within_seconds(client: Client) -> None:
    client.chat("counts")
    today = datetime.now(UTC).date()
    deadline = time.monotonic() + PATIENCE_S
    while not (
        buckets := client.registry.usage(client.tenant.id, first=today, last=today, group_by=[])
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert buckets[0].usage.requests == 1


def test_a_registry_that_can_not_be_written_costs_no_usage(
    client: Client, gateway: Gateway
) -> None:
    client.chat("counts")
    with broken_registry(gateway):
        client.chat("counts")
        # Asking flushes, and the background does so too.
        assert client.http.get("/v1/usage").status_code == 500
        time.sleep(1.2)
        client.chat("counts")
    assert total(client) == (3, 3 * PROMPT_TOKENS, 3 * TOKENS)


def test_a_gateway_that_stops_writes_what_it_has(
    tmp_path: Any, triton_port: int, stand_in: StandIn, prompt: Prompt
) -> None:
    text = prompt("counts and hangs")
    with running_gateway(tmp_path, triton_port, FAST_LIMITS) as gateway:
        gateway.registry.put_base_model(base_model(BASE_MODEL))
        with client_of(gateway) as client:
            client.chat("counts")
            with client.chat_stream(text) as answer:
                next(answer.iter_raw())
                tenant = client.tenant
                stand_in.wait_for(text)
    with running_gateway(tmp_path, triton_port, FAST_LIMITS) as gateway:
        today = datetime.now(UTC).date()
        [bucket] = gateway.registry.usage(tenant.id, first=today, last=today, group_by=[])
    assert bucket.usage.completion_tokens == TOKENS + 3
    assert (bucket.usage.requests, bucket.usage.prompt_tokens) == (2, 2 * PROMPT_TOKENS)
