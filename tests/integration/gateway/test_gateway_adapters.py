"""Uploading, listing and deleting adapters, with real files and the real checks."""

import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from adapter_sync.record import AdapterStatus
from tests.integration.gateway.running import Client, Gateway, adapter_weights


def _error(answer: Any) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def _config(rank: int = 4) -> str:
    return json.dumps(
        {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "target_modules": ["q_proj"]}
    )


def _leftovers(gateway: Gateway) -> list[str]:
    return [file.name for file in (gateway.data_folder / "staging" / "uploads").iterdir()]


def test_an_upload_answers_with_the_adapter(client: Client) -> None:
    before = int(time.time())
    answer = client.upload("finance", lora_alpha="8")
    assert answer.status_code == 201
    adapter = answer.json()
    assert answer.headers["location"] == f"/v1/adapters/{adapter['id']}"
    assert adapter["id"].startswith("adp_")
    assert answer.headers["etag"] == adapter.pop("etag")
    assert before <= adapter.pop("created_at") <= adapter.pop("updated_at") <= time.time()
    size_bytes = adapter.pop("size_bytes")
    assert {key: value for key, value in adapter.items() if key != "id"} == {
        "object": "adapter",
        "name": "finance",
        "base_model": "tiny",
        "model": "tiny:finance",
        "status": "loading",
        "error": None,
        "progress": {"stage": "loading", "bytes_done": size_bytes, "bytes_total": size_bytes},
        "source": {"type": "upload"},
        "revision": 1,
        "serving_revision": None,
        "rank": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "last_used_at": None,
        "residency": None,
        "warnings": [],
    }
    assert client.http.get(f"/v1/adapters/{adapter['id']}").json()["id"] == adapter["id"]


@pytest.mark.parametrize("as_file", [True, False])
def test_the_config_may_be_a_file_or_a_text(client: Client, *, as_file: bool) -> None:
    files = {"file": adapter_weights()}
    data = {"name": "finance", "base_model": "tiny"}
    if as_file:
        files["config"] = _config().encode()
    else:
        data["config"] = _config()
    answer = client.http.post(
        "/v1/adapters/upload", data=data, files=files, headers={"prefer": "wait=0"}
    )
    assert answer.json()["lora_alpha"] == 16


def test_an_upload_without_a_config_says_what_was_assumed(client: Client) -> None:
    adapter = client.upload("finance").json()
    assert adapter["lora_alpha"] == 4
    assert len(adapter["warnings"]) == 1


def test_an_upload_is_not_lost_when_nothing_loads_it(client: Client) -> None:
    started = time.monotonic()
    answer = client.upload("finance", prefer="wait=1")
    assert 1 <= time.monotonic() - started < 20
    assert (answer.status_code, answer.json()["status"]) == (201, "loading")
    assert client.http.get("/v1/adapters").json()["data"][0]["status"] == "loading"


@pytest.mark.parametrize("status", [AdapterStatus.READY, AdapterStatus.FAILED])
def test_an_upload_waits_for_the_end_of_loading(client: Client, status: AdapterStatus) -> None:
    def load() -> None:
        while not (adapters := client.registry.adapters(client.tenant.id)):
            time.sleep(0.01)
        time.sleep(0.2)
        client.registry.set_adapter_status(
            adapters[0].id,
            adapters[0].revision.digest,
            status,
            error_code="engine_refused" if status is AdapterStatus.FAILED else None,
            error_message=f"{adapters[0].lora_name} is bad"
            if status is AdapterStatus.FAILED
            else None,
        )

    loading = threading.Thread(target=load)
    loading.start()
    started = time.monotonic()
    adapter = client.upload("finance", prefer="wait=60").json()
    loading.join()
    assert time.monotonic() - started < 30
    assert adapter["status"] == status
    failed = {"code": "engine_refused", "message": "tiny:finance is bad"}
    assert adapter["error"] == (failed if status is AdapterStatus.FAILED else None)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (b"not safetensors at all", "safetensors"),
        (adapter_weights(rank=16), "16"),
        (adapter_weights(hidden=8), "q_proj"),
    ],
)
def test_a_bad_file_is_refused_and_leaves_nothing(
    client: Client, gateway: Gateway, weights: bytes, words: str
) -> None:
    answer = client.upload("finance", weights)
    assert answer.status_code == 400
    error = _error(answer)
    assert (error["param"], error["code"]) == ("file", "invalid_adapter")
    assert words in error["message"]
    assert client.http.get("/v1/adapters").json()["data"] == []
    assert _leftovers(gateway) == []


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"name": "a b"}, "name", "invalid_name"),
        ({"base_model": "gpt-4"}, "base_model", "model_not_found"),
        ({"lora_alpha": "much"}, "lora_alpha", "invalid_value"),
        ({"config": "{"}, "config", "invalid_adapter"),
        ({"priority": "1"}, "priority", "unknown_parameter"),
        ({"name": ""}, "name", "empty_field"),
    ],
)
def test_a_bad_field_is_named(
    client: Client, gateway: Gateway, fields: dict[str, str], param: str, code: str
) -> None:
    data = {"name": "finance", "base_model": "tiny", **fields}
    answer = client.http.post("/v1/adapters/upload", data=data, files={"file": adapter_weights()})
    assert answer.status_code == (404 if code == "model_not_found" else 400)
    assert (_error(answer)["param"], _error(answer)["code"]) == (param, code)
    assert _leftovers(gateway) == []


