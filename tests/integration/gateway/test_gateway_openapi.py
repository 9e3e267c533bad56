"""The gateway's own OpenAPI document, and schemathesis on it."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapter_sync.record import AdapterStatus
from adapter_sync.registry import AdapterFilter
from tests.hub_server import Hub, Repo
from tests.integration.gateway.running import (
    ADMIN_KEY,
    BASE_MODEL,
    FAST_LIMITS,
    OTHER_BASE_MODEL,
    Client,
    Gateway,
    base_model,
    client_of,
    running_gateway,
)

ROOT = Path(__file__).resolve().parents[3]
HOOKS = "tests.integration.gateway.schemathesis_hooks"
_TENANTS = ["tenantKey", "tenantKeyAlone"]
KEY_BELOW = {
    "v1": _TENANTS,
    "tokenize": _TENANTS,
    "detokenize": _TENANTS,
    "admin": ["adminKey"],
}
OUTER_S = 800
"""When schemathesis is given up; it takes half a minute on two cores."""
LOADING = AdapterFilter(status=AdapterStatus.LOADING)
REPO = "my-org/llama-lora-v4"
ROOMY_TIER = """
[shared]
max_adapters = 100000
max_adapter_bytes = 100000
requests_per_minute = 1000000
tokens_per_minute = 1000000000
max_streams = 1000
"""
COMMON = """
seed = 1
[generation]
deterministic = true
max-examples = 12
[checks]
# The usual ones, and 412 for an If-Match that names what is not there.
positive_data_acceptance.expected-statuses = ["2xx", 401, 404, 409, 412, 429, "5xx"]
# And 413 for what is also too large.
negative_data_rejection.expected-statuses = [400, 401, 404, 405, 409, 413]
[dictionaries]
base-models = {{ values = ["{base_model}"] }}
[parameters]
"body.base_model" = {{ dictionary = "base-models", probability = 0.8 }}
"body.model" = {{ dictionary = "base-models", probability = 0.8 }}
# A shorter time is a 504.
"header.x-request-timeout" = "20"
"body.tier" = {{ dictionary = "tiers", probability = 0.8 }}
[dictionaries.tiers]
values = ["shared"]
"""
TENANTS = """
[auth.wfc]
path = "{folder}/auth.json"
peers = ["one", "other"]

# What no schema can say: whether a repo, a revision or the last page's last id exists, whether a
# file is an adapter, how many days lie between two dates, whether a target is there twice,
# that `best_of` is at most `n`.
[[operations]]
include-operation-id = [
  "create_completions",
  "import_adapter",
  "list_adapters",
  "put_alias",
  "show_usage",
  "upload_adapter",
]
checks.positive_data_acceptance.enabled = false

# GET and DELETE take 'upload' for an adapter's id and find none, which is a 404.
[[operations]]
include-path = "/v1/adapters/upload"
checks.unsupported_method.enabled = false
checks.allow_header_conformance.enabled = false
"""
ADMIN = """
[auth.openapi]
adminKey = {{ bearer = "{admin_key}" }}

# By its links alone: what it guesses from the list of tenants would delete the ones that ask.
[phases.stateful]
inference.algorithms = []

