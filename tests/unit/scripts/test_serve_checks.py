"""What scripts/serve looks at before it starts anything."""

import configparser
import contextlib
import fcntl
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from stack.installation import free_ports, lock
from stack.serve import (
    EPILOG,
    ServeError,
    is_ready,
    main,
    renew_configs,
    seed_repository,
    supervisord_configuration,
)
from supervisor.options import ServerOptions

from adapter_sync.settings import Settings, load_settings
from tests.stack_process import BASE_MODEL, ROOT

PORTS = ("GATEWAY_PORT", "TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT")


def test_help_tells_every_setting() -> None:
    told = {line.split()[0] for line in EPILOG.splitlines() if line.startswith("  ")}
    assert {name.upper() for name in Settings.model_fields} - told == set()


@pytest.fixture
def ports() -> dict[str, int]:
    return dict(zip(PORTS, free_ports(len(PORTS)), strict=True))


@pytest.fixture
def home(tmp_path: Path, ports: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation of its own, which has the demo's base model but no repository yet."""
    monkeypatch.setenv("LORA_HOME", str(tmp_path))
    monkeypatch.setenv("LORA_DATA_DIR", "data")
    monkeypatch.setenv("MODEL_REPOSITORY", "repository")
    monkeypatch.setenv("LORA_MODELS_DIR", "models")
    for name in ("GATEWAY_HOST", "TRITON_HOST"):
        monkeypatch.setenv(name, "127.0.0.1")
    for name, port in ports.items():
        monkeypatch.setenv(name, str(port))
    (tmp_path / "models" / BASE_MODEL).mkdir(parents=True)
    return tmp_path


@contextlib.contextmanager
def taken(port: int) -> Iterator[None]:
    with socket.create_server(("127.0.0.1", port)):
        yield


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    """What serve says when it refuses; nothing has been started then."""
    before = psutil.Process().children()
    assert main([]) == 1
    assert psutil.Process().children() == before
    said = capsys.readouterr().err
    assert said.startswith("serve: ")
    return said


def nothing_was_made(home: Path) -> bool:
    made = {path.name for path in home.rglob("*")} - {"models", BASE_MODEL}
    return made <= {"data", "serve.lock"}


@pytest.mark.parametrize("name", PORTS)
def test_a_taken_port_is_told_by_its_variable_before_anything_starts(
    home: Path, ports: dict[str, int], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with taken(ports[name]):
        said = refusal(capsys)
    assert f"port {ports[name]} on 127.0.0.1" in said
    assert f"set {name}" in said
    assert not any(f"set {other}" in said for other in PORTS if other != name)
    assert nothing_was_made(home)


def test_every_taken_port_is_told_at_once(
    home: Path, ports: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    with taken(ports["GATEWAY_PORT"]), taken(ports["TRITON_GRPC_PORT"]):
        said = refusal(capsys)
    assert "set GATEWAY_PORT" in said
    assert "set TRITON_GRPC_PORT" in said
    assert nothing_was_made(home)


def test_two_equal_ports_are_refused(
    home: Path,
    ports: dict[str, int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_GRPC_PORT", str(ports["TRITON_HTTP_PORT"]))
    assert "must be four different ports" in refusal(capsys)
    assert nothing_was_made(home)


def test_an_address_that_is_not_this_machines_is_refused(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_HOST", "203.0.113.1")
    assert "set GATEWAY_PORT" in refusal(capsys)
    assert nothing_was_made(home)


def test_a_wrong_tiers_file_is_told_by_its_key(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "tiers.toml").write_text("[gold]\nmax_adapters = -1\n")
    monkeypatch.setenv("LORA_TIERS_FILE", "tiers.toml")
    assert "gold.max_adapters: " in refusal(capsys)
    (home / "tiers.toml").unlink()
    assert "tiers.toml can't be read" in refusal(capsys)
    assert nothing_was_made(home)


@pytest.mark.parametrize("value", ["http", "0", "99999"])
def test_a_wrong_setting_is_told_by_its_variable(
    home: Path, value: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_METRICS_PORT", value)
    assert "TRITON_METRICS_PORT" in refusal(capsys)
    assert nothing_was_made(home)


def test_a_data_folder_that_is_being_served_is_refused(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = lock(load_settings())
    assert held is not None
    with held:
        said = refusal(capsys)
    assert f"LORA_DATA_DIR {home / 'data'} is being served already" in said
    assert nothing_was_made(home)
    again = lock(load_settings())
    assert again is not None
    again.close()


@pytest.mark.parametrize("exists", [False, True])
def test_an_empty_repository_gets_the_checkouts_base_model(home: Path, *, exists: bool) -> None:
    if exists:
        (home / "repository").mkdir()
    seed_repository(load_settings())
    seeded, committed = home / "repository" / BASE_MODEL, ROOT / "model_repository" / BASE_MODEL
    names = ["1/__pycache__", "1/model.json", "1/model.py", "config.pbtxt"]
    found = (path.relative_to(seeded) for path in seeded.rglob("*") if path.is_file())
    assert sorted(map(str, found)) == names
    for name in names:
        assert (seeded / name).read_bytes() == (committed / name).read_bytes()
    assert [path.name for path in (home / "repository").iterdir()] == [BASE_MODEL]


def test_a_repository_with_a_base_model_is_left_as_it_is(home: Path) -> None:
    model = home / "repository" / "llama" / "1" / "model.json"
    model.parent.mkdir(parents=True)
    model.write_text("{}")
    seed_repository(load_settings())
    assert [path.name for path in (home / "repository").iterdir()] == ["llama"]


def test_a_base_model_of_an_earlier_version_gets_the_tensors_of_this_one(home: Path) -> None:
    seed_repository(load_settings())
    folder = home / "repository" / BASE_MODEL
    config, committed = folder / "config.pbtxt", (folder / "config.pbtxt").read_bytes()
    config.write_bytes(committed.replace(b'"channel"', b'"http_status"'))
    renew_configs(load_settings())
    assert config.read_bytes() == committed
    renewed_at = config.stat().st_ctime_ns
    renew_configs(load_settings())
    assert config.stat().st_ctime_ns == renewed_at


def test_a_config_of_the_operators_own_is_left_as_it_is(home: Path) -> None:
    seed_repository(load_settings())
    config = home / "repository" / BASE_MODEL / "config.pbtxt"
    config.write_text('backend: "vllm"\n')
    renew_configs(load_settings())
    assert config.read_text() == 'backend: "vllm"\n'


@pytest.mark.parametrize("content", [None, "", "lost+found"])
def test_nothing_to_serve_is_refused_with_what_to_do(
    home: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "models" / BASE_MODEL).rmdir()
    if content is not None:
        (home / "repository" / content).mkdir(parents=True)
    said = refusal(capsys)
    assert f"MODEL_REPOSITORY {home / 'repository'} holds no base model" in said
    assert "scripts/add-base-model NAME --model" in said
    assert not (home / "data" / "supervisord.conf").exists()


def test_only_companions_are_nothing_to_serve(home: Path) -> None:
    (home / "repository" / "gone-adapters" / "1").mkdir(parents=True)
    with pytest.raises(ServeError, match="holds no base model"):
        seed_repository(load_settings())


@pytest.mark.parametrize("folder", ["data", "with a space", "100%(done)s", "%%"])
def test_supervisords_own_files_lie_in_the_data_folder_and_are_no_device(
    home: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It removes its pidfile and rotates its log: a device named there would go."""
    monkeypatch.setenv("LORA_DATA_DIR", folder)
    data = home / folder
    data.mkdir()
    configuration = data / "supervisord.conf"
    configuration.write_text(supervisord_configuration(load_settings(), "poll"))
    options = ServerOptions()
    options.realize(args=["-c", str(configuration)])
    assert Path(options.pidfile) == data / "supervisord.pid"
    assert Path(options.logfile) == data / "supervisord.log"
    programs = {each.name: each.process_configs[0] for each in options.process_group_configs}
    assert sorted(programs) == ["adapter_sync", "gateway", "triton"]
    for name in ("triton", "adapter_sync"):
        assert programs[name].command.endswith("--control=poll")
    for program in programs.values():
        assert program.stdout_logfile == "/dev/fd/1"
        # Nothing is rotated, or the output's file would be renamed.
        assert program.stdout_logfile_maxbytes == 0
        assert program.stderr_logfile is None


@pytest.mark.usefixtures("home")
def test_no_line_of_the_configuration_names_a_device_but_the_output() -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(supervisord_configuration(load_settings(), "explicit"))
    devices = {
        (key, value)
        for section in parser.sections()
        for key, value in parser[section].items()
        if value.startswith("/dev")
    }
    assert devices == {("stdout_logfile", "/dev/fd/1")}


def serve_raw(port: int, payload: bytes) -> socket.socket:
    server = socket.create_server(("127.0.0.1", port))

    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(payload)

    threading.Thread(target=answer, daemon=True).start()
    return server


@pytest.mark.parametrize(
    ("payload", "ready"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", False),
        (b"garbage\r\n\r\n", False),
        (b"", False),
    ],
)
@pytest.mark.usefixtures("home")
def test_ready_is_what_the_gateway_says(
    ports: dict[str, int], payload: bytes, monkeypatch: pytest.MonkeyPatch, *, ready: bool
) -> None:
    # A proxy of the environment must not be asked for this machine's own port.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert not is_ready(load_settings())
    with serve_raw(ports["GATEWAY_PORT"], payload):
        assert is_ready(load_settings()) is ready


@pytest.mark.usefixtures("home")
def test_a_repository_that_another_installation_serves_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings()
    seed_repository(settings)
    descriptor = os.open(settings.model_repository, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        monkeypatch.setenv("LORA_DATA_DIR", "other")
        assert "MODEL_REPOSITORY" in refusal(capsys)
    finally:
        os.close(descriptor)


@pytest.mark.usefixtures("home")
def test_a_path_with_spaces_is_refused_with_the_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_REPOSITORY", "my models")
    assert "path with spaces" in refusal(capsys)


@pytest.mark.usefixtures("home")
def test_a_registry_that_does_not_belong_to_the_blobs_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = load_settings()
    blob = settings.blobs_folder / "ab" / ("ab" * 32)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"weights")
    assert "don't belong together" in refusal(capsys)
    assert blob.read_bytes() == b"weights"
