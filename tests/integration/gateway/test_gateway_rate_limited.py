"""A tenant over its tier's rates gets a 429 that says when to come back; the others go on."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeAlias

import pytest
from openai import RateLimitError

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

LimitedClient: TypeAlias = Callable[[str], Client]
PATIENCE_S = 60
TIERS = """\
[shared]
max_adapters = 1
max_adapter_bytes = 1_000_000
requests_per_minute = 1000
tokens_per_minute = 1_000_000
max_streams = 100

[few-requests]
max_adapters = 1
max_adapter_bytes = 1_000_000
requests_per_minute = 3
tokens_per_minute = 1_000_000
max_streams = 100

[few-tokens]
max_adapters = 1
max_adapter_bytes = 1_000_000
requests_per_minute = 1000
tokens_per_minute = 20
max_streams = 100

[one-stream]
max_adapters = 1
max_adapter_bytes = 10
requests_per_minute = 1000
tokens_per_minute = 1_000_000
max_streams = 1
"""
NAMES = [
    f"x-ratelimit-{name}-{kind}"
    for kind in ("requests", "tokens")
    for name in ("limit", "remaining", "reset")
]


@pytest.fixture(scope="module")
def limited_gateway(
    triton_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("limited")
    tiers_file = folder / "tiers.toml"
    tiers_file.write_text(TIERS)
    with running_gateway(folder, triton_port, FAST_LIMITS, tiers_file=tiers_file) as gateway:
        gateway.registry.put_base_model(base_model(BASE_MODEL))
        yield gateway


@pytest.fixture
def client_in(limited_gateway: Gateway) -> Iterator[LimitedClient]:
    """A new tenant in a tier."""
    with ExitStack() as clients:
        yield lambda tier: clients.enter_context(client_of(limited_gateway, tier))


@contextmanager
def moved_to(gateway: Gateway, client: Client, tier: str) -> Iterator[None]:
    """The tenant has a tier that the file does not."""
    with gateway.registry._database.writing() as connection:
        connection.exec_driver_sql(
            "UPDATE tenants SET tier = ? WHERE id = ?", (tier, client.tenant.id)
        )
    yield


def test_a_request_over_the_limit_is_a_429_that_a_client_can_wait_for(
    client_in: LimitedClient,
) -> None:
    client = client_in("few-requests")
    for left in (2, 1, 0):
        answer = client.chat("counts")
        assert answer.is_success
        assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
    refused = client.chat("counts")
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert (error["type"], error["code"], error["param"]) == (
        "requests",
        "rate_limit_exceeded",
        None,
    )
    assert re.search(r"limit 3, used 3\. Please try again in \d", error["message"])
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert 1 <= int(refused.headers["retry-after-ms"]) <= 60_000
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert "x-should-retry" not in refused.headers
    assert refused.headers["x-request-id"]


def test_the_sdk_knows_it_as_a_rate_limit(client_in: LimitedClient) -> None:
    client = client_in("few-requests")
    for _ in range(3):
        client.chat("hello")
    with pytest.raises(RateLimitError) as caught:
        client.openai.chat.completions.create(
            model=BASE_MODEL, messages=[{"role": "user", "content": "hello"}]
        )
    assert caught.value.code == "rate_limit_exceeded"


@pytest.mark.parametrize("stream", [True, False])
def test_tokens_over_the_limit_are_a_429_of_their_own_type(
    client_in: LimitedClient, *, stream: bool
) -> None:
    client = client_in("few-tokens")
    each = PROMPT_TOKENS + len(WORDS)
    assert client.chat("counts", stream=stream).is_success
    second = client.chat("counts", stream=stream)
    assert second.is_success
    assert int(second.headers["x-ratelimit-remaining-tokens"]) < 20 - each + 1
    refused = client.chat("counts", stream=stream)
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] == "tokens"
    assert f"limit 20, used {2 * each}" in refused.json()["error"]["message"]
    assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
    assert int(refused.headers["retry-after"]) >= 1


def test_a_stream_too_many_waits_until_another_ends(
    client_in: LimitedClient, stand_in: StandIn, prompt: Prompt
) -> None:
    client = client_in("one-stream")
    text = prompt("goes on")
    with client.chat_stream(text) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        refused = client.chat("counts")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "requests at once: limit 1, used 1" in refused.json()["error"]["message"]
    assert stand_in.wait_for(text).cancelled.wait(PATIENCE_S)
    for _ in range(3):
        assert client.chat("counts").is_success


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"model":"tiny","messages":[{"content":"counts"}]}', 200),
        (b'{"model":"tiny","stream":true,"messages":[{"content":"counts"}]}', 200),
        (b'{"model":"tiny","messages":[{"content":"refused"}]}', 400),
        (b'{"model":"tiny","messages":[{"content":"error"}]}', 503),
        (b'{"model":"none","messages":[{"content":"counts"}]}', 404),
        (b"{", 400),
    ],
)
def test_every_answer_says_what_is_left(
    client_in: LimitedClient, content: bytes, status: int
) -> None:
    client = client_in("few-requests")
    answer = client.http.post("/v1/chat/completions", content=content)
    assert answer.status_code == status
    headers = [answer.headers[name] for name in NAMES]
    assert headers[:3] == ["3", "2", "1m0s"]
    assert headers[3] == "1000000"
    assert re.fullmatch(r"0s|1m0s", headers[5])


def test_other_paths_do_not_count(client_in: LimitedClient) -> None:
    client = client_in("few-requests")
    for _ in range(5):
        answer = client.http.get("/v1/models")
        assert answer.is_success
        assert NAMES[0] not in answer.headers
    assert client.chat("counts").headers["x-ratelimit-remaining-requests"] == "2"


def test_one_tenants_limit_is_not_anothers(client_in: LimitedClient) -> None:
    first, second = client_in("few-requests"), client_in("few-requests")
    for _ in range(4):
        first.chat("counts")
    assert second.chat("counts").is_success


def test_an_upload_goes_by_the_files_limit(client_in: LimitedClient) -> None:
    answer = client_in("one-stream").upload("finance")
    assert answer.status_code == 413
    assert "'one-stream'" in answer.json()["error"]["message"]


def test_a_tier_that_is_not_in_the_file_is_a_clear_error(
    client_in: LimitedClient, limited_gateway: Gateway
) -> None:
    client = client_in("shared")
    with moved_to(limited_gateway, client, "gold"):
        for answer in (client.chat("counts"), client.upload("finance")):
            assert answer.status_code == 500
            assert answer.headers["x-should-retry"] == "false"
            assert answer.json()["error"]["code"] == "tier_missing"
            assert "'gold' is not configured" in answer.json()["error"]["message"]
        assert client.http.get("/v1/models").is_success
