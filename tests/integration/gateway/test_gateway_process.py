"""The gateway as a process of its own: its command line, its end, and life without Triton."""

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from types import MappingProxyType

import httpx
import psutil
import pytest

from adapter_sync.blobs import FolderBlobStore
from adapter_sync.installation import check_installation
from adapter_sync.record import BaseModel
from adapter_sync.registry import Registry
from adapter_sync.settings import Settings
from gateway.stopping import ONE_STOP_S
from tests.stack_process import wait_for

ROOT = Path(__file__).parents[3]
PATIENCE_S = 120
COMMAND = (sys.executable, "-m", "gateway")
IMPATIENT = {"LORA_STOP_NOTICE_S": "0", "LORA_STOP_WITHIN_S": "1"}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _environment(
    folder: Path, port: int, triton_port: int, settings: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    return {
        **os.environ,
        **settings,
        "PYTHONPATH": str(ROOT),
        "LORA_DATA_DIR": str(folder / "data"),
        "GATEWAY_PORT": str(port),
        "TRITON_GRPC_PORT": str(triton_port),
    }


@contextmanager
def _running(
    folder: Path,
    triton_port: int,
    command: Sequence[str] = COMMAND,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    port = _free_port()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=_environment(folder, port, triton_port, settings),
        stdout=subprocess.PIPE,
        text=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_live(url, process)
        yield url, process
    finally:
        process.kill()
        process.communicate()


def _wait_until_live(url: str, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "the gateway ended"
        try:
            httpx.get(f"{url}/health/live")
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    pytest.fail("the gateway did not start")


def _registry(folder: Path) -> Registry:
    settings = Settings(_env_file=None, lora_data_dir=folder / "data")  # type: ignore[call-arg]
    return Registry.open(settings.registry_url)


def _prepare(folder: Path) -> str:
    registry = _registry(folder)
    registry.put_base_model(
        BaseModel(name="tiny", max_lora_rank=8, max_model_len=64, tensor_shapes={"x": (1, 1)})
    )
    registry.create_tenant("acme", "shared")
    key = registry.create_key("acme")
    registry.close()
    return key


def test_help_tells_the_settings() -> None:
    shown = subprocess.run(
        [*COMMAND, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "GATEWAY_PORT" in shown.stdout
    assert "TRITON_GRPC_PORT" in shown.stdout


def test_a_wrong_tiers_file_ends_it_at_once_naming_the_key(tmp_path: Path) -> None:
    file = tmp_path / "tiers.toml"
    file.write_text("[gold]\nmax_adapters = -1\n")
    ended = subprocess.run(
        COMMAND,
        cwd=ROOT,
        env={**os.environ, "LORA_TIERS_FILE": str(file), "LORA_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert ended.returncode == 1
    assert f"gateway: The tiers file {file} is wrong: gold.max_adapters: " in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_process_without_triton_says_so_and_ends_cleanly(tmp_path: Path) -> None:
    with _running(tmp_path, _free_port()) as (url, process):
        empty = httpx.get(f"{url}/health/ready")
        key = _prepare(tmp_path)
        without_triton = httpx.get(f"{url}/health/ready")
        headers = {"authorization": f"Bearer {key}", "x-request-id": "mine"}
        chat = httpx.post(
            f"{url}/v1/chat/completions",
            headers=headers,
            json={"model": "tiny", "messages": [{"role": "user", "content": "hello"}]},
        )
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert (empty.status_code, empty.json()["missing"]) == (503, ["no base model is registered"])
    assert without_triton.status_code == 503
    assert without_triton.json() == {
        "status": "not_ready",
        "missing": ["Triton does not answer for the base model 'tiny'"],
    }
    assert chat.status_code == 503
    assert chat.headers["retry-after"] == "1"
    assert chat.json()["error"]["code"] == "server_is_overloaded"
    assert process.returncode == -signal.SIGTERM
    _check_log(output, key)


def _check_log(output: str, key: str) -> None:
    lines = [json.loads(line) for line in output.splitlines()]
    (chat,) = [line for line in lines if line.get("path") == "/v1/chat/completions"]
    assert chat["event"] == "request.answered"
    assert (chat["status"], chat["request_id"], chat["level"]) == (503, "mine", "warning")
    assert chat["requested_model"] == "tiny"
    assert "UNAVAILABLE" in chat["error"]
    assert key not in output
    assert re.search(r"pk-[0-9a-f]{20}", output) is None


def test_a_broken_registry_is_told_and_its_errors_are_not(tmp_path: Path) -> None:
    key = _prepare(tmp_path)
    with _running(tmp_path, _free_port()) as (url, process):
        with closing(sqlite3.connect(tmp_path / "data" / "registry.db")) as database:
            for table in ("change_counter", "api_keys"):
                database.execute(f"DROP TABLE {table}")
        ready = httpx.get(f"{url}/health/ready")
        models = httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"})
        process.terminate()
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert ready.status_code == 503
    assert ready.json()["missing"] == ["the registry does not answer"]
    assert models.status_code == 500
    assert models.headers["x-request-id"]
    assert models.json()["error"]["code"] == "server_error"
    assert "table" not in models.text
    assert "no such table: api_keys" in output


def test_a_stream_that_outlives_the_stop_is_told(tmp_path: Path, triton_port: int) -> None:
    key = _prepare(tmp_path)
    body = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "goes on"}]}
    with (
        _running(tmp_path, triton_port, settings=IMPATIENT) as (url, process),
        httpx.stream(
            "POST",
            f"{url}/v1/chat/completions",
            headers={"authorization": f"Bearer {key}"},
            json=body,
        ) as answer,
    ):
        pieces = answer.iter_bytes()
        next(pieces)
        process.send_signal(signal.SIGTERM)
        last = b"".join(pieces).split(b"\n\n")[-2]
        assert process.wait(PATIENCE_S) == -signal.SIGTERM
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert error["message"].startswith("The server is restarting")


def test_a_whole_answer_that_outlives_the_stop_is_a_503(tmp_path: Path, triton_port: int) -> None:
    key = _prepare(tmp_path)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "goes on"}]}
    with (
        _running(tmp_path, triton_port, settings=IMPATIENT) as (url, process),
        ThreadPoolExecutor() as pool,
    ):
        headers = {"authorization": f"Bearer {key}"}
        asked = pool.submit(
            httpx.post, f"{url}/v1/chat/completions", headers=headers, json=body, timeout=PATIENCE_S
        )
        wait_for(lambda: _established(process.pid) > 0, "the request")
        process.send_signal(signal.SIGTERM)
        answer = asked.result()
    assert answer.status_code == 503
    assert answer.json()["error"]["message"].startswith("The server is restarting")
    assert "retry-after" in answer.headers


def _established(pid: int) -> int:
    connections = psutil.Process(pid).net_connections("tcp")
    return sum(each.status == psutil.CONN_ESTABLISHED for each in connections)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_gateway_that_stops_is_not_ready_first_and_ends_what_it_has(
    tmp_path: Path, triton_port: int, workers: str
) -> None:
    key = _prepare(tmp_path)
    headers = {"authorization": f"Bearer {key}"}
    settings = {"LORA_STOP_NOTICE_S": "5", "GATEWAY_WORKERS": workers}
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
    with _running(tmp_path, triton_port, settings=settings) as (url, process):
        wait_for(lambda: httpx.get(f"{url}/health/ready").status_code == 200, "readiness")
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx.get(f"{url}/health/ready").status_code == 503, "the notice")
        assert httpx.get(f"{url}/health/ready").json()["missing"] == ["the server is stopping"]
        # Whoever has not heard of it yet is served.
        assert httpx.get(f"{url}/health/live").status_code == 200
        served = httpx.post(f"{url}/v1/chat/completions", headers=headers, json=body)
        assert served.status_code == 200
        process.wait(PATIENCE_S)


