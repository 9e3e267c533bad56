"""Triton's control calls, against real sockets: a small HTTP server, a silent one and none."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from adapter_sync.engine_status import EngineAdapter
from adapter_sync.errors import TritonRefusedError, TritonUnavailableError
from adapter_sync.triton_control import ExplicitControl, PollControl, TritonControl

COMPANION = "tiny-adapters"
BASE = {
    "revision": 4,
    "settled_revision": 3,
    "adapters": {
        "adp_1@00": {"state": "loaded", "reason": None, "residency": "gpu"},
        "adp_2@00": {"state": "failed", "reason": "rank 128", "residency": "disk"},
    },
    "alive": True,
    "in_flight": 3,
    "pids": [11, 12],
}


@dataclass(slots=True)
class Triton:
    """What the server answers, as Triton 2.51 was seen to."""

    url: str = ""
    ready: int = 200
    load: tuple[int, bytes] = (200, b"")
    infer: Callable[[str], tuple[int, bytes]] = field(
        default_factory=lambda: lambda _: status_answer({"revision": 5, "base_model": BASE})
    )
    calls: list[str] = field(default_factory=list)


def status_answer(document: object) -> tuple[int, bytes]:
    output = {"name": "status", "datatype": "BYTES", "shape": [1], "data": [json.dumps(document)]}
    return 200, json.dumps({"model_name": COMPANION, "outputs": [output]}).encode()


@pytest.fixture
def triton() -> Iterator[Triton]:
    told = Triton()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            told.calls.append(f"GET {self.path}")
            self.answer(told.ready, b"")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            told.calls.append(f"POST {self.path}")
            model = self.path.split("/")[-2]
            self.answer(*(told.load if self.path.endswith("/load") else told.infer(model)))

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        told.url = f"127.0.0.1:{server.server_port}"
        yield told
        server.shutdown()


@contextmanager
def raw_server(payload: bytes | None) -> Iterator[str]:
    """One that takes a request and sends these bytes and the end, or nothing ever."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                taken.append(connection)
                connection.recv(65536)
                if payload is not None:
                    connection.sendall(payload)
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        for connection in taken:
            connection.close()


@pytest.fixture
def dead_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"127.0.0.1:{port}"


def commit(control: TritonControl) -> None:
    control.commit(COMPANION, 5)


def status(control: TritonControl) -> None:
    control.status(COMPANION)


both_calls = pytest.mark.parametrize("call", [commit, status])
Call = Callable[[TritonControl], None]


def test_a_commit_loads_the_companion(triton: Triton) -> None:
    ExplicitControl(triton.url).commit(COMPANION, 5)
    assert triton.calls == [f"POST /v2/repository/models/{COMPANION}/load"]


def test_the_status_is_what_the_companion_tells(triton: Triton) -> None:
    found = ExplicitControl(triton.url).status(COMPANION)
    assert found is not None
    assert (found.companion_revision, found.revision, found.settled_revision) == (5, 4, 3)
    assert found.adapters == {
        "adp_1@00": EngineAdapter(state="loaded", reason=None, residency="gpu"),
        "adp_2@00": EngineAdapter(state="failed", reason="rank 128"),
    }
    assert (found.pids, found.in_flight) == ((11, 12), 3)


def test_a_companion_that_triton_does_not_have_is_none(triton: Triton) -> None:
    triton.ready = 400
    assert ExplicitControl(triton.url).status(COMPANION) is None


def test_a_companion_without_its_base_model_tells_its_own_revision(triton: Triton) -> None:
    triton.infer = lambda _: status_answer({"revision": 5, "base_model": None})
    found = ExplicitControl(triton.url).status(COMPANION)
    assert found is not None
    assert (found.companion_revision, found.revision) == (5, None)
    assert found.adapters == {}


def test_a_base_model_whose_engine_died_has_no_say_about_adapters(triton: Triton) -> None:
    """It calls every adapter failed, which would be final."""
    triton.infer = lambda _: status_answer({"revision": 5, "base_model": BASE | {"alive": False}})
    found = ExplicitControl(triton.url).status(COMPANION)
    assert found is not None
    assert found.revision is None
    assert found.adapters == {}


def test_a_refused_load_tells_tritons_words(triton: Triton) -> None:
    triton.load = 400, json.dumps({"error": "load failed for model: version 1 is at …"}).encode()
    with pytest.raises(TritonRefusedError, match="load failed for model: version 1"):
        ExplicitControl(triton.url).commit(COMPANION, 5)


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b'{"other": 1}', b"\xff\xfe"])
def test_a_refusal_without_words_is_still_one(triton: Triton, body: bytes) -> None:
    triton.load = 503, body
    with pytest.raises(TritonRefusedError, match="503"):
        ExplicitControl(triton.url).commit(COMPANION, 5)