@pytest.mark.parametrize("missing", ["name", "base_model", "file"])
def test_a_missing_field_is_named(client: Client, missing: str) -> None:
    parts = {"name": b"finance", "base_model": b"tiny", "file": adapter_weights()}
    parts.pop(missing)
    answer = client.http.post(
        "/v1/adapters/upload", files={name: (None, part) for name, part in parts.items()}
    )
    assert (answer.status_code, _error(answer)["param"]) == (400, missing)


def test_a_body_that_is_no_form_is_refused(client: Client) -> None:
    answer = client.http.post("/v1/adapters/upload", json={"name": "finance"})
    assert (answer.status_code, _error(answer)["code"]) == (400, "invalid_content_type")


def test_a_name_can_be_taken_once(client: Client) -> None:
    client.upload("finance")
    answer = client.upload("finance")
    assert (answer.status_code, answer.headers["x-should-retry"]) == (409, "false")
    assert _error(answer)["code"] == "adapter_exists"


def test_a_tier_allows_so_many_adapters(client: Client) -> None:
    for index in range(20):
        assert client.upload(f"a{index}").status_code == 201
    answer = client.upload("a20")
    assert (answer.status_code, answer.headers["x-should-retry"]) == (429, "false")
    assert _error(answer)["code"] == "adapter_limit_reached"


def test_a_file_that_is_announced_too_large_is_refused_before_it_comes(client: Client) -> None:
    url = client.http.base_url
    with socket.create_connection((url.host, url.port), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/adapters/upload HTTP/1.1\r\nhost: x\r\n"
            + f"authorization: Bearer {client.api_key}\r\n".encode()
            + b"content-type: multipart/form-data; boundary=b\r\n"
            + b"content-length: 600000000\r\n\r\n"
        )
        answer = connection.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code": "adapter_too_large"' in answer


def test_a_large_file_is_never_held_in_memory(client: Client, gateway: Gateway) -> None:
    megabytes, megabyte = 60, b"x" * 1_000_000

    def body() -> Iterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name="name"\r\n\r\na\r\n'
        yield b'--b\r\ncontent-disposition: form-data; name="base_model"\r\n\r\ntiny\r\n'
        yield b'--b\r\ncontent-disposition: form-data; name="file"\r\n\r\n'
        for _ in range(megabytes):
            yield megabyte
        yield b"\r\n--b--\r\n"

    tracemalloc.start()
    try:
        answer = client.http.post(
            "/v1/adapters/upload",
            content=body(),
            headers={"content-type": "multipart/form-data; boundary=b"},
        )
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (answer.status_code, _error(answer)["code"]) == (400, "invalid_adapter")
    assert peak_bytes < 20_000_000
    assert _leftovers(gateway) == []


def test_a_client_that_leaves_in_mid_upload_leaves_nothing(
    client: Client, gateway: Gateway
) -> None:
    def body() -> Iterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name="file"\r\n\r\n' + b"x" * 3_000_000
        deadline = time.monotonic() + 5
        while not _leftovers(gateway):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        client.http.post(
            "/v1/adapters/upload",
            content=body(),
            headers={"content-type": "multipart/form-data; boundary=b"},
        )
    deadline = time.monotonic() + 5
    while _leftovers(gateway):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert client.http.get("/v1/adapters").json()["data"] == []


