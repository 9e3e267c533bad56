"""Adapters uploaded as a zip, on the real server with the real checks."""

import json
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.gateway.running import Client, Gateway, adapter_weights
from tests.zips import declaring, zipped

WEIGHTS = "adapter_model.safetensors"
CONFIG = json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 16, "target_modules": ["q_proj"]})
FORM = {"content-type": "multipart/form-data; boundary=b"}


def _files(folder: str = "", config_name: str = "config.json") -> dict[str, bytes | str]:
    return {folder + WEIGHTS: adapter_weights(), folder + config_name: CONFIG}


def _error(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def _leftovers(gateway: Gateway) -> list[str]:
    return [file.name for file in (gateway.data_folder / "staging" / "uploads").iterdir()]


def _blobs(gateway: Gateway) -> set[Path]:
    return set((gateway.data_folder / "blobs").glob("??/*"))


def _body(pieces: Callable[[], Iterator[bytes]]) -> Iterator[bytes]:
    yield b'--b\r\ncontent-disposition: form-data; name="name"\r\n\r\na\r\n'
    yield b'--b\r\ncontent-disposition: form-data; name="base_model"\r\n\r\ntiny\r\n'
    yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.zip"\r\n\r\n'
    yield from pieces()
    yield b"\r\n--b--\r\n"


def _peak_bytes(run: Callable[[], httpx.Response]) -> tuple[httpx.Response, int]:
    """The answer, and the most that client and gateway, one process here, held meanwhile."""
    tracemalloc.start()
    try:
        answer = run()
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return answer, peak_bytes


@pytest.mark.parametrize("folder", ["", "customerA/"])
@pytest.mark.parametrize("config_name", ["config.json", "adapter_config.json"])
def test_a_bundle_is_uploaded_like_a_file(
    client: Client, gateway: Gateway, folder: str, config_name: str
) -> None:
    answer = client.upload("finance", zipped(_files(folder, config_name)))
    assert answer.status_code == 201
    adapter = answer.json()
    assert (adapter["rank"], adapter["lora_alpha"], adapter["warnings"]) == (4, 16, [])
    assert adapter["size_bytes"] == len(adapter_weights())
    [stored] = client.registry.adapters(client.tenant.id)
    digest = sha256(adapter_weights()).hexdigest()
    assert stored.revision.weights_blob == digest
    blob = gateway.data_folder / "blobs" / digest[:2] / digest
    assert blob.read_bytes() == adapter_weights()
    assert _leftovers(gateway) == []


def test_a_bundle_and_a_bare_file_are_the_same_adapter(client: Client) -> None:
    client.upload("bare", config=CONFIG)
    client.upload("bundled", zipped(_files()))
    bare, bundled = (
        client.registry.find_adapter(client.tenant.id, "tiny", name) for name in ("bare", "bundled")
    )
    assert bare.revision == bundled.revision


@pytest.mark.parametrize("filename", [WEIGHTS, "../x", "x.tar"])
def test_the_files_name_and_type_are_not_trusted(client: Client, filename: str) -> None:
    for name, content in (("zip", zipped(_files())), ("bare", adapter_weights())):
        answer = client.http.post(
            "/v1/adapters/upload",
            data={"name": name, "base_model": "tiny"},
            files={"file": (filename, content, "text/plain")},
            headers={"prefer": "wait=0"},
        )
        assert answer.status_code == 201


def test_lora_alpha_counts_for_a_bundle_without_a_config(client: Client) -> None:
    bare_bundle = zipped({WEIGHTS: adapter_weights()})
    assert client.upload("said", bare_bundle, lora_alpha="8").json()["lora_alpha"] == 8
    assert client.upload("sent", bare_bundle, config=CONFIG).json()["lora_alpha"] == 16
    guessed = client.upload("guessed", bare_bundle).json()
    assert guessed["lora_alpha"] == 4
    assert len(guessed["warnings"]) == 1


def test_a_lora_alpha_that_contradicts_the_bundles_config_is_refused(client: Client) -> None:
    answer = client.upload("finance", zipped(_files()), lora_alpha="8")
    assert (answer.status_code, _error(answer)["param"]) == (400, "lora_alpha")


def test_a_second_config_is_refused(client: Client, gateway: Gateway) -> None:
    answer = client.upload("finance", zipped(_files()), config=CONFIG)
    assert answer.status_code == 400
    error = _error(answer)
    assert (error["param"], error["code"]) == ("config", "invalid_adapter")
    assert "Leave out" in error["message"]
    assert _leftovers(gateway) == []


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "The zip is empty"),
        ({"adapter_model.bin": b"x"}, "Convert the adapter to safetensors"),
        ({**_files("a/"), **_files("b/")}, "2 adapters"),
        ({**_files(), "../etc/passwd": b"x"}, "'../etc/passwd'"),
        ({**_files(), "inner.zip": b"x"}, "'inner.zip'"),
        ({WEIGHTS: b"not safetensors at all"}, "safetensors"),
        ({WEIGHTS: adapter_weights(rank=16)}, "16"),
        ({WEIGHTS: zipped(_files())}, "safetensors"),
    ],
)
def test_a_bad_bundle_is_refused_and_leaves_nothing(
    client: Client, gateway: Gateway, files: Mapping[str, bytes | str], words: str
) -> None:
    blobs = _blobs(gateway)
    answer = client.upload("finance", zipped(files))
    assert answer.status_code == 400
    error = _error(answer)
    assert (error["param"], error["code"]) == ("file", "invalid_adapter")
    assert words in error["message"]
    assert client.http.get("/v1/adapters").json()["data"] == []
    assert _leftovers(gateway) == []
    assert _blobs(gateway) == blobs


