"""The admin API over HTTP, and what a tenant then sees of what it did."""

import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapter_sync.node import ThisNode
from adapter_sync.record import AdapterStatus, Residency
from tests.integration.gateway.running import (
    ADMIN_KEY,
    BASE_MODEL,
    FAST_LIMITS,
    Client,
    Gateway,
    base_model,
    client_of,
    running_gateway,
)

PATIENCE_S = 60


@pytest.fixture
def admin(gateway: Gateway) -> Iterator[httpx.Client]:
    with _admin_of(gateway) as http:
        yield http


def _admin_of(gateway: Gateway) -> httpx.Client:
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    return httpx.Client(base_url=f"{gateway.url}/admin/v1", headers=headers, timeout=PATIENCE_S)


def _name() -> str:
    return f"t-{uuid.uuid4().hex[:12]}"


def _error(answer: httpx.Response) -> tuple[int, str | None, str | None]:
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return answer.status_code, error["code"], error["param"]


def _models_status(gateway: Gateway, api_key: str) -> int:
    headers = {"authorization": f"Bearer {api_key}"}
    return httpx.get(f"{gateway.url}/v1/models", headers=headers).status_code


def _last_audit(admin: httpx.Client, count: int) -> list[tuple[str, str, str, str]]:
    entries = admin.get("/audit", params={"limit": count}).json()["data"]
    return [
        (entry["actor"], entry["action"], entry["tenant"], entry["object_id"]) for entry in entries
    ]


def test_a_tenant_s_whole_life(admin: httpx.Client, gateway: Gateway) -> None:
    name = _name()
    made = admin.post("/tenants", json={"name": name, "tier": "shared"})
    assert (made.status_code, made.headers["location"]) == (201, f"/admin/v1/tenants/{name}")
    tenant = made.json()
    assert tenant == {
        "id": tenant["id"],
        "object": "tenant",
        "name": name,
        "tier": "shared",
        "created_at": tenant["created_at"],
    }
    assert admin.get(f"/tenants/{name}").json() == tenant
    assert tenant in admin.get("/tenants").json()["data"]

    key = admin.post(f"/tenants/{name}/keys").json()["api_key"]
    assert _models_status(gateway, key) == 200
    changed = admin.patch(f"/tenants/{name}", json={"tier": "reserved"})
    assert (changed.status_code, changed.json()) == (200, {**tenant, "tier": "reserved"})
    assert gateway.registry.caller(key).tenant.tier == "reserved"

    deleted = admin.delete(f"/tenants/{name}")
    assert deleted.json() == {"id": tenant["id"], "object": "tenant", "deleted": True}
    assert _models_status(gateway, key) == 401
    for gone in (admin.get(f"/tenants/{name}"), admin.delete(f"/tenants/{name}")):
        assert _error(gone) == (404, "tenant_not_found", None)
    assert admin.post("/tenants", json={"name": name, "tier": "shared"}).status_code == 201


def test_a_key_is_told_once_and_listed_without_its_secret(
    admin: httpx.Client, client: Client
) -> None:
    until = int(time.time()) + 3600
    path = f"/tenants/{client.tenant.name}/keys"
    made = admin.post(path, json={"name": "laptop", "expires_at": until})
    assert made.status_code == 201
    key = made.json()
    secret = key.pop("api_key")
    assert key == {
        "id": secret.split("-")[1],
        "object": "api_key",
        "tenant": client.tenant.name,
        "name": "laptop",
        "created_at": key["created_at"],
        "expires_at": until,
        "revoked_at": None,
        "last_used_at": None,
    }
    listed = admin.get(path)
    assert listed.json()["data"][0] == key
    assert secret.split("-", 2)[2] not in listed.text


def test_a_key_s_revocation_is_felt_by_the_next_request(
    admin: httpx.Client, client: Client, gateway: Gateway
) -> None:
    assert client.http.get("/v1/models").status_code == 200
    key_id = client.api_key.split("-")[1]
    for _ in range(2):
        revoked = admin.delete(f"/keys/{key_id}")
        assert revoked.json() == {"id": key_id, "object": "api_key", "deleted": True}
    over = client.http.get("/v1/models")
    wrong = httpx.get(f"{gateway.url}/v1/models", headers={"authorization": "Bearer pk-wrong"})
    assert (over.status_code, over.json()) == (401, wrong.json())
    [key] = admin.get(f"/tenants/{client.tenant.name}/keys").json()["data"]
    assert key["revoked_at"] is not None
    assert _error(admin.delete("/keys/nothing")) == (404, "key_not_found", None)


