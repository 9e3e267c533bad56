"""The way from the companion to its base model, over real Unix sockets."""

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from engine.handover import HandoverError, ask, socket_path
from engine.handover_server import HandoverServer


class BaseModel:
    """Keeps what it was told and answers with a number of its own."""

    def __init__(self, number: int = 1) -> None:
        self.number = number
        self.told: list[Mapping[str, Any]] = []

    async def answer(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        if "fail" in question:
            raise RuntimeError("the engine is dead")
        self.told.append(question)
        return {"number": self.number, "size": len(str(question))}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "base.sock"


@pytest.fixture
def base() -> BaseModel:
    return BaseModel()


@pytest.fixture
async def server(path: Path, base: BaseModel) -> AsyncIterator[HandoverServer]:
    listening = HandoverServer(path, base.answer)
    await listening.start()
    yield listening
    await listening.stop()


def is_there(path: Path) -> bool:
    return path.exists()


async def ask_in_a_thread(path: Path, question: Mapping[str, Any]) -> Mapping[str, Any]:
    return await asyncio.to_thread(ask, path, question)


@pytest.mark.usefixtures("server")
async def test_a_question_is_answered(path: Path, base: BaseModel) -> None:
    answer = await ask_in_a_thread(path, {"lora_map": "…", "folder": "/repository/ä"})
    assert answer["number"] == 1
    assert base.told == [{"lora_map": "…", "folder": "/repository/ä"}]


@pytest.mark.usefixtures("server")
async def test_a_map_of_many_megabytes_passes(path: Path, base: BaseModel) -> None:
    lora_map = "adapter " * 1_000_000
    answer = await ask_in_a_thread(path, {"lora_map": lora_map})
    assert answer["size"] > len(lora_map)
    assert base.told == [{"lora_map": lora_map}]


@pytest.mark.usefixtures("server")
async def test_many_may_ask_at_once(path: Path) -> None:
    answers = await asyncio.gather(*(ask_in_a_thread(path, {"n": n}) for n in range(20)))
    assert [answer["number"] for answer in answers] == [1] * 20


@pytest.mark.usefixtures("server")
def test_only_the_owner_may_speak_to_the_base_model(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_absent_base_model_is_told(path: Path) -> None:
    with pytest.raises(HandoverError, match="not there"):
        ask(path, {})


async def test_a_base_model_that_stopped_is_told(server: HandoverServer, path: Path) -> None:
    await server.stop()
    assert not is_there(path)
    with pytest.raises(HandoverError, match="not there"):
        await ask_in_a_thread(path, {})


@pytest.mark.usefixtures("server")
async def test_an_error_of_the_base_model_is_told_and_survived(
    path: Path, base: BaseModel, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(HandoverError, match="went away before it answered"):
        await ask_in_a_thread(path, {"fail": True})
    assert "the engine is dead" in caplog.text
    assert (await ask_in_a_thread(path, {"well": True}))["number"] == 1
    assert base.told == [{"well": True}]


def serve_once(path: Path, payload: bytes) -> "asyncio.Future[None]":
    """A stranger in the base model's place, that sends these bytes."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.fspath(path))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, listener:
            connection.recv(65536)
            connection.sendall(payload)

    return asyncio.get_running_loop().run_in_executor(None, serve)


@pytest.mark.parametrize(
    ("payload", "words"),
    [(b"", "went away"), (b'{"half": ', "went away"), (b"garbage\n", "no JSON")],
)
async def test_an_answer_that_is_none_is_told(path: Path, payload: bytes, words: str) -> None:
    served = serve_once(path, payload)
    with pytest.raises(HandoverError, match=words):
        await ask_in_a_thread(path, {})
    await served


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\n",
        b"garbage\n",
        b"[]\n",
        b"17\n",
        b"\xff\xfe\n",
        b'{"no": "line\'s end"}',
        b"x" * 70000,
    ],
)
@pytest.mark.usefixtures("server")
async def test_garbage_on_the_socket_harms_nobody(path: Path, garbage: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(os.fspath(path))
    writer.write(garbage)
    writer.write_eof()
    await reader.read()
    writer.close()
    assert (await ask_in_a_thread(path, {}))["number"] == 1


async def test_a_message_over_the_limit_ends_its_connection_only(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.handover_server.MAX_MESSAGE_BYTES", 1000)
    server = HandoverServer(path, BaseModel().answer)
    await server.start()
    with pytest.raises(HandoverError):
        await ask_in_a_thread(path, {"lora_map": "x" * 200_000})
    assert (await ask_in_a_thread(path, {}))["number"] == 1
    await server.stop()


@pytest.mark.usefixtures("server")
async def test_one_who_leaves_before_the_answer_harms_nobody(path: Path, base: BaseModel) -> None:
    for _ in range(3):
        _, writer = await asyncio.open_unix_connection(os.fspath(path))
        writer.write(b'{"impatient": true}\n')
        writer.transport.abort()
    assert (await ask_in_a_thread(path, {}))["number"] == 1
    assert base.told[-1] == {}


async def test_a_newer_instance_takes_over_and_the_older_ones_end_leaves_it_alone(
    path: Path,
) -> None:
    older = HandoverServer(path, BaseModel(1).answer)
    newer = HandoverServer(path, BaseModel(2).answer)
    await older.start()
    assert (await ask_in_a_thread(path, {}))["number"] == 1
    await newer.start()
    assert (await ask_in_a_thread(path, {}))["number"] == 2
    await older.stop()
    assert (await ask_in_a_thread(path, {}))["number"] == 2
    await newer.stop()
    assert not is_there(path)


async def test_a_socket_left_by_a_killed_process_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(os.fspath(path))
    server = HandoverServer(path, BaseModel().answer)
    await server.start()
    assert (await ask_in_a_thread(path, {}))["number"] == 1
    await server.stop()


async def test_a_server_that_never_started_can_be_stopped(path: Path) -> None:
    other = HandoverServer(path, BaseModel().answer)
    await other.start()
    await HandoverServer(path, BaseModel().answer).stop()
    assert is_there(path)
    await other.stop()


@pytest.fixture
def socket_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "run"
    monkeypatch.setenv("LORA_SOCKET_DIR", str(folder))
    return folder


def test_both_ends_find_the_same_socket(socket_folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    (tmp_path / "link").symlink_to(repository)
    path = socket_path(repository, "base")
    assert path.parent == socket_folder
    assert stat.S_IMODE(socket_folder.stat().st_mode) == 0o700
    assert socket_path(tmp_path / "link", "base") == path
    assert socket_path(repository, "other") != path
    assert socket_path(tmp_path, "base") != path


def test_without_a_setting_the_folder_is_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LORA_SOCKET_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = socket_path(tmp_path, "base")
    assert path.parent == tmp_path / f"lora-server-{os.getuid()}"
    assert len(os.fsencode(path.name)) < 30


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_may_write_to_is_refused(socket_folder: Path, mode: int) -> None:
    socket_folder.mkdir()
    socket_folder.chmod(mode)
    with pytest.raises(HandoverError, match="writable by no other"):
        socket_path(socket_folder, "base")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_another_users_folder_is_refused(socket_folder: Path) -> None:
    socket_folder.mkdir(mode=0o700)
    os.chown(socket_folder, 12345, 12345)
    with pytest.raises(HandoverError, match="belong to this user"):
        socket_path(socket_folder, "base")


def test_a_folder_that_cannot_be_made_is_told(socket_folder: Path) -> None:
    socket_folder.touch()
    with pytest.raises(HandoverError, match="can't be made"):
        socket_path(socket_folder, "base")