def test_a_companion_whose_process_died_is_a_refusal(triton: Triton) -> None:
    triton.infer = lambda _: (500, b'{"error":"Stub process is not healthy."}')
    with pytest.raises(TritonRefusedError, match="Stub process is not healthy"):
        ExplicitControl(triton.url).status(COMPANION)


@pytest.mark.parametrize(
    "answer",
    [
        (200, b"not json"),
        (200, b"{}"),
        (200, b'{"outputs": []}'),
        (200, b'{"outputs": [{"data": ["{"]}]}'),
        (200, b'{"outputs": [{"data": []}]}'),
        status_answer([]),
        status_answer({"revision": 1}),
        status_answer({"revision": 1, "base_model": {"alive": True}}),
    ],
)
def test_an_answer_that_is_no_status_is_a_refusal(
    triton: Triton, answer: tuple[int, bytes]
) -> None:
    triton.infer = lambda _: answer
    with pytest.raises(TritonRefusedError, match="no status"):
        ExplicitControl(triton.url).status(COMPANION)


@both_calls
def test_a_dead_port_is_told(dead_url: str, call: Call) -> None:
    for control in (ExplicitControl(dead_url), PollControl(dead_url)):
        with pytest.raises(TritonUnavailableError, match="refused"):
            call(control)


@both_calls
def test_a_triton_that_never_answers_is_given_up(call: Call) -> None:
    with raw_server(None) as url:
        begin = time.monotonic()
        with pytest.raises(TritonUnavailableError, match="timed out"):
            call(ExplicitControl(url, load_deadline_s=0.3, status_deadline_s=0.3))
        assert 0.2 < time.monotonic() - begin < 20


@both_calls
@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 2",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_a_triton_that_dies_as_it_answers_is_unavailable(call: Call, payload: bytes) -> None:
    with raw_server(payload) as url, pytest.raises(TritonUnavailableError):
        call(ExplicitControl(url, load_deadline_s=5, status_deadline_s=5))


def test_threads_get_their_own_answers_and_no_connection_is_left(triton: Triton) -> None:
    triton.infer = lambda model: status_answer(
        {"revision": int(model.removeprefix("m")), "base_model": None}
    )
    control = ExplicitControl(triton.url)

    def ask(number: int) -> int | None:
        found = control.status(f"m{number}")
        return found.companion_revision if found is not None else None

    opened = set(Path("/proc/self/fd").iterdir())
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(200))) == list(range(200))
    deadline = time.monotonic() + 5
    while len(set(Path("/proc/self/fd").iterdir())) > len(opened) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(set(Path("/proc/self/fd").iterdir())) <= len(opened)


def test_a_proxy_of_the_environment_is_not_asked(
    triton: Triton, dead_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{dead_url}")
    ExplicitControl(triton.url).commit(COMPANION, 5)


def counting_up(refusals: int = 0) -> Callable[[str], tuple[int, bytes]]:
    """A companion that is broken at first and then has one revision more at each look."""
    revisions = iter(range(-refusals, 100))

    def infer(_: str) -> tuple[int, bytes]:
        revision = next(revisions)
        if revision < 0:
            return 500, b'{"error": "Stub process is not healthy."}'
        return status_answer({"revision": revision, "base_model": None})

    return infer


@pytest.mark.parametrize("refusals", [0, 2])
def test_polling_waits_until_triton_has_looked(triton: Triton, refusals: int) -> None:
    triton.infer = counting_up(refusals)
    PollControl(triton.url).commit(COMPANION, 3)
    looks = [call for call in triton.calls if call.endswith("/infer")]
    assert len(looks) == 4 + refusals
    assert not any("repository" in call for call in triton.calls)


def test_polling_waits_for_a_companion_that_triton_has_yet_to_find(triton: Triton) -> None:
    triton.ready = 400
    threading.Timer(0.2, setattr, (triton, "ready", 200)).start()
    PollControl(triton.url).commit(COMPANION, 5)
    assert any(call.endswith("/infer") for call in triton.calls)


def test_polling_is_given_up_with_what_to_look_for(triton: Triton) -> None:
    with pytest.raises(TritonUnavailableError, match=r"revision 6 .*model-control-mode=poll"):
        PollControl(triton.url, deadline_s=0.2).commit(COMPANION, 6)


def test_polling_a_companion_that_stays_broken_tells_its_words(triton: Triton) -> None:
    triton.infer = lambda _: (500, b'{"error":"Stub process is not healthy."}')
    with pytest.raises(TritonUnavailableError, match="Stub process is not healthy"):
        PollControl(triton.url, deadline_s=0.2).commit(COMPANION, 6)