# Whether a tier exists, a moment is past, or an id is one of the list's.
[[operations]]
include-operation-id = [
  "admin_create_tenant",
  "admin_change_tenant",
  "admin_create_key",
  "admin_list_keys",
  "admin_list_audit",
  "admin_list_adapters",
]
checks.positive_data_acceptance.enabled = false
"""


@pytest.fixture
def roomy_gateway(triton_port: int, tmp_path: Path, hub: Hub) -> Iterator[Gateway]:
    """A gateway of its own, whose limits are none and whose tenants nobody else needs."""
    tiers_file = tmp_path / "tiers.toml"
    tiers_file.write_text(ROOMY_TIER)
    folder = tmp_path / "data"
    with running_gateway(folder, triton_port, FAST_LIMITS, tiers_file=tiers_file) as gateway:
        for name in (BASE_MODEL, OTHER_BASE_MODEL):
            gateway.registry.put_base_model(base_model(name))
        hub.repos[REPO] = Repo(files={})
        with loading_at_once(gateway):
            yield gateway


@contextmanager
def loading_at_once(gateway: Gateway) -> Iterator[None]:
    """As adapter_sync would: what is to be loaded is ready a moment later."""
    stopping = threading.Event()

    def load() -> None:
        while not stopping.wait(0.02):
            for adapter in gateway.registry.every_adapter_page(LOADING, limit=100).items:
                gateway.registry.set_adapter_status(
                    adapter.id, adapter.revision.digest, AdapterStatus.READY
                )

    thread = threading.Thread(target=load)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def schemathesis(gateway: Gateway, folder: Path, config: str, *options: str) -> str:
    """Run it; what it says. Fails when it finds something."""
    (folder / "schemathesis.toml").write_text(
        (COMMON + config).format(base_model=BASE_MODEL, folder=folder, admin_key=ADMIN_KEY)
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli"),
            *("--config-file", str(folder / "schemathesis.toml")),
            *("run", f"{gateway.url}/openapi.json", "--no-color", *options),
        ],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": HOOKS},
        timeout=OUTER_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_schemathesis_finds_nothing_in_what_tenants_may_ask(
    roomy_gateway: Gateway, tmp_path: Path
) -> None:
    with client_of(roomy_gateway) as one, client_of(roomy_gateway) as other:
        users = [_user("one", one), _user("other", other)]
        (tmp_path / "auth.json").write_text(json.dumps({"auth": users}))
        schemathesis(roomy_gateway, tmp_path, TENANTS, "--exclude-path-regex", "^/admin")
    done = {entry.action for entry in roomy_gateway.registry.audit(limit=10_000).items}
    assert {"adapter.created", "adapter.deleted"} <= done, "it did not get far"


def test_schemathesis_finds_nothing_in_what_the_operator_may_ask(
    roomy_gateway: Gateway, tmp_path: Path
) -> None:
    schemathesis(roomy_gateway, tmp_path, ADMIN, "--include-path-regex", "^/admin")


def _user(name: str, client: Client) -> dict[str, Any]:
    header = {"name": "Authorization", "value": f"Bearer {client.api_key}"}
    return {"name": name, "fixedHeaders": [header]}


def test_the_document_needs_no_key_and_has_every_route(gateway: Gateway) -> None:
    document = httpx.get(f"{gateway.url}/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    operations = _operations(document)
    assert ("post", "/v1/adapters/upload") in operations
    assert ("get", "/admin/v1/audit") in operations
    assert ("get", "/openapi.json") in operations
    ids = [each["operationId"] for each in operations.values()]
    assert len(ids) == len(set(ids))


def test_each_operation_says_whose_key_it_wants(gateway: Gateway) -> None:
    document = httpx.get(f"{gateway.url}/openapi.json").json()
    for (_, path), operation in _operations(document).items():
        schemes = KEY_BELOW.get(path.split("/")[1], [])
        assert operation["security"] == [{scheme: []} for scheme in schemes]
        assert ("401" in operation["responses"]) == bool(schemes)


def test_no_operation_on_a_tenants_own_things_answers_another_tenant(
    client: Client, other_client: Client
) -> None:
    own = {
        "adapter_id": client.upload_as("finance", AdapterStatus.READY).id,
        "alias": client.http.put("/v1/aliases/mine", json={"model": BASE_MODEL}).json()["id"],
        "model_id": f"{BASE_MODEL}:finance",
    }
    asked = 0
    for method, path in _operations(client.http.get("/openapi.json").json()):
        if "{" not in path or not path.startswith("/v1") or method == "put":
            continue
        answer = other_client.http.request(method, path.format(**own))
        assert answer.status_code == 404, f"{method} {path}: {answer.text}"
        asked += 1
    assert asked == 8


def test_without_an_admin_key_the_document_has_no_admin_api(
    triton_port: int, tmp_path: Path
) -> None:
    with running_gateway(tmp_path, triton_port, FAST_LIMITS, admin_key=None) as gateway:
        document = httpx.get(f"{gateway.url}/openapi.json").json()
    assert [path for path in document["paths"] if path.startswith("/admin")] == []


def _operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method, path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }
