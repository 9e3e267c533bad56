"""Settings from the environment and the home folder's .env."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from adapter_sync.errors import ConfigurationError
from adapter_sync.settings import MAX_SOCKET_FOLDER_BYTES, Settings, load_settings


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("LORA_HOME", str(folder))
    return folder


@pytest.mark.usefixtures("home")
def test_there_is_a_default_for_everything() -> None:
    settings = Settings()
    assert settings.gateway_host == "127.0.0.1"
    ports = (
        settings.gateway_port,
        settings.triton_http_port,
        settings.triton_grpc_port,
        settings.triton_metrics_port,
    )
    assert ports == (8080, 8000, 8001, 8002)


def test_relative_folders_count_from_the_home(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL_REPOSITORY", "models")
    settings = Settings()
    assert settings.lora_data_dir == home / "data"
    assert settings.model_repository == home / "models"
    assert settings.lora_models_dir == home / ".runtime" / "models"


@pytest.mark.usefixtures("home")
def test_absolute_folders_and_the_users_own_are_taken_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    monkeypatch.setenv("LORA_DATA_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("MODEL_REPOSITORY", "~/models")
    settings = Settings()
    assert settings.lora_data_dir == tmp_path / "elsewhere"
    assert settings.model_repository == Path("/home/user/models")


def test_without_a_home_the_working_folder_is_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LORA_HOME", raising=False)
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    assert Settings().lora_data_dir == tmp_path / "data"


def test_the_homes_env_file_is_read_wherever_the_process_starts(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / ".env").write_text("GATEWAY_PORT=9090\nUNRELATED=1\n")
    (tmp_path / ".env").write_text("GATEWAY_PORT=1\n")
    monkeypatch.chdir(tmp_path)
    assert Settings().gateway_port == 9090


def test_the_environment_goes_before_the_env_file(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / ".env").write_text("GATEWAY_PORT=9090\nGATEWAY_HOST=0.0.0.0\n")
    monkeypatch.setenv("GATEWAY_PORT", "9191")
    settings = Settings()
    assert (settings.gateway_port, settings.gateway_host) == (9191, "0.0.0.0")  # noqa: S104


def test_an_empty_value_is_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".env").write_text("TRITON_HTTP_PORT=\n")
    monkeypatch.setenv("GATEWAY_PORT", "")
    settings = Settings()
    assert (settings.gateway_port, settings.triton_http_port) == (8080, 8000)


@pytest.mark.parametrize("value", ["0", "-1", "65536", "http", "80.5"])
@pytest.mark.parametrize("name", ["GATEWAY_PORT", "TRITON_METRICS_PORT"])
@pytest.mark.usefixtures("home")
def test_a_port_that_is_none_is_refused_by_name(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


@pytest.mark.usefixtures("home")
def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().gateway_port = 1


def test_everything_that_is_kept_lies_below_the_data_folder(home: Path) -> None:
    settings = Settings()
    assert settings.registry_url == f"sqlite:///{home}/data/registry.db"
    assert settings.blobs_folder == home / "data" / "blobs"
    assert settings.staging_folder == home / "data" / "staging"


@pytest.mark.usefixtures("home")
def test_the_registry_may_be_elsewhere_and_its_password_is_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = "postgresql+psycopg://lora:hidden@db/registry"
    monkeypatch.setenv("LORA_REGISTRY_URL", url)
    assert Settings().registry_url == url
    assert "hidden" not in repr(Settings())


@pytest.mark.usefixtures("home")
def test_sockets_lie_below_the_data_folder_if_their_address_is_short_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    longest = "/" + "d" * (MAX_SOCKET_FOLDER_BYTES - len("//run"))
    monkeypatch.setenv("LORA_DATA_DIR", longest)
    assert Settings().socket_folder == Path(longest) / "run"
    assert len(os.fsencode(Settings().socket_folder)) == MAX_SOCKET_FOLDER_BYTES


@pytest.mark.usefixtures("home")
def test_a_long_data_folder_has_its_sockets_in_a_folder_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folders = set()
    for letter in ("ä", "b"):
        monkeypatch.setenv("LORA_DATA_DIR", "/" + letter * 100)
        folder = Settings().socket_folder
        assert folder == Settings().socket_folder
        assert len(os.fsencode(folder)) <= MAX_SOCKET_FOLDER_BYTES
        folders.add(folder)
    assert len(folders) == 2


@pytest.mark.usefixtures("home")
def test_there_is_no_admin_key_unless_one_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().lora_admin_key is None
    monkeypatch.setenv("LORA_ADMIN_KEY", "")
    assert Settings().lora_admin_key is None
    monkeypatch.setenv("LORA_ADMIN_KEY", "0123456789abcdef" * 2)
    settings = Settings()
    assert settings.lora_admin_key is not None
    assert settings.lora_admin_key.get_secret_value() == "0123456789abcdef" * 2
    assert "0123456789abcdef" not in repr(settings)


@pytest.mark.parametrize(
    "weak", ["a" * 31, "a" * 16 + " " + "b" * 16, "ä" * 32, "pk-0123456789abcdef0123-" + "a" * 43]
)
@pytest.mark.usefixtures("home")
def test_a_weak_admin_key_is_refused_without_telling_it(
    weak: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORA_ADMIN_KEY", weak)
    with pytest.raises(ConfigurationError, match="LORA_ADMIN_KEY") as refusal:
        load_settings()
    assert weak not in str(refusal.value)
