"""Adapters of the largest size, through the real processes: their memory stays as it is."""

import json
import os
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from adapter_sync.lora_map import adapter_files_folder
from adapter_sync.registry import Registry
from tests.hub_server import Repo, running_hub
from tests.large_adapter import LargeAdapter, write_large_adapter, write_large_base_model

ROOT = Path(__file__).parents[2]
BASE_MODEL = "large"
MORE_BYTES = 32_000_000
"""How much more memory than before a process may ever have had."""
FETCH_MORE_BYTES = 64_000_000
"""The same while it fetches: huggingface_hub passes on pieces of 10 MB."""
PATIENCE_S = 120
PIECE_BYTES = 1_000_000


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LargeAdapter]:
    adapter = write_large_adapter(tmp_path_factory.mktemp("large"))
    yield adapter
    adapter.weights.unlink()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A home with the large base model; nothing listens where Triton should."""
    write_large_base_model(tmp_path / "data" / "models" / BASE_MODEL)
    folder = tmp_path / "repository" / BASE_MODEL / "1"
    folder.mkdir(parents=True)
    arguments = {"model": BASE_MODEL, "enable_lora": True, "max_lora_rank": 64}
    (folder / "model.json").write_text(json.dumps(arguments))
    with (
        socket.create_server(("127.0.0.1", 0)) as first,
        socket.create_server(("127.0.0.1", 0)) as second,
    ):
        ports = first.getsockname()[1], second.getsockname()[1]
    return os.environ | {
        "LORA_HOME": str(tmp_path),
        "LORA_DATA_DIR": "data",
        "MODEL_REPOSITORY": "repository",
        "LORA_MODELS_DIR": "data/models",
        "GATEWAY_PORT": str(ports[0]),
        "TRITON_HTTP_PORT": str(ports[1]),
        "TRITON_GRPC_PORT": str(ports[1]),
    }


@contextmanager
def _running(module: str, environment: Mapping[str, str]) -> Iterator[psutil.Process]:
    process = subprocess.Popen(
        (sys.executable, "-m", module), env=environment, cwd=ROOT, stdout=subprocess.DEVNULL
    )
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait(PATIENCE_S)


@contextmanager
def _installation(
    environment: Mapping[str, str],
) -> Iterator[tuple[httpx.Client, psutil.Process, psutil.Process]]:
    """A tenant's client, the gateway and adapter_sync."""
    url = f"http://127.0.0.1:{environment['GATEWAY_PORT']}"
    data = Path(environment["LORA_HOME"]) / "data"
    with closing(Registry.open(f"sqlite:///{data / 'registry.db'}")) as registry:
        registry.create_tenant("acme", "shared")
        headers = {"Authorization": f"Bearer {registry.create_key('acme')}", "Prefer": "wait=0"}
        with (
            _running("adapter_sync", environment) as adapter_sync,
            _running("gateway", environment) as gateway,
            httpx.Client(base_url=url, headers=headers, timeout=PATIENCE_S) as client,
        ):
            _wait_for(registry.base_models, "the base model")
            _wait_for(lambda: _is_live(client), "the gateway")
            yield client, gateway, adapter_sync


def _is_live(client: httpx.Client) -> bool:
    try:
        # Imports and first connections are no part of what an upload takes.
        return client.get("/v1/adapters").is_success
    except httpx.TransportError:
        return False


def _wait_for(look: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not look():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.05)


def _peak_bytes(process: psutil.Process) -> int:
    """The most memory that it ever had, pages of mapped files included."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    [line] = [each for each in status.splitlines() if each.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def _form(fields: Mapping[str, bytes], file: Path) -> Iterator[bytes]:
    for name, value in fields.items():
        yield b'--b\r\ncontent-disposition: form-data; name="%s"\r\n\r\n' % name.encode()
        yield value + b"\r\n"
    yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
    with file.open("rb") as opened:
        while piece := opened.read(PIECE_BYTES):
            yield piece
    yield b"\r\n--b--\r\n"


def _upload(client: httpx.Client, file: Path, **fields: bytes) -> dict[str, Any]:
    form = {"name": b"large", "base_model": BASE_MODEL.encode(), **fields}
    answer = client.post(
        "/v1/adapters/upload",
        content=_form(form, file),
        headers={"content-type": "multipart/form-data; boundary=b"},
    )
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    return document


@pytest.mark.parametrize("packed", [None, zipfile.ZIP_DEFLATED])
def test_an_upload_of_the_largest_size_takes_the_gateway_no_memory(
    environment: dict[str, str], adapter: LargeAdapter, tmp_path: Path, packed: int | None
) -> None:
    file = adapter.weights
    if packed is not None:
        file = tmp_path / "large.zip"
        with zipfile.ZipFile(file, "w", packed, compresslevel=1) as archive:
            archive.write(adapter.weights, "adapter_model.safetensors")
            archive.writestr("adapter_config.json", adapter.config)
    with _installation(environment) as (client, gateway, adapter_sync):
        before = _peak_bytes(gateway), _peak_bytes(adapter_sync)
        fields = {"config": adapter.config} if packed is None else {}
        uploaded = _upload(client, file, **fields)
        assert uploaded["size_bytes"] == adapter.weights.stat().st_size > 480_000_000
        folder = adapter_files_folder(tmp_path / "repository", BASE_MODEL)
        _wait_for(lambda: list(folder.glob("adp_*")), "the adapter's folder")
        after = _peak_bytes(gateway), _peak_bytes(adapter_sync)
        more = [end - begin for begin, end in zip(before, after, strict=True)]
        print(f"gateway and adapter_sync, bytes more: {more}")
        assert max(more) < MORE_BYTES


def test_a_fetch_of_the_largest_size_takes_little_memory(
    environment: dict[str, str], adapter: LargeAdapter, tmp_path: Path
) -> None:
    files = {
        "adapter_model.safetensors": adapter.weights.read_bytes(),
        "adapter_config.json": adapter.config,
    }
    with (
        running_hub() as hub,
        _installation(environment | {"HF_ENDPOINT": hub.endpoint}) as (client, gateway, sync),
    ):
        hub.repos["my-org/small"] = Repo(files=dict.fromkeys(files, b"{}"))
        hub.repos["my-org/large"] = Repo(files=files)
        body = {"name": "small", "base_model": BASE_MODEL, "repo": "my-org/small"}
        # huggingface_hub's own imports are no part of what a fetch takes.
        assert client.post("/v1/adapters", json=body, headers={"Prefer": "wait=30"}).is_success
        before = _peak_bytes(gateway), _peak_bytes(sync)
        body = {"name": "large", "base_model": BASE_MODEL, "repo": "my-org/large"}
        assert client.post("/v1/adapters", json=body).is_success
        folder = adapter_files_folder(tmp_path / "repository", BASE_MODEL)
        _wait_for(lambda: list(folder.glob("adp_*")), "the adapter's folder")
        after = _peak_bytes(gateway), _peak_bytes(sync)
        print(f"gateway and adapter_sync, bytes more: {after[0] - before[0], after[1] - before[1]}")
        assert after[0] - before[0] < MORE_BYTES
        assert after[1] - before[1] < FETCH_MORE_BYTES
