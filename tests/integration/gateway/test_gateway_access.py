"""Each endpoint with each kind of key: who may, who may not, and in which words."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from adapter_sync.record import AdapterStatus
from gateway.inference.endpoints import INFERENCE_ENDPOINTS
from tests.integration.gateway.running import (
    ADMIN_KEY,
    BASE_MODEL,
    Client,
    Gateway,
    body_for,
    client_of,
)

OWN, OTHER = "own", "other"
INFERENCE_PATHS = tuple(endpoint.path for endpoint in INFERENCE_ENDPOINTS)
NO_TENANT = ("admin", "revoked", "expired", "deleted", "none", "wrong")
NO_ADMIN = (OWN, OTHER, "revoked", "expired", "deleted", "none", "wrong")

# What a tenant gets for its own things, and another tenant for the same.
TENANT_ENDPOINTS = (
    *(("POST", path, 200, 404) for path in INFERENCE_PATHS),
    ("GET", "/v1/models", 200, 200),
    ("GET", "/v1/adapters", 200, 200),
    ("POST", "/v1/adapters/upload", 400, 400),
    ("GET", "/v1/adapters/{adapter}", 200, 404),
    ("DELETE", "/v1/adapters/{adapter}", 200, 404),
    ("POST", "/v1/adapters", 400, 400),
    ("GET", "/v1/adapters/{adapter}/events", 200, 404),
    ("GET", "/v1/adapters/{adapter}/revisions", 200, 404),
    ("POST", "/v1/adapters/{adapter}/rollback", 409, 404),
    ("GET", "/v1/models/{model}", 200, 404),
    ("GET", "/v1/aliases", 200, 200),
    ("PUT", "/v1/aliases/mine", 400, 400),
    ("GET", "/v1/aliases/mine", 404, 404),
    ("DELETE", "/v1/aliases/mine", 404, 404),
    ("GET", "/v1/usage", 200, 200),
    ("GET", "/v1/nothing", 404, 404),
)
ADMIN_ENDPOINTS = (
    ("GET", "/admin/v1/tenants", 200),
    ("POST", "/admin/v1/tenants", 400),
    ("GET", "/admin/v1/tenants/{tenant}", 200),
    ("PATCH", "/admin/v1/tenants/{tenant}", 400),
    ("GET", "/admin/v1/tenants/{tenant}/keys", 200),
    ("POST", "/admin/v1/tenants/{tenant}/keys", 201),
    ("DELETE", "/admin/v1/keys/{key}", 200),
    ("GET", "/admin/v1/adapters", 200),
    ("DELETE", "/admin/v1/adapters/{adapter}", 200),
    ("GET", "/admin/v1/nodes", 200),
    ("GET", "/admin/v1/base-models", 200),
    ("PUT", "/admin/v1/base-models/gone/reservation", 400),
    ("DELETE", "/admin/v1/base-models/gone/reservation", 404),
    ("GET", "/admin/v1/tiers", 200),
    ("GET", "/admin/v1/audit", 200),
    ("DELETE", "/admin/v1/tenants/{tenant}", 409),
    ("GET", "/admin/v1/nothing", 404),
    ("GET", "/admin", 404),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A tenant with an adapter, and a key of each kind."""

    client: Client
    adapter_id: str
    model: str
    keys: dict[str, str | None]

    def ask(self, kind: str, method: str, path: str) -> httpx.Response:
        url = self.client.url + path.format(
            adapter=self.adapter_id,
            model=self.model,
            tenant=self.client.tenant.name,
            key=self.client.api_key.split("-")[1],
        )
        key = self.keys[kind]
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        body = None
        if path in INFERENCE_PATHS:
            body = body_for(path, "hello", model=self.model)
        return httpx.request(method, url, headers=headers, json=body, timeout=10)

    def is_untouched(self) -> bool:
        listed = self.client.http.get("/v1/adapters").json()["data"]
        return [each["id"] for each in listed] == [self.adapter_id]


@pytest.fixture
def scene(gateway: Gateway) -> Iterator[Scene]:
    registry = gateway.registry
    with ExitStack() as stack:
        own, other, deleted = (stack.enter_context(client_of(gateway)) for _ in range(3))
        name, past = own.tenant.name, datetime.now(UTC) - timedelta(seconds=1)
        revoked = registry.issue_key(name)
        registry.revoke_key(revoked.key.id)
        registry.delete_tenant(deleted.tenant.name)
        yield Scene(
            client=own,
            adapter_id=own.upload_as("finance", AdapterStatus.READY).id,
            model=f"{BASE_MODEL}:finance",
            keys={
                OWN: own.api_key,
                OTHER: other.api_key,
                "admin": ADMIN_KEY,
                "revoked": revoked.text,
                "expired": registry.issue_key(name, expires_at=past).text,
                "deleted": deleted.api_key,
                "none": None,
                "wrong": own.api_key[:-1] + ("A" if own.api_key[-1] != "A" else "B"),
            },
        )


@pytest.mark.parametrize(("method", "path", "own", "other"), TENANT_ENDPOINTS)
def test_below_v1_there_are_tenants_only(
    scene: Scene, method: str, path: str, own: int, other: int
) -> None:
    refused = {kind: scene.ask(kind, method, path) for kind in NO_TENANT}
    assert {answer.status_code for answer in refused.values()} == {401}
    assert len({answer.text for kind, answer in refused.items() if kind != "none"}) == 1
    assert scene.ask(OTHER, method, path).status_code == other
    assert scene.is_untouched()
    assert scene.ask(OWN, method, path).status_code == own


@pytest.mark.parametrize(("method", "path", "status"), ADMIN_ENDPOINTS)
def test_below_admin_there_is_the_operator_only(
    scene: Scene, gateway: Gateway, method: str, path: str, status: int
) -> None:
    before = gateway.registry.audit(limit=1)
    refused = {kind: scene.ask(kind, method, path) for kind in NO_ADMIN}
    assert {answer.status_code for answer in refused.values()} == {401}
    assert {answer.json()["error"]["code"] for answer in refused.values()} == {"invalid_api_key"}
    assert len({answer.text for kind, answer in refused.items() if kind != "none"}) == 1
    assert gateway.registry.audit(limit=1) == before
    assert scene.ask("admin", method, path).status_code == status


@pytest.mark.parametrize("kind", ["own", "other", *NO_TENANT])
@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/health", "/ping"])
def test_health_asks_for_no_key(scene: Scene, path: str, kind: str) -> None:
    assert scene.ask(kind, "GET", path).status_code == 200