def test_a_truncated_bundle_is_refused(client: Client, gateway: Gateway) -> None:
    answer = client.upload("finance", zipped(_files())[:-30])
    assert (answer.status_code, _error(answer)["code"]) == (400, "invalid_adapter")
    assert _leftovers(gateway) == []


@pytest.mark.parametrize(
    ("declared_bytes", "status", "code"),
    [(4_000_000_000, 413, "adapter_too_large"), (1000, 400, "invalid_adapter")],
)
def test_a_bomb_is_refused_at_once(
    client: Client, gateway: Gateway, declared_bytes: int, status: int, code: str
) -> None:
    bomb = declaring(zipped({WEIGHTS: bytes(100_000_000)}), size=declared_bytes)
    assert len(bomb) < 200_000
    started = time.monotonic()
    answer, peak_bytes = _peak_bytes(lambda: client.upload("finance", bomb))
    assert time.monotonic() - started < 20
    assert (answer.status_code, _error(answer)["code"]) == (status, code)
    assert peak_bytes < 20_000_000
    assert _leftovers(gateway) == []


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_large_bundle_is_never_held_in_memory(
    client: Client, gateway: Gateway, tmp_path: Path, method: int
) -> None:
    file = tmp_path / "customerA.zip"
    with (
        zipfile.ZipFile(file, "w", method) as archive,
        archive.open(WEIGHTS, "w") as entry,
    ):
        entry.write(b"\2\0\0\0\0\0\0\0{}")
        for _ in range(100):
            entry.write(bytes(1_000_000))

    def pieces() -> Iterator[bytes]:
        with file.open("rb") as opened:
            while piece := opened.read(1_000_000):
                yield piece

    answer, peak_bytes = _peak_bytes(
        lambda: client.http.post("/v1/adapters/upload", content=_body(pieces), headers=FORM)
    )
    # Unpacked as a whole, and then found to have bytes that belong to no tensor.
    assert (answer.status_code, _error(answer)["code"]) == (400, "invalid_adapter")
    assert "the file has 100000010 bytes" in _error(answer)["message"]
    assert peak_bytes < 20_000_000
    assert _leftovers(gateway) == []


def test_a_client_that_leaves_in_mid_bundle_leaves_nothing(
    client: Client, gateway: Gateway
) -> None:
    bundle = zipped({WEIGHTS: adapter_weights(), "b": bytes(3_000_000)}, method=zipfile.ZIP_STORED)

    def pieces() -> Iterator[bytes]:
        yield bundle[:2_000_000]
        deadline = time.monotonic() + 5
        while not _leftovers(gateway):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        client.http.post("/v1/adapters/upload", content=_body(pieces), headers=FORM)
    deadline = time.monotonic() + 5
    while _leftovers(gateway):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert client.http.get("/v1/adapters").json()["data"] == []
