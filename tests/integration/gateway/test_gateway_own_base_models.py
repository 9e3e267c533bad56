"""A base model that is reserved to one tenant: for the others there is none of that name."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from adapter_sync.record import AdapterStatus
from tests.integration.gateway.running import (
    ADMIN_KEY,
    BASE_MODEL,
    PATIENCE_S,
    Client,
    Gateway,
    adapter_weights,
    base_model,
    client_of,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """A base model of the owner's own, and the admin's client."""

    name: str
    owner: Client
    admin: httpx.Client

    @property
    def path(self) -> str:
        return f"/base-models/{self.name}/reservation"


@pytest.fixture
def reserved(gateway: Gateway) -> Iterator[Reserved]:
    name = f"own-{uuid.uuid4().hex[:8]}"
    gateway.registry.put_base_model(base_model(name))
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    url = f"{gateway.url}/admin/v1"
    with (
        client_of(gateway, "dedicated") as owner,
        httpx.Client(base_url=url, headers=headers, timeout=PATIENCE_S) as admin,
    ):
        made = Reserved(name=name, owner=owner, admin=admin)
        answer = admin.put(made.path, json={"tenants": [owner.tenant.name]})
        assert answer.status_code == 200, answer.text
        yield made
    gateway.registry.remove_base_model(name)


def chat(client: Client, model: str) -> tuple[int, str | None]:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    answer = client.http.post("/v1/chat/completions", json=body)
    return answer.status_code, answer.json().get("error", {}).get("code")


def models(client: Client) -> set[str]:
    return {model["id"] for model in client.http.get("/v1/models").json()["data"]}


def upload(client: Client, base: str) -> httpx.Response:
    return client.http.post(
        "/v1/adapters/upload",
        data={"name": "finance", "base_model": base},
        files={"file": adapter_weights()},
        headers={"prefer": "wait=0"},
    )


def test_its_tenant_sees_and_uses_it(reserved: Reserved) -> None:
    assert reserved.name in models(reserved.owner)
    assert chat(reserved.owner, reserved.name) == (200, None)
    assert upload(reserved.owner, reserved.name).status_code == 201
    target = {"model": reserved.name}
    assert reserved.owner.http.put("/v1/aliases/mine", json=target).status_code == 201


def test_to_the_others_it_is_as_unknown_as_any_name(reserved: Reserved, client: Client) -> None:
    assert models(client) == {*models(client)} - {reserved.name}
    assert reserved.name not in models(client)
    answers = {
        name: [
            (answer.status_code, answer.text.replace(name, "NAME"))
            for answer in (
                client.http.get(f"/v1/models/{name}"),
                upload(client, name),
                client.http.put("/v1/aliases/mine", json={"model": name}),
                client.http.post(
                    "/v1/adapters", json={"name": "a", "base_model": name, "repo": "o/r"}
                ),
            )
        ]
        for name in (reserved.name, "own-unknown0")
    }
    assert answers[reserved.name] == answers["own-unknown0"]
    assert {status for status, _ in answers[reserved.name]} <= {400, 404}
    assert chat(client, reserved.name) == (404, "model_not_found")
    assert chat(client, f"{reserved.name}:finance") == (404, "model_not_found")


def test_adapters_from_before_are_unknown_until_the_base_model_is_released(
    reserved: Reserved, client: Client, gateway: Gateway
) -> None:
    released = reserved.admin.delete(reserved.path).json()
    assert (released["id"], released["reserved_for"]) == (reserved.name, None)
    adapter = client.report(upload(client, reserved.name).json()["id"], AdapterStatus.READY)
    assert chat(client, adapter.requested_model) == (200, None)
    gateway.registry.reserve_base_model(reserved.name, [reserved.owner.tenant.name])
    assert chat(client, adapter.requested_model) == (404, "model_not_found")
    gateway.registry.release_base_model(reserved.name)
    assert chat(client, adapter.requested_model) == (200, None)


def test_the_admin_sees_whom_each_base_model_is_for(reserved: Reserved) -> None:
    listed = {each["id"]: each for each in reserved.admin.get("/base-models").json()["data"]}
    assert listed[reserved.name]["reserved_for"] == [reserved.owner.tenant.name]
    assert listed[BASE_MODEL]["reserved_for"] is None


def test_a_tenant_of_another_tier_and_an_unknown_one_are_refused(
    reserved: Reserved, client: Client
) -> None:
    refused = {
        client.tenant.name: (400, "own_base_model_not_allowed"),
        "nobody": (404, "tenant_not_found"),
    }
    for tenant, expected in refused.items():
        answer = reserved.admin.put(reserved.path, json={"tenants": [tenant]})
        assert (answer.status_code, answer.json()["error"]["code"]) == expected
    assert reserved.admin.put(reserved.path, json={"tenants": []}).status_code == 400
    unknown = reserved.admin.delete("/base-models/own-unknown0/reservation")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
