"""Two gateways on one registry, in PostgreSQL: what holds in one holds in the other."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from adapter_sync.record import AdapterStatus
from tests.integration.gateway.running import (
    BASE_MODEL,
    FAST_LIMITS,
    PATIENCE_S,
    Client,
    base_model,
    client_of,
    running_gateway,
)

KEY_DEADLINE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Two:
    """A tenant's client, at each of the gateways."""

    first: Client
    second: Client


@pytest.fixture
def two(triton_port: int, tmp_path: Path, postgresql_url: str) -> Iterator[Two]:
    with ExitStack() as opened:
        gateways = [
            opened.enter_context(
                running_gateway(
                    tmp_path / "data", triton_port, FAST_LIMITS, registry_url=postgresql_url
                )
            )
            for _ in range(2)
        ]
        gateways[0].registry.put_base_model(base_model(BASE_MODEL))
        first = opened.enter_context(client_of(gateways[0]))
        http = opened.enter_context(
            httpx.Client(base_url=gateways[1].url, headers=first.http.headers, timeout=PATIENCE_S)
        )
        yield Two(first=first, second=replace(first, url=gateways[1].url, http=http))


def test_an_adapter_uploaded_to_one_answers_at_the_other(two: Two) -> None:
    adapter = two.first.upload_as("finance", AdapterStatus.READY)
    body = {
        "model": adapter.requested_model,
        "messages": [{"role": "user", "content": "hello"}],
    }
    answer = two.second.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == adapter.requested_model
    listed = two.second.http.get("/v1/adapters").json()["data"]
    assert [each["id"] for each in listed] == [adapter.id]


def test_of_two_uploads_of_one_name_at_once_one_wins(two: Two) -> None:
    with ThreadPoolExecutor(8) as threads:
        clients = [two.first, two.second] * 4
        statuses = list(threads.map(lambda each: each.upload("finance").status_code, clients))
    assert sorted(statuses) == [201] + [409] * 7


def test_the_tier_s_number_of_adapters_holds_over_both(two: Two) -> None:
    def upload(number: int) -> int:
        client = two.first if number % 2 else two.second
        return client.upload(f"a{number}").status_code

    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(upload, range(26)))
    assert statuses.count(429) == 6
    assert len(two.first.registry.adapters(two.first.tenant.id)) == 20


def test_a_key_revoked_at_one_opens_nothing_at_the_other(two: Two) -> None:
    assert two.second.http.get("/v1/models").status_code == 200
    [key] = two.first.registry.keys(two.first.tenant.name).items
    two.first.registry.revoke_key(key.id)
    deadline = time.monotonic() + KEY_DEADLINE_S
    while two.second.http.get("/v1/models").status_code != 401:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_usage_counted_by_both_is_added_up(two: Two) -> None:
    body = {"model": BASE_MODEL, "messages": [{"role": "user", "content": "hello"}]}
    for client in (two.first, two.second, two.second):
        assert client.http.post("/v1/chat/completions", json=body).status_code == 200
    for client in (two.first, two.second):
        client.http.get("/v1/usage")
    [bucket] = two.first.http.get("/v1/usage").json()["data"]
    assert bucket["requests"] == 3


@pytest.mark.parametrize(
    "path", ["/v1/adapters/adp_%00", "/v1/adapters?after=%00", "/v1/aliases/%00"]
)
def test_a_nul_in_an_id_is_just_unknown(two: Two, path: str) -> None:
    assert two.first.http.get(path).status_code in (400, 404)