def test_a_key_s_end_is_felt_by_the_next_request(client: Client, gateway: Gateway) -> None:
    end = datetime.now(UTC) + timedelta(seconds=1)
    issued = gateway.registry.issue_key(client.tenant.name, expires_at=end)
    assert _models_status(gateway, issued.text) == 200
    time.sleep(max(0, (end - datetime.now(UTC)).total_seconds()))
    assert _models_status(gateway, issued.text) == 401


def test_a_key_s_last_use_is_soon_known_and_written_once_a_minute(
    client: Client, gateway: Gateway
) -> None:
    def last_used_at() -> datetime | None:
        return gateway.registry.caller(client.api_key).key.last_used_at

    began = datetime.now(UTC)
    assert client.http.get("/v1/models").status_code == 200
    deadline = time.monotonic() + PATIENCE_S
    while (first := last_used_at()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert began <= first <= datetime.now(UTC)
    for _ in range(3):
        assert client.http.get("/v1/models").status_code == 200
        time.sleep(0.5)
    assert last_used_at() == first


def test_requests_neither_wait_nor_fail_while_their_use_can_t_be_written(
    gateway: Gateway,
) -> None:
    with client_of(gateway) as client:
        database = gateway.registry._database
        with database.writing():
            began = time.monotonic()
            for _ in range(20):
                assert client.http.get("/v1/models").status_code == 200
            assert time.monotonic() - began < 20
            assert gateway.registry.caller(client.api_key).key.last_used_at is None
        deadline = time.monotonic() + PATIENCE_S
        while gateway.registry.caller(client.api_key).key.last_used_at is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_keys_come_in_pages(admin: httpx.Client, client: Client) -> None:
    path = f"/tenants/{client.tenant.name}/keys"
    made = [admin.post(path).json()["id"] for _ in range(4)]
    first = admin.get(path, params={"limit": 3}).json()
    assert [key["id"] for key in first["data"]] == made[:0:-1]
    assert (first["object"], first["has_more"]) == ("list", True)
    assert (first["first_id"], first["last_id"]) == (made[3], made[1])
    rest = admin.get(path, params={"limit": 3, "after": first["last_id"]}).json()
    assert [key["id"] for key in rest["data"]] == [made[0], client.api_key.split("-")[1]]
    assert rest["has_more"] is False


def test_all_tenants_adapters_are_listed_filtered_and_deleted(
    admin: httpx.Client, client: Client, other_client: Client
) -> None:
    mine = client.upload_as("mine", AdapterStatus.READY)
    theirs = other_client.upload_as("theirs", AdapterStatus.FAILED, "bad")
    both = admin.get("/adapters", params={"limit": 2}).json()
    assert [(each["id"], each["tenant"]) for each in both["data"]] == [
        (theirs.id, other_client.tenant.name),
        (mine.id, client.tenant.name),
    ]
    after = admin.get("/adapters", params={"limit": 1, "after": theirs.id}).json()
    assert [each["id"] for each in after["data"]] == [mine.id]

    def ids(**params: str) -> list[str]:
        return [each["id"] for each in admin.get("/adapters", params=params).json()["data"]]

    assert ids(tenant=client.tenant.name) == [mine.id]
    assert ids(tenant=client.tenant.name, status="failed") == []
    assert ids(tenant=other_client.tenant.name, base_model=BASE_MODEL) == [theirs.id]
    assert ids(base_model="nothing") == []

    deleted = admin.delete(f"/adapters/{mine.id}")
    assert deleted.json() == {"id": mine.id, "object": "adapter", "deleted": True}
    assert _error(admin.delete(f"/adapters/{mine.id}")) == (404, "adapter_not_found", None)
    assert client.http.get(f"/v1/adapters/{mine.id}").status_code == 404
    assert mine.id in ids(status="deleting")


def test_a_tenant_with_adapters_is_deleted_only_with_them(
    admin: httpx.Client, client: Client
) -> None:
    adapter = client.upload_as("mine", AdapterStatus.READY)
    path = f"/tenants/{client.tenant.name}"
    refused = admin.delete(path)
    assert _error(refused) == (409, "tenant_has_adapters", None)
    assert refused.headers["x-should-retry"] == "false"
    assert client.http.get("/v1/models").status_code == 200
    assert admin.delete(path, params={"with_adapters": "true"}).status_code == 200
    assert client.http.get("/v1/models").status_code == 401
    draining = admin.get("/adapters", params={"status": "deleting"}).json()["data"]
    assert (adapter.id, None) in {(each["id"], each["tenant"]) for each in draining}


def test_the_tiers_are_listed_with_their_limits(admin: httpx.Client) -> None:
    tiers = {tier["id"]: tier for tier in admin.get("/tiers").json()["data"]}
    assert list(tiers) == ["dedicated", "reserved", "shared"]
    assert (tiers["shared"]["object"], tiers["shared"]["max_adapters"]) == ("tier", 20)


def test_the_audit_says_who_changed_what(admin: httpx.Client, client: Client) -> None:
    name, key_id = client.tenant.name, client.api_key.split("-")[1]
    adapter_id = client.upload("finance").json()["id"]
    second_id = client.upload("second").json()["id"]
    client.http.delete(f"/v1/adapters/{adapter_id}")
    admin.delete(f"/adapters/{second_id}")
    admin.patch(f"/tenants/{name}", json={"tier": "reserved"})
    made = admin.post(f"/tenants/{name}/keys", json={"name": "x"}).json()
    admin.delete(f"/keys/{made['id']}")
    assert _last_audit(admin, 9)[::-1] == [
        ("system", "tenant.created", name, client.tenant.id),
        ("system", "key.created", name, key_id),
        (f"key:{key_id}", "adapter.created", name, adapter_id),
        (f"key:{key_id}", "adapter.created", name, second_id),
        (f"key:{key_id}", "adapter.deleted", name, adapter_id),
        ("admin", "adapter.deleted", name, second_id),
        ("admin", "tenant.tier_changed", name, client.tenant.id),
        ("admin", "key.created", name, made["id"]),
        ("admin", "key.revoked", name, made["id"]),
    ]
    newest = admin.get("/audit", params={"limit": 2}).json()
    assert newest["has_more"] is True
    entry = newest["data"][0]
    assert entry.keys() == {
        *("id", "object", "at", "actor", "action", "tenant", "object_id", "details"),
    }
    assert entry["details"] == {"tenant_id": client.tenant.id, "name": "x"}
    assert made["api_key"] not in admin.get("/audit").text
    following = admin.get("/audit", params={"limit": 1, "after": newest["last_id"]}).json()
    assert following["data"][0]["action"] == "tenant.tier_changed"


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("POST", "/tenants", "{}", (400, "missing_required_parameter", "name")),
        ("POST", "/tenants", "", (400, "missing_required_parameter", "name")),
        ("POST", "/tenants", "[]", (400, "invalid_value", None)),
        ("POST", "/tenants", "{", (400, "invalid_value", None)),
        ("POST", "/tenants", '{"name": 1, "tier": "shared"}', (400, "invalid_value", "name")),
        (
            "POST",
            "/tenants",
            '{"name": "a", "tier": "shared", "x": 1}',
            (400, "unknown_parameter", "x"),
        ),
        ("POST", "/tenants", '{"name": "A b", "tier": "shared"}', (400, "invalid_name", "name")),
        ("POST", "/tenants", '{"name": "new", "tier": "gold"}', (400, "unknown_tier", "tier")),
        (
            "POST",
            "/tenants",
            '{"name": "TENANT", "tier": "shared"}',
            (409, "tenant_exists", "name"),
        ),
        ("POST", "/tenants", '"' + "x" * 100_001, (413, "request_too_large", None)),
        ("PATCH", "/tenants/TENANT", '{"tier": "gold"}', (400, "unknown_tier", "tier")),
        ("PATCH", "/tenants/TENANT", '{"name": "x"}', (400, "missing_required_parameter", "tier")),
        ("PATCH", "/tenants/nobody", '{"tier": "shared"}', (404, "tenant_not_found", None)),
        ("DELETE", "/tenants/TENANT?with_adapters=perhaps", "", (400, None, "with_adapters")),
        ("POST", "/tenants/TENANT/keys", '{"name": ""}', (400, "invalid_name", "name")),
        ("POST", "/tenants/TENANT/keys", '{"expires_at": 1}', (400, None, "expires_at")),
        (
            "POST",
            "/tenants/TENANT/keys",
            '{"expires_at": "1"}',
            (400, "invalid_value", "expires_at"),
        ),
        (
            "POST",
            "/tenants/TENANT/keys",
            '{"expires_at": 1e30}',
            (400, "invalid_value", "expires_at"),
        ),
        (
            "POST",
            "/tenants/TENANT/keys",
            '{"expires_in": 1}',
            (400, "unknown_parameter", "expires_in"),
        ),
        ("POST", "/tenants/nobody/keys", "{}", (404, "tenant_not_found", None)),
        ("GET", "/tenants/nobody/keys", "", (404, "tenant_not_found", None)),
        ("GET", "/tenants/TENANT/keys?after=x", "", (400, "invalid_cursor", "after")),
        ("GET", "/adapters?limit=0", "", (400, None, "limit")),
        ("GET", "/adapters?limit=101", "", (400, None, "limit")),
        ("GET", "/adapters?status=odd", "", (400, None, "status")),
        ("GET", "/adapters?tenant=nobody", "", (404, "tenant_not_found", None)),
        ("GET", "/adapters?after=adp_0", "", (400, "invalid_cursor", "after")),
        ("GET", "/audit?after=17", "", (400, "invalid_cursor", "after")),
        ("PUT", "/tenants", "", (405, "method_not_supported", None)),
        ("GET", "/nothing", "", (404, "unknown_url", None)),
    ],
)
def test_what_is_wrong_is_named(
    admin: httpx.Client,
    client: Client,
    method: str,
    path: str,
    body: str,
    expected: tuple[int, str | None, str | None],
) -> None:
    path, body = (text.replace("TENANT", client.tenant.name) for text in (path, body))
    before = admin.get("/audit", params={"limit": 1}).json()
    assert _error(admin.request(method, path, content=body)) == expected
    assert admin.get("/audit", params={"limit": 1}).json() == before


