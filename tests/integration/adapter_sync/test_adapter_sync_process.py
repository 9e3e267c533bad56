"""adapter_sync as a process of its own: its command line, its lock and its end."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from adapter_sync.blobs import FolderBlobStore
from adapter_sync.installation import check_installation
from adapter_sync.registry import Registry
from tests.integration.adapter_sync.node import BASE_MODEL, Node, write_base_model

ROOT = Path(__file__).parents[3]
COMMAND = (sys.executable, "-m", "adapter_sync")
PATIENCE_S = 120


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A home of its own; nothing listens where Triton should."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return os.environ | {
        "LORA_HOME": str(tmp_path),
        "LORA_DATA_DIR": "data",
        "MODEL_REPOSITORY": "repository",
        "LORA_MODELS_DIR": "data/models",
        "TRITON_HTTP_PORT": str(port),
        "TRITON_HOST": "127.0.0.1",
    }


@contextmanager
def process(environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        started = subprocess.Popen(
            COMMAND, env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_for_words("adapter_sync.started", log, started)
        yield started
    finally:
        started.kill()
        started.wait(PATIENCE_S)


def wait_for_words(words: str, log: Path, started: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while words not in log.read_text():
        assert started.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def run(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (*COMMAND, *words),
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_help_needs_no_settings() -> None:
    shown = run(os.environ | {"GATEWAY_PORT": "nonsense"}, "--help")
    assert shown.returncode == 0
    assert "--control" in shown.stdout
    assert "poll" in shown.stdout


def test_a_second_one_on_the_same_data_folder_is_refused(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with process(environment, tmp_path / "log") as first:
        second = run(environment)
        assert second.returncode == 1
        assert "another one runs on this data folder" in second.stderr
        assert first.poll() is None
        with closing(Registry.open(f"sqlite:///{tmp_path / 'data' / 'registry.db'}")) as registry:
            assert registry.base_models() == []
    # The lock went with the process, though it was killed.
    with process(environment, tmp_path / "log2"):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(
    environment: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    with process(environment, tmp_path / "log") as started:
        begin = time.monotonic()
        started.send_signal(number)
        assert started.wait(PATIENCE_S) == 0
        assert time.monotonic() - begin < 30


def test_a_signal_ends_it_while_triton_hangs(
    environment: dict[str, str], node: Node, tmp_path: Path
) -> None:
    write_base_model(node, BASE_MODEL)
    node.upload()
    asked = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as silent:

        def take() -> None:
            connection, _ = silent.accept()
            asked.set()
            connection.recv(1)
            time.sleep(PATIENCE_S)

        threading.Thread(target=take, daemon=True).start()
        environment["TRITON_HTTP_PORT"] = str(silent.getsockname()[1])
        with process(environment, tmp_path / "log") as started:
            assert asked.wait(PATIENCE_S)
            begin = time.monotonic()
            started.terminate()
            assert started.wait(PATIENCE_S) == 0
            assert time.monotonic() - begin < 60


def test_files_are_prepared_while_there_is_no_triton(
    environment: dict[str, str], node: Node, tmp_path: Path
) -> None:
    write_base_model(node, BASE_MODEL)
    adapter = node.upload()
    with process(environment, tmp_path / "log") as started:
        wait_for_words("reconciliation.postponed", tmp_path / "log", started)
    assert (node.adapter_files / adapter.lora_name / "adapter_model.safetensors").is_file()


def test_blobs_that_nobody_uses_are_removed_at_the_start(
    environment: dict[str, str], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    blobs = FolderBlobStore(data / "blobs")
    with closing(Registry.open(f"sqlite:///{data / 'registry.db'}")) as registry:
        check_installation(registry, data / "blobs", data / "staging")
    (data / "file").write_bytes(b"left by a killed gateway")
    blobs.add(data / "file", "ab" * 32)
    with process(environment, tmp_path / "log") as started:
        wait_for_words("blobs.unused_removed", tmp_path / "log", started)
        assert list(blobs.digests()) == []


def test_files_that_a_killed_fetch_was_staging_are_removed_at_the_start(
    environment: dict[str, str], tmp_path: Path
) -> None:
    uploads = tmp_path / "data" / "staging" / "uploads"
    uploads.mkdir(parents=True)
    (uploads / "config").write_bytes(b"left by a killed adapter_sync")
    with process(environment, tmp_path / "log") as started:
        wait_for_words("staging.leftovers_removed", tmp_path / "log", started)
        assert list(uploads.iterdir()) == []


def test_a_wrong_setting_is_told(environment: dict[str, str]) -> None:
    refused = run(environment | {"TRITON_HTTP_PORT": "http"})
    assert refused.returncode == 1
    assert "TRITON_HTTP_PORT" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_registry_that_is_none_is_told(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "registry.db").write_bytes(b"not a database, but long enough for one" * 9)
    refused = run(environment)
    assert refused.returncode == 1
    assert "registry.db" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_it_ends_when_the_registrys_file_is_another_one(
    environment: dict[str, str], tmp_path: Path, how: str
) -> None:
    database = tmp_path / "data" / "registry.db"
    with process(environment, tmp_path / "log") as running:
        if how == "removed":
            database.unlink()
        else:
            other = tmp_path / "other.db"
            Registry.open(f"sqlite:///{other}").close()
            other.replace(database)
        assert running.wait(PATIENCE_S) == 1
    assert "removed or replaced while it was in use" in (tmp_path / "log").read_text()
