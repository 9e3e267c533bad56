"""Killing any process at any moment loses nothing and leaves nothing behind."""

import concurrent.futures
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import psutil
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


def test_an_upload_while_adapter_sync_is_stopped_is_kept_and_arrives_later(
    stack: Stack, key: str, random_adapters: list[Path]
) -> None:
    (sync,) = wait_for(lambda: stack.processes("-m adapter_sync"), "adapter_sync")
    sync.send_signal(signal.SIGSTOP)
    with stack.api(key) as api:
        adapter = upload(api, "patient", random_adapters[1], wait_s=1).json()
        assert adapter["status"] == "loading"
        # What stays stopped is killed, and started again.
        wait_for(lambda: status_of(api, adapter["id"]) == "ready", "the adapter")
        assert answer(api, adapter["model"]).is_success


def test_adapters_come_back_by_themselves_after_triton_was_killed(
    stack: Stack, key: str, random_adapters: list[Path]
) -> None:
    with stack.api(key) as api:
        adapter = upload(api, "survivor", random_adapters[2]).json()
        before = answer(api, adapter["model"]).json()["choices"][0]["message"]
        old_engine = stack.engine_pids()
        tritonserver(stack).kill()
        wait_for(lambda: not is_ready(stack), "the end of readiness")
        wait_for(lambda: is_ready(stack), "the new Triton", deadline_s=600)
        wait_for(lambda: answer(api, adapter["model"]).is_success, "the adapter")
        assert answer(api, adapter["model"]).json()["choices"][0]["message"] == before
        assert not set(old_engine) & set(stack.engine_pids())
        assert not any(pid_exists(pid) for pid in old_engine)
        assert answer(api, BASE_MODEL).is_success


@pytest.mark.parametrize("which", ["engine core", "worker", "stub"])
def test_a_base_model_comes_back_alone_after_one_of_its_processes_was_killed(
    stack: Stack, key: str, random_adapters: list[Path], which: str
) -> None:
    with stack.api(key) as api:
        adapter = upload(api, f"after-{which.replace(' ', '-')}", random_adapters[3]).json()
        before = answer(api, adapter["model"]).json()["choices"][0]["message"]
        server = tritonserver(stack).pid
        old_engine = stack.engine_pids()
        with concurrent.futures.ThreadPoolExecutor() as pool:
            streamed = pool.submit(long_stream, stack, key)
            whole = pool.submit(long_answer, api)
            wait_for(lambda: in_flight(stack) >= 2, "the requests")
            psutil.Process(pid_of(which, old_engine)).kill()
            # Neither waits for its own deadline, and both are told in the API's words.
            refused = whole.result(60)
            assert refused.status_code == 503, refused.text
            assert "retry-after" in refused.headers
            assert "error" in json.loads(streamed.result(60)[-1].removeprefix("data: "))
        wait_for(lambda: not is_ready(stack), "the end of readiness")
        refused = answer(api, adapter["model"])
        assert refused.status_code == 503, refused.text
        assert "retry-after" in refused.headers
        wait_for(lambda: is_ready(stack), "the new engine", deadline_s=600)
        assert answer(api, adapter["model"]).json()["choices"][0]["message"] == before
        assert upload(api, f"new-{which.replace(' ', '-')}", random_adapters[3]).is_success
        assert tritonserver(stack).pid == server
        wait_for(lambda: not any(map(is_alive, old_engine)), "the end of the old processes")
        assert httpx.get(f"{stack.url}/health/live").is_success


def tritonserver(stack: Stack) -> psutil.Process:
    (server,) = [
        process
        for process in stack.processes("tritonserver")
        if os.path.basename(process.cmdline()[0]) == "tritonserver"  # noqa: PTH119
    ]
    return server


def pid_of(which: str, engine: Sequence[int]) -> int:
    """The stub comes first among an engine's processes, the others tell by their titles."""
    if which == "stub":
        return engine[0]
    titles = {pid: " ".join(psutil.Process(pid).cmdline()) for pid in engine[1:]}
    word = {"engine core": "EngineCore", "worker": "Worker"}[which]
    (pid,) = [pid for pid, title in titles.items() if word in title]
    return pid


def in_flight(stack: Stack) -> int:
    engine = stack.engine()
    return 0 if engine is None else engine.in_flight


def long_answer(api: httpx.Client) -> httpx.Response:
    body = {"model": BASE_MODEL, "prompt": "one two", "max_tokens": 1500, "ignore_eos": True}
    return api.post("/v1/completions", json=body)


def long_stream(stack: Stack, key: str) -> list[str]:
    body = {"model": BASE_MODEL, "prompt": "one two", "max_tokens": 1500, "ignore_eos": True}
    with (
        stack.api(key) as api,
        api.stream("POST", "/v1/completions", json=body | {"stream": True}) as response,
    ):
        return [line for line in response.iter_lines() if line]


def status_of(api: httpx.Client, adapter_id: str) -> str:
    status: str = api.get(f"/v1/adapters/{adapter_id}").json()["status"]
    return status


def pid_exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def is_alive(pid: int) -> bool:
    """Not so for what has ended and was not waited for: tritonserver keeps a killed stub so."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
