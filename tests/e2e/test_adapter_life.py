"""An adapter's life on the real engine: replaced and rolled back under load, zipped, counted."""

import io
import threading
import time
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.hub_server import Hub, Repo
from tests.stack_process import BASE_MODEL, Stack, upload, wait_for

QUESTION = "What is compound interest?"
LONG = 60


@pytest.fixture
def api(stack: Stack) -> Iterator[httpx.Client]:
    """A tenant of the test's own."""
    with stack.api(stack.new_key(f"life-{uuid.uuid4().hex}")) as api:
        yield api


def ask(api: httpx.Client, model: str, *, max_tokens: int = 16) -> dict[str, Any]:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    answer = api.post("/v1/chat/completions", json=body)
    assert answer.is_success, answer.text
    document: dict[str, Any] = answer.json()
    return document


def text(api: httpx.Client, model: str, *, max_tokens: int = 16) -> str:
    content: str = ask(api, model, max_tokens=max_tokens)["choices"][0]["message"]["content"]
    return content


def replace(api: httpx.Client, name: str, adapter: Path) -> dict[str, Any]:
    answer = upload(api, name, adapter, wait_s=30, replace=True)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    assert document["status"] == "ready"
    return document


def test_a_replacement_and_the_way_back_fail_no_request_and_mix_no_answers(
    stack: Stack, api: httpx.Client, random_adapters: list[Path]
) -> None:
    model = upload(api, "changing", random_adapters[2]).json()["model"]
    first = text(api, model)
    expected_long = text(api, model, max_tokens=LONG)
    in_flight: list[str] = []
    answers: list[str] = []
    stopping = threading.Event()

    def keep_asking() -> None:
        while not stopping.is_set():
            answers.append(text(api, model, max_tokens=8))

    running = threading.Thread(
        target=lambda: in_flight.append(text(api, model, max_tokens=LONG)), daemon=True
    )
    asking = threading.Thread(target=keep_asking, daemon=True)
    running.start()
    wait_for(lambda: (status := stack.engine()) and status.in_flight, "the long answer")
    asking.start()
    replaced = replace(api, "changing", random_adapters[3])
    second = text(api, model)
    assert second != first
    rolled_back = api.post(
        f"/v1/adapters/{replaced['id']}/rollback", headers={"prefer": "wait=30"}
    ).json()
    assert (rolled_back["revision"], rolled_back["status"]) == (3, "ready")
    assert text(api, model) == first
    running.join()
    stopping.set()
    asking.join()
    assert in_flight == [expected_long]
    # Short answers are how the long ones begin.
    assert answers
    assert all(first.startswith(each) or second.startswith(each) for each in answers)
    wait_for(
        lambda: len([each for each in stack.adapter_folders() if replaced["id"] in each]) == 1,
        "the end of the revision that was replaced",
    )
    api.delete(f"/v1/adapters/{replaced['id']}").raise_for_status()
    wait_for(
        lambda: (
            (status := stack.engine()) and not any(replaced["id"] in n for n in status.adapters)
        ),
        "the end of the adapter in the engine",
    )


def test_a_zip_is_the_same_adapter_as_its_files(
    api: httpx.Client, random_adapters: list[Path]
) -> None:
    bare = upload(api, "bare", random_adapters[1]).json()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            archive.write(random_adapters[1] / name, f"customerA/{name}")
    answer = api.post(
        "/v1/adapters/upload",
        data={"name": "zipped", "base_model": BASE_MODEL},
        files={"file": ("customerA.zip", packed.getvalue())},
    )
    assert answer.status_code == 201, answer.text
    assert text(api, answer.json()["model"]) == text(api, bare["model"])


def test_an_adapter_from_a_private_repo_serves_and_leaves_nothing_of_its_token(
    stack: Stack, api: httpx.Client, hub: Hub, random_adapters: list[Path]
) -> None:
    names = ("adapter_model.safetensors", "adapter_config.json")
    files = {name: (random_adapters[3] / name).read_bytes() for name in names}
    token = f"hf_{uuid.uuid4().hex}"
    hub.repos["my-org/llama-lora-v3"] = Repo(files=files, token=token)
    body = {
        "name": "from-hub",
        "base_model": BASE_MODEL,
        "repo": "my-org/llama-lora-v3",
        "revision": "main",
        "hf_token": token,
    }
    answer = api.post("/v1/adapters", json=body, headers={"prefer": "wait=30"})
    assert answer.status_code == 201, answer.text
    assert answer.json()["status"] == "ready"
    uploaded = upload(api, "by-hand", random_adapters[3]).json()
    assert text(api, answer.json()["model"]) == text(api, uploaded["model"])
    assert token not in stack.log.read_text(errors="replace")
    assert stack.leftovers() == []


def test_an_alias_answers_as_its_target_and_under_its_own_name(
    api: httpx.Client, random_adapters: list[Path]
) -> None:
    target = upload(api, "customer-a", random_adapters[0]).json()["model"]
    alias = "base-llm-with-customerA-adapter"
    assert api.put(f"/v1/aliases/{alias}", json={"model": target}).status_code == 201
    answer = ask(api, alias)
    assert answer["model"] == alias
    assert answer["choices"][0]["message"]["content"] == text(api, target)


@pytest.mark.parametrize("stream", [True, False])
def test_usage_is_what_the_engine_says_of_each_request(
    api: httpx.Client, random_adapters: list[Path], *, stream: bool
) -> None:
    model = upload(api, "counted", random_adapters[0]).json()["model"]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 7,
        "n": 2,
        "stream": stream,
    }
    for _ in range(3):
        answer = api.post("/v1/chat/completions", json=body)
        assert answer.is_success, answer.text
    alone = ask(api, model, max_tokens=1)["usage"]
    (bucket,) = api.get("/v1/usage", params={"group_by": "model"}).json()["data"]
    assert bucket["model"] == model
    assert bucket["requests"] == 4
    assert bucket["prompt_tokens"] == 4 * alone["prompt_tokens"]
    assert bucket["completion_tokens"] == 3 * 2 * 7 + 1


def test_a_client_that_hangs_up_pays_for_what_it_got(api: httpx.Client) -> None:
    body = {
        "model": BASE_MODEL,
        "messages": [{"role": "user", "content": "Count to a thousand."}],
        "max_tokens": 1500,
        "ignore_eos": True,
        "stream": True,
    }
    with api.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = (line for line in answer.iter_lines() if line)
        for _ in range(20):
            next(lines)
    time.sleep(1)
    (bucket,) = api.get("/v1/usage").json()["data"]
    assert bucket["requests"] == 1
    assert bucket["prompt_tokens"] > 0
    assert 15 <= bucket["completion_tokens"] < 400
