"""Killing any process at any moment loses nothing and leaves nothing behind."""

import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from tests.stack_process import BASE_MODEL, Stack, is_ready, upload, wait_for


@pytest.fixture(scope="module")
def key(stack: Stack) -> str:
    return stack.new_key("killer")


def answer(api: httpx.Client, model: str) -> httpx.Response:
    messages = [{"role": "user", "content": "What is compound interest?"}]
    body = {"model": model, "messages": messages, "max_tokens": 8, "temperature": 0}
    return api.post("/v1/chat/completions", json=body)


def kill_adapter_sync(stack: Stack) -> None:
    for process in stack.processes("-m adapter_sync"):
        process.kill()


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.1, 0.2, 0.3, 0.5])
def test_an_upload_arrives_though_adapter_sync_is_killed_on_its_way(
    stack: Stack, key: str, random_adapters: list[Path], delay_s: float
) -> None:
    with stack.api(key) as api:
        adapter = upload(api, f"killed-{delay_s}", random_adapters[0], wait_s=0).json()
        time.sleep(delay_s)
        kill_adapter_sync(stack)
        wait_for(lambda: status_of(api, adapter["id"]) == "ready", "the adapter")
        assert answer(api, adapter["model"]).is_success
    assert stack.leftovers() == []


def test_an_upload_while_adapter_sync_is_down_is_kept_and_arrives_later(
    stack: Stack, key: str, random_adapters: list[Path]
) -> None:
    (sync,) = wait_for(lambda: stack.processes("-m adapter_sync"), "adapter_sync")
    sync.send_signal(signal.SIGSTOP)
    with stack.api(key) as api:
        adapter = upload(api, "patient", random_adapters[1], wait_s=1).json()
        assert adapter["status"] == "loading"
        early = answer(api, adapter["model"])
        assert early.status_code == 503
        assert early.json()["error"]["code"] == "adapter_not_ready"
        assert "retry-after" in early.headers
        sync.kill()
        wait_for(lambda: status_of(api, adapter["id"]) == "ready", "the adapter")
        assert answer(api, adapter["model"]).is_success


def test_adapters_come_back_by_themselves_after_triton_was_killed(
    stack: Stack, key: str, random_adapters: list[Path]
) -> None:
    with stack.api(key) as api:
        adapter = upload(api, "survivor", random_adapters[2]).json()
        before = answer(api, adapter["model"]).json()["choices"][0]["message"]
        (server,) = [
            process
            for process in stack.processes("tritonserver")
            if os.path.basename(process.cmdline()[0]) == "tritonserver"  # noqa: PTH119
        ]
        old_engine = stack.engine_pids()
        server.kill()
        wait_for(lambda: not is_ready(stack), "the end of readiness")
        wait_for(lambda: is_ready(stack), "the new Triton", deadline_s=600)
        wait_for(lambda: answer(api, adapter["model"]).is_success, "the adapter")
        assert answer(api, adapter["model"]).json()["choices"][0]["message"] == before
        assert not set(old_engine) & set(stack.engine_pids())
        assert not any(pid_exists(pid) for pid in old_engine)
        assert answer(api, BASE_MODEL).is_success


def status_of(api: httpx.Client, adapter_id: str) -> str:
    status: str = api.get(f"/v1/adapters/{adapter_id}").json()["status"]
    return status


def pid_exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