def test_adapters_are_listed_newest_first(client: Client, other_client: Client) -> None:
    empty = client.http.get("/v1/adapters").json()
    assert empty == {
        "object": "list",
        "data": [],
        "has_more": False,
        "first_id": None,
        "last_id": None,
    }
    old, new = (client.upload(name).json()["id"] for name in ("old", "new"))
    other_client.upload("theirs")
    listed = client.http.get("/v1/adapters").json()
    assert [adapter["name"] for adapter in listed["data"]] == ["new", "old"]
    assert (listed["first_id"], listed["last_id"]) == (new, old)


def test_the_list_comes_in_pages(client: Client, other_client: Client) -> None:
    ids = [client.upload(f"a{number}").json()["id"] for number in range(5)]
    theirs = other_client.upload("theirs").json()["id"]
    seen: list[str] = []
    params: dict[str, str | int] = {"limit": 2, "order": "asc"}
    while True:
        page = client.http.get("/v1/adapters", params=params).json()
        seen += [adapter["id"] for adapter in page["data"]]
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], seen[-1])
        if not page["has_more"]:
            break
        params["after"] = page["last_id"]
    assert seen == ids
    newest = client.http.get("/v1/adapters", params={"limit": 1}).json()
    assert [adapter["id"] for adapter in newest["data"]] == ids[-1:]
    assert newest["has_more"]
    rest = client.http.get("/v1/adapters", params={"after": ids[2]}).json()
    assert [adapter["id"] for adapter in rest["data"]] == [ids[1], ids[0]]
    unknown = client.http.get("/v1/adapters", params={"after": "adp_nobodys"})
    for after in (theirs, "adp_nobodys", ""):
        answer = client.http.get("/v1/adapters", params={"after": after})
        assert (answer.status_code, _error(answer)["param"]) == (400, "after")
        assert answer.text.replace(f"'{after}'", "'adp_nobodys'") == unknown.text


def test_the_list_is_of_one_base_model_or_status_if_asked_for(client: Client) -> None:
    client.upload_as("ready", AdapterStatus.READY)
    client.upload_as("failed", AdapterStatus.FAILED, "bad")
    client.upload("cold", base_model="org/cold")

    def listed(**params: str) -> list[str]:
        page = client.http.get("/v1/adapters", params=params).json()
        return [adapter["name"] for adapter in page["data"]]

    assert listed() == ["cold", "failed", "ready"]
    assert listed(base_model="org/cold") == ["cold"]
    assert listed(base_model="tiny", order="asc") == ["ready", "failed"]
    assert listed(status="failed") == ["failed"]
    assert listed(status="loading", base_model="tiny") == []
    assert listed(base_model="gone") == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limit", "0"),
        ("limit", "101"),
        ("limit", "-1"),
        ("limit", "many"),
        ("limit", ""),
        ("limit", "9" * 5000),
        ("order", "random"),
        ("order", "DESC"),
        ("status", "deleting"),
        ("status", "gone"),
        ("status", ""),
    ],
)
def test_a_list_that_is_asked_for_wrongly_is_refused(client: Client, name: str, value: str) -> None:
    answer = client.http.get("/v1/adapters", params={name: value})
    assert (answer.status_code, _error(answer)["param"]) == (400, name)


def test_an_adapter_is_deleted_once(client: Client) -> None:
    adapter_id = client.upload("finance").json()["id"]
    deleted = client.http.delete(f"/v1/adapters/{adapter_id}")
    assert deleted.status_code == 200
    assert deleted.json() == {"id": adapter_id, "object": "adapter", "deleted": True}
    again = client.http.delete(f"/v1/adapters/{adapter_id}")
    assert (again.status_code, _error(again)["code"]) == (404, "adapter_not_found")
    assert client.http.get(f"/v1/adapters/{adapter_id}").status_code == 404
    assert client.http.get("/v1/adapters").json()["data"] == []


def test_another_tenants_adapter_is_not_found_in_the_same_words(
    client: Client, other_client: Client
) -> None:
    adapter_id = other_client.upload("finance").json()["id"]
    nobodys = client.http.get("/v1/adapters/adp_nobodys")
    for method in ("GET", "DELETE"):
        theirs = client.http.request(method, f"/v1/adapters/{adapter_id}")
        assert theirs.status_code == nobodys.status_code == 404
        assert theirs.text.replace(adapter_id, "adp_nobodys") == nobodys.text
    assert other_client.http.get(f"/v1/adapters/{adapter_id}").status_code == 200
