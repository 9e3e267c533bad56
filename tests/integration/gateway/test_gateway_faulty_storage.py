"""A registry that is locked, hung or away, and a disk that is full or can't be written to."""

import contextlib
import sqlite3
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from adapter_sync.registry import Registry
from tests.integration.gateway.running import Client, Gateway
from tests.integration.gateway.test_gateway_process import _free_port, _prepare, _running
from tests.postgresql_server import PostgresqlServer, running_postgresql
from tests.stack_process import wait_for

AT_ONCE = 60
"""More than the gateway has threads."""
BOUND_S = 60
"""Of the waits here; a request's own bound is 15 s, on a machine that has the time for it."""


def ask(url: str, key: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.get(f"{url}/v1/adapters", headers=headers, timeout=BOUND_S)


def assert_unavailable(answer: httpx.Response, code: str, status: int = 503) -> None:
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"] == code
    assert int(answer.headers["retry-after"]) >= 1


@contextmanager
def new_key(url: str) -> Iterator[str]:
    with closing(Registry.open(url)) as registry:
        registry.create_tenant("acme", "shared")
        yield registry.create_key("acme")


def test_a_registry_that_somebody_keeps_locked_is_a_503_for_what_writes(
    client: Client, gateway: Gateway
) -> None:
    place = gateway.registry.place
    with closing(sqlite3.connect(place, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        answer = client.http.put("/v1/aliases/mine", json={"model": "tiny"})
        assert_unavailable(answer, "registry_unavailable")
        assert client.http.get("/v1/aliases").status_code == 200
        other.execute("ROLLBACK")
    assert client.http.put("/v1/aliases/mine", json={"model": "tiny"}).status_code == 201


@pytest.fixture
def server() -> Iterator[PostgresqlServer]:
    """One of the test's own, which it may stop."""
    with running_postgresql() as running:
        yield running


def processes_of(server: PostgresqlServer) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = " ".join(process.info["cmdline"] or [])
        if str(server.folder) in f"{words} {process.info['cwd']}" and "postgres" in words:
            found.append(process)
    return found


def test_a_postgresql_server_that_hangs_is_a_503_in_time_and_serves_when_it_goes_on(
    server: PostgresqlServer, tmp_path: Path
) -> None:
    registry_url = server.new_database()
    settings = {"LORA_REGISTRY_URL": registry_url}
    with (
        new_key(registry_url) as key,
        _running(tmp_path, _free_port(), settings=settings) as (
            url,
            _,
        ),
    ):
        assert ask(url, key).status_code == 200
        frozen = processes_of(server)
        for process in frozen:
            process.suspend()
        try:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                asked = [pool.submit(ask, url, key) for _ in range(AT_ONCE)]
                assert httpx.get(f"{url}/health/live", timeout=BOUND_S).status_code == 200
                assert httpx.get(f"{url}/health/ready", timeout=BOUND_S).status_code == 503
                for each in asked:
                    assert_unavailable(each.result(), "registry_unavailable")
        finally:
            for process in frozen:
                process.resume()
        wait_for(lambda: ask(url, key).status_code == 200, "the registry")


def test_a_postgresql_server_that_is_killed_is_a_503(
    server: PostgresqlServer, tmp_path: Path
) -> None:
    registry_url = server.new_database()
    settings = {"LORA_REGISTRY_URL": registry_url}
    with (
        new_key(registry_url) as key,
        _running(tmp_path, _free_port(), settings=settings) as (
            url,
            _,
        ),
    ):
        assert ask(url, key).status_code == 200
        with server.down():
            for _ in range(3):
                assert_unavailable(ask(url, key), "registry_unavailable")
        wait_for(lambda: ask(url, key).status_code == 200, "the registry")


def test_blobs_that_can_not_be_written_are_a_503_and_nothing_is_kept(
    client: Client, gateway: Gateway
) -> None:
    blobs = gateway.data_folder / "blobs"
    moved = blobs.rename(blobs.with_name("elsewhere"))
    blobs.write_text("no folder")
    try:
        assert_unavailable(client.upload("finance"), "storage_unavailable")
    finally:
        blobs.unlink()
        moved.rename(blobs)
    assert client.http.get("/v1/adapters").json()["data"] == []
    assert client.upload("finance").status_code == 201


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_a_507_wherever_it_is_met_and_nothing_half_written_stays(
    small_disk: Path,
) -> None:
    key = _prepare(small_disk)
    data = small_disk / "data"
    with _running(small_disk, _free_port()) as (url, process):
        headers = {"authorization": f"Bearer {key}"}
        with httpx.Client(base_url=f"{url}/v1", headers=headers, timeout=BOUND_S) as http:

            def upload(size: int) -> httpx.Response:
                form = {"name": "finance", "base_model": "tiny"}
                return http.post("/adapters/upload", data=form, files={"file": bytes(size)})

            # The file itself finds no room.
            refused = upload(8 << 20)
            assert_unavailable(refused, "insufficient_storage", 507)
            assert refused.headers["x-should-retry"] == "false"
            assert list((data / "staging" / "uploads").iterdir()) == []
            # Not even the registry does.
            filler = small_disk / "filler"
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            full = http.put("/aliases/mine", json={"model": "tiny"})
            assert_unavailable(full, "insufficient_storage", 507)
            assert http.get("/aliases").status_code == 200
            filler.unlink()
            assert http.put("/aliases/mine", json={"model": "tiny"}).status_code == 201
        assert process.poll() is None