def test_without_an_admin_key_there_is_no_admin_api(triton_port: int, tmp_path: Path) -> None:
    with running_gateway(tmp_path, triton_port, FAST_LIMITS, admin_key=None) as gateway:
        gateway.registry.put_base_model(base_model(BASE_MODEL))
        with client_of(gateway) as client, _admin_of(gateway) as admin:
            answers = [
                http.request(method, f"{gateway.url}{path}")
                for http in (admin, client.http)
                for method in ("GET", "POST")
                for path in ("/admin", "/admin/v1/tenants", "/admin/v1/nothing")
            ]
            assert {_error(answer) for answer in answers} == {(404, "unknown_url", None)}
            assert client.http.get("/v1/models").status_code == 200


def test_nodes_are_listed_with_what_they_serve_and_whether_they_are_lost(
    admin: httpx.Client, gateway: Gateway, tmp_path: Path
) -> None:
    node = ThisNode.load(tmp_path, "127.0.0.1:8000").announcement([base_model(BASE_MODEL)], {})
    silent = replace(
        node, id="nod_0", base_models=(), heartbeat_at=node.heartbeat_at - timedelta(seconds=31)
    )
    for each in (node, silent):
        gateway.registry.announce_node(each)
    listed = admin.get("/nodes").json()
    assert listed["object"] == "list"
    found = {each["id"]: each for each in listed["data"]}
    assert {each["id"]: each["status"] for each in listed["data"]} == {
        node.id: "up",
        silent.id: "lost",
    }
    assert found[node.id]["base_models"] == [
        {
            "name": BASE_MODEL,
            "max_model_len": node.base_models[0].max_model_len,
            "max_lora_rank": node.base_models[0].max_lora_rank,
            "max_loras": None,
            "lora_map_revision": None,
        }
    ]
    assert found[node.id]["heartbeat_at"] == int(node.heartbeat_at.timestamp())
    assert found[node.id].keys() - {"base_models", "heartbeat_at"} == {
        "id",
        "object",
        "status",
        "host",
        "triton",
        "version",
        "started_at",
    }


def test_an_adapter_s_residency_is_that_of_the_nodes(
    client: Client, gateway: Gateway, tmp_path: Path
) -> None:
    adapter = client.upload_as("resident", AdapterStatus.READY)
    node = ThisNode.load(tmp_path, "127.0.0.1:8000").announcement([], {})
    gateway.registry.announce_node(node)

    def residency() -> str | None:
        shown: str | None = client.http.get(f"/v1/adapters/{adapter.id}").json()["residency"]
        return shown

    assert residency() == "disk"
    gateway.registry.note_residencies(node.id, BASE_MODEL, {adapter.id: Residency.GPU})
    assert residency() == "gpu"
