"""POST /v1/adapters over real HTTP: from a hub's repo to the adapter object."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from adapter_sync.blobs import FolderBlobStore
from adapter_sync.fetcher import Fetcher
from adapter_sync.intake import Intake
from adapter_sync.record import AdapterStatus
from adapter_sync.secret_key import load_secret_key
from tests.hub_server import Hub, Repo
from tests.integration.gateway.running import BASE_MODEL, Client, Gateway, adapter_weights

CONFIG = b'{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}'
FILES = {"adapter_model.safetensors": adapter_weights(), "adapter_config.json": CONFIG}
REPO = "my-org/llama-lora-v3"


@contextmanager
def fetching(gateway: Gateway) -> Iterator[None]:
    """What adapter_sync does beside the gateway."""
    data, stopping = gateway.data_folder, threading.Event()
    blobs, staging = FolderBlobStore(data / "blobs"), data / "staging"
    fetcher = Fetcher(
        registry=gateway.registry,
        intake=Intake(gateway.registry, blobs, staging),
        folder=staging / "fetches",
        secret_key=load_secret_key(data.resolve()),
        stopping=stopping,
    )
    thread = threading.Thread(target=fetcher.run)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def ask_for(client: Client, *, wait_s: int = 0, **fields: Any) -> Any:
    body = {"name": "my-finetuned-v3", "base_model": BASE_MODEL, "repo": REPO} | fields
    return client.http.post("/v1/adapters", json=body, headers={"prefer": f"wait={wait_s}"})


def test_the_pages_own_example_arrives(client: Client, gateway: Gateway, hub: Hub) -> None:
    repo = hub.repos[REPO] = Repo(files=FILES)
    with fetching(gateway):
        answer = ask_for(client, revision="main", wait_s=1)
    assert answer.status_code == 201, answer.text
    adapter = answer.json()
    assert answer.headers["location"] == f"/v1/adapters/{adapter['id']}"
    assert answer.headers["etag"] == adapter["etag"]
    assert (adapter["model"], adapter["status"]) == (f"{BASE_MODEL}:my-finetuned-v3", "loading")
    assert adapter["source"] == {
        "type": "huggingface",
        "repo": REPO,
        "revision": "main",
        "commit": repo.commit,
        "subfolder": None,
    }


def test_an_adapter_on_its_way_is_shown_listed_and_not_ready(client: Client, hub: Hub) -> None:
    hub.repos[REPO] = Repo(files=FILES)
    answer = ask_for(client)
    assert answer.status_code == 202, answer.text
    adapter = answer.json()
    total = len(FILES["adapter_model.safetensors"]) + len(CONFIG)
    assert adapter["status"] == "pending"
    assert adapter["progress"] == {"stage": "pending", "bytes_done": 0, "bytes_total": total}
    assert (adapter["revision"], adapter["rank"], adapter["etag"]) == (None, None, None)
    assert client.http.get(f"/v1/adapters/{adapter['id']}").json() == adapter
    assert client.http.get("/v1/adapters").json()["data"] == [adapter]
    early = client.chat("hello", model=adapter["model"])
    assert (early.status_code, early.json()["error"]["code"]) == (503, "adapter_not_ready")
    again = ask_for(client)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "fetch_in_progress")
    assert again.headers["x-should-retry"] == "false"


def test_the_object_has_the_same_keys_on_its_way_and_here(
    client: Client, gateway: Gateway, hub: Hub
) -> None:
    hub.repos[REPO] = Repo(files=FILES)
    pending = ask_for(client).json()
    with fetching(gateway):
        uploaded = client.upload("other").json()
    assert pending.keys() == uploaded.keys()
    assert uploaded["source"] == {"type": "upload"}


def test_a_failed_fetch_says_why_and_may_be_tried_again(
    client: Client, gateway: Gateway, hub: Hub
) -> None:
    wrong = adapter_weights(hidden=8)
    hub.repos[REPO] = Repo(files=FILES | {"adapter_model.safetensors": wrong})
    with fetching(gateway):
        failed = ask_for(client, wait_s=5)
        assert failed.status_code == 202
        assert failed.json()["status"] == "failed"
        assert failed.json()["error"]["code"] == "invalid_adapter"
        used = client.chat("hello", model=failed.json()["model"])
        assert (used.status_code, used.json()["error"]["code"]) == (409, "adapter_failed")
        hub.repos[REPO] = Repo(files=FILES)
        assert ask_for(client, wait_s=1).status_code == 201


def test_a_new_revision_comes_from_a_repo_while_the_old_one_serves(
    client: Client, gateway: Gateway, hub: Hub
) -> None:
    adapter = client.upload_as("my-finetuned-v3", AdapterStatus.READY)
    hub.repos[REPO] = Repo(files=FILES)
    assert ask_for(client).json()["error"]["code"] == "adapter_exists"
    pending = ask_for(client, replace=True)
    assert (pending.status_code, pending.json()["id"]) == (202, adapter.id)
    assert pending.json()["status"] == "ready"
    assert pending.json()["progress"]["stage"] == "pending"
    assert client.chat("hello", model=adapter.requested_model).is_success
    client.http.delete(f"/v1/adapters/{adapter.id}").raise_for_status()
    assert gateway.registry.fetches(client.tenant.id) == []


def test_a_fetch_is_deleted_like_an_adapter(client: Client, other_client: Client, hub: Hub) -> None:
    hub.repos[REPO] = Repo(files=FILES)
    path = f"/v1/adapters/{ask_for(client).json()['id']}"
    for method in ("GET", "DELETE"):
        assert other_client.http.request(method, path).status_code == 404
    assert client.http.delete(path).json()["deleted"] is True
    for method in ("GET", "DELETE"):
        assert client.http.request(method, path).status_code == 404


def test_the_token_is_used_and_never_shown_or_kept_readable(
    client: Client, gateway: Gateway, hub: Hub
) -> None:
    token = "hf_" + "s3cret" * 5
    hub.repos[REPO] = Repo(files=FILES, token=token)
    refused = ask_for(client)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "repo_not_found")
    accepted = ask_for(client, hf_token=token)
    assert accepted.status_code == 202
    assert token not in accepted.text
    kept = b"".join(path.read_bytes() for path in gateway.data_folder.glob("registry.db*"))
    assert token.encode() not in kept
    with fetching(gateway):
        assert ask_for(client, name="waits", hf_token=token, wait_s=5).status_code == 201


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"repo": "../etc"}, 400, "invalid_repo", "repo"),
        ({"revision": "a b"}, 400, "invalid_repo", "revision"),
        ({"subfolder": "/etc"}, 400, "invalid_repo", "subfolder"),
        ({"repo": "no/body"}, 400, "repo_not_found", "repo"),
        ({"revision": "v9"}, 400, "repo_not_found", "revision"),
        ({"name": "a:b"}, 400, "invalid_name", "name"),
        ({"base_model": "gpt-4"}, 404, "model_not_found", "base_model"),
        ({"repo": None}, 400, "invalid_value", "repo"),
        ({"extra": 1}, 400, "unknown_parameter", "extra"),
        ({"hf_token": ["hf_secret"]}, 400, "invalid_value", "hf_token"),
        ({"hf_token": "hf_secret\n"}, 400, "invalid_value", "hf_token"),
    ],
)
def test_a_bad_request_names_its_field(
    client: Client, hub: Hub, fields: dict[str, Any], status: int, code: str, param: str
) -> None:
    hub.repos[REPO] = Repo(files=FILES)
    answer = ask_for(client, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert "hf_secret" not in answer.text
    assert client.http.get("/v1/adapters").json()["data"] == []


def test_a_hub_that_does_not_answer_is_a_503_to_try_again(client: Client, hub: Hub) -> None:
    hub.status = 500
    answer = ask_for(client)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "hub_unavailable")
    assert "retry-after" in answer.headers