def test_a_second_signal_ends_it_at_once(tmp_path: Path, triton_port: int) -> None:
    key = _prepare(tmp_path)
    body = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "goes on"}]}
    settings = {"LORA_STOP_NOTICE_S": "0", "LORA_STOP_WITHIN_S": "3600"}
    headers = {"authorization": f"Bearer {key}"}
    with (
        _running(tmp_path, triton_port, settings=settings) as (url, process),
        httpx.stream("POST", f"{url}/v1/chat/completions", headers=headers, json=body) as answer,
    ):
        pieces = answer.iter_bytes()
        next(pieces)
        process.send_signal(signal.SIGTERM)
        time.sleep(ONE_STOP_S + 0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)


def test_what_a_killed_gateway_left_of_an_upload_is_gone_when_it_is_back(tmp_path: Path) -> None:
    uploads = tmp_path / "data" / "staging" / "uploads"
    uploads.mkdir(parents=True)
    (uploads / "half").write_bytes(b"the upload that was coming in")
    data = tmp_path / "data"
    with closing(Registry.open(f"sqlite:///{data / 'registry.db'}")) as registry:
        check_installation(registry, data / "blobs", data / "staging")
    (tmp_path / "file").write_bytes(b"the blob whose row was about to come")
    blobs = FolderBlobStore(tmp_path / "data" / "blobs")
    blobs.add(tmp_path / "file", "ab" * 32)
    with _running(tmp_path, _free_port()):
        assert list(uploads.iterdir()) == []
        assert list(blobs.digests()) == []


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ended = subprocess.run(
            COMMAND,
            cwd=tmp_path,
            env=_environment(tmp_path, port, _free_port()),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert ended.returncode != 0
    assert "address already in use" in ended.stdout


def test_an_idle_connection_outlives_the_clients_patience(tmp_path: Path, triton_port: int) -> None:
    with _running(tmp_path, triton_port) as (url, _):
        connection = HTTPConnection(url.removeprefix("http://"), timeout=10)
        with closing(connection):
            for idle_s in (0, 5.5):
                time.sleep(idle_s)
                # On the same socket: it would raise if that had been closed.
                connection.request("GET", "/health/live")
                answer = connection.getresponse()
                answer.read()
                assert answer.status == 200


TIERS = """\
[shared]
max_adapters = 1
max_adapter_bytes = 1_000_000
requests_per_minute = 20
tokens_per_minute = 1_000_000
max_streams = 4
"""


@contextmanager
def _running_workers(
    folder: Path, triton_port: int
) -> Iterator[tuple[str, "subprocess.Popen[str]", dict[str, str]]]:
    """Three of them; what a request is sent with comes along."""
    tiers = folder / "tiers.toml"
    tiers.write_text(TIERS)
    headers = {"authorization": f"Bearer {_prepare(folder)}"}
    settings = {"GATEWAY_WORKERS": "3", "LORA_TIERS_FILE": str(tiers)}
    with _running(folder, triton_port, settings=settings) as (url, process):
        wait_for(lambda: len(_workers_connected(process, url)) == 3, "connections to all three")
        yield url, process, headers


def _workers_connected(process: "subprocess.Popen[str]", url: str) -> set[int]:
    """Which workers have some of thirty connections at once."""
    port = int(url.rpartition(":")[2])
    with ThreadPoolExecutor(30) as threads, httpx.Client() as client:
        list(threads.map(lambda _: client.get(f"{url}/health/live"), range(30)))
        return {
            worker.pid
            for worker in psutil.Process(process.pid).children()
            for connection in worker.net_connections()
            if connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port == port
        }


def _ask(url: str, headers: Mapping[str, str]) -> int:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
    answer = httpx.post(f"{url}/v1/chat/completions", headers=headers, json=body, timeout=60)
    return answer.status_code


def test_workers_keep_a_tenant_within_its_limits_together(tmp_path: Path, triton_port: int) -> None:
    with (
        _running_workers(tmp_path, triton_port) as (url, _, headers),
        ThreadPoolExecutor(3) as threads,
    ):
        statuses = Counter(threads.map(lambda _: _ask(url, headers), range(60)))
    assert statuses == {200: 20, 429: 40}


def test_a_killed_worker_is_replaced_and_its_streams_are_free_again(
    tmp_path: Path, triton_port: int
) -> None:
    body = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "goes on"}]}

    with (
        _running_workers(tmp_path, triton_port) as (url, process, headers),
        httpx.Client(timeout=PATIENCE_S) as client,
    ):
        request = client.build_request(
            "POST", f"{url}/v1/chat/completions", headers=headers, json=body
        )
        held = [client.send(request, stream=True) for _ in range(5)]
        assert [answer.status_code for answer in held] == [200, 200, 200, 200, 429]
        before = _workers_connected(process, url)
        for worker in before:
            os.kill(worker, signal.SIGKILL)
        wait_for(lambda: len(_workers_connected(process, url) - before) == 3, "three new ones")
        assert _ask(url, headers) == 200
        after = _workers_connected(process, url)
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
        assert not any(map(psutil.pid_exists, before | after))


def test_workers_end_with_their_parent(tmp_path: Path, triton_port: int) -> None:
    with _running_workers(tmp_path, triton_port) as (url, process, _):
        workers = _workers_connected(process, url)
        process.kill()
        process.wait(PATIENCE_S)
        wait_for(lambda: not any(map(psutil.pid_exists, workers)), "the workers' end")
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health/live")


def test_it_takes_nothing_for_a_registry_that_was_removed_and_ends(tmp_path: Path) -> None:
    with _running(tmp_path, _free_port()) as (url, process):
        for file in (tmp_path / "data").glob("registry.db*"):
            file.unlink()
        answer = httpx.get(f"{url}/v1/models", headers={"authorization": "Bearer pk-a-b"})
        assert answer.status_code == 503, answer.text
        assert answer.json()["error"]["code"] == "registry_unavailable"
        assert "retry-after" in answer.headers
        process.wait(PATIENCE_S)
    assert not (tmp_path / "data" / "registry.db").exists()
