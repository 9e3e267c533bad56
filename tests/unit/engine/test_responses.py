"""The sending thread, with a stand-in for the module that exists only inside Triton's stub."""

import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import pytest

FINAL = 1


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    values: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceResponse:
    output_tensors: list[Tensor]


@dataclass(slots=True, kw_only=True)
class Client:
    """Triton's end of one request: keeps what was sent, may be slow, broken or gone."""

    bodies: list[bytes] = field(default_factory=list)
    flags: list[int] = field(default_factory=list)
    may_send: threading.Event = field(default_factory=threading.Event)
    broken: bool = False
    gone: bool = False
    unknown: bool = False

    def __post_init__(self) -> None:
        self.may_send.set()

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        assert self.may_send.wait(10)
        if self.broken and response is not None:
            raise RuntimeError("shared memory is full")
        if response is not None:
            (tensor,) = response.output_tensors
            assert (tensor.name, tensor.values.dtype) == ("frames", np.uint8)
            self.bodies.append(tensor.values.tobytes())
        self.flags.append(flags)

    def is_cancelled(self) -> bool:
        if self.unknown:
            raise RuntimeError("the stub lost its parent")
        return self.gone

    @property
    def body(self) -> bytes:
        return b"".join(self.bodies)

    @property
    def ended(self) -> bool:
        return FINAL in self.flags


@pytest.fixture
def responses(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module, imported over the stand-in."""
    utilities = ModuleType("triton_python_backend_utils")
    utilities.__dict__.update(
        Tensor=Tensor,
        InferenceResponse=InferenceResponse,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utilities)
    monkeypatch.delitem(sys.modules, "engine.responses", raising=False)
    module = importlib.import_module("engine.responses")
    monkeypatch.setattr(module, "GATEWAY_PERIOD_S", 0.02)
    yield module
    sys.modules.pop("engine.responses", None)


@pytest.fixture
def sender(responses: ModuleType) -> Iterator[Any]:
    made = responses.ResponseSender()
    yield made
    made.stop()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_response_is_sent_with_its_end_last(sender: Any) -> None:
    client = Client()
    response = sender.open(client)
    response.write(b"one")
    wait_until(lambda: client.bodies)
    response.write(b"two")
    wait_until(lambda: len(client.bodies) == 2)
    response.finish()
    wait_until(lambda: client.ended)
    assert client.bodies == [b"one", b"two"]
    assert client.flags == [0, 0, FINAL]


def test_what_waits_for_a_slow_triton_goes_as_one(sender: Any) -> None:
    client = Client()
    client.may_send.clear()
    response = sender.open(client)
    response.write(b"first")
    time.sleep(0.05)
    for number in range(100):
        response.write(b" %d" % number)
    response.finish()
    client.may_send.set()
    wait_until(lambda: client.ended)
    assert client.bodies == [b"first", b"".join(b" %d" % number for number in range(100))]
    assert client.flags == [0, FINAL]


def test_bytes_pass_unchanged(sender: Any) -> None:
    client = Client()
    body = bytes(range(256)) + b"\0\0"
    response = sender.open(client)
    response.write(body)
    response.finish()
    wait_until(lambda: client.ended)
    assert client.body == body


def test_a_request_without_a_body_is_ended(sender: Any) -> None:
    client = Client()
    sender.open(client).finish()
    wait_until(lambda: client.ended)
    assert client.bodies == []


def test_nothing_is_sent_after_the_end(sender: Any) -> None:
    client, later = Client(), Client()
    response = sender.open(client)
    response.finish()
    wait_until(lambda: client.ended)
    response.write(b"late")
    response.finish()
    last = sender.open(later)
    last.finish()
    wait_until(lambda: later.ended)
    assert client.flags == [FINAL]
    assert client.bodies == []


def test_many_requests_from_many_threads_keep_their_own_order(sender: Any) -> None:
    clients = [Client() for _ in range(12)]

    def answer(client: Client) -> None:
        response = sender.open(client)
        for number in range(200):
            response.write(b"%d;" % number)
        response.finish()

    threads = [threading.Thread(target=answer, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = b"".join(b"%d;" % number for number in range(200))
    wait_until(lambda: all(client.ended for client in clients))
    for client in clients:
        assert client.body == expected
        assert client.flags.count(FINAL) == 1


def test_a_response_that_cannot_be_sent_ends_its_request_only(sender: Any) -> None:
    client, other = Client(broken=True), Client()
    cancelled: list[bool] = []
    response = sender.open(client)
    response.on_cancel(lambda: cancelled.append(True))
    response.write(b"lost")
    wait_until(lambda: cancelled)
    wait_until(lambda: client.ended)
    response.write(b"more")
    response.finish()
    healthy = sender.open(other)
    healthy.write(b"well")
    healthy.finish()
    wait_until(lambda: other.ended)
    assert cancelled == [True]
    assert client.flags == [FINAL]
    assert other.body == b"well"


def test_a_client_that_goes_away_cancels_its_request_once(sender: Any) -> None:
    client, busy = Client(), Client()
    cancelled: list[bool] = []
    response = sender.open(client)
    response.on_cancel(lambda: cancelled.append(True))
    time.sleep(0.1)
    assert cancelled == []
    client.gone = True
    wait_until(lambda: cancelled)
    # The thread looks after clients also while there is always something to send.
    stream = sender.open(busy)
    for _ in range(50):
        stream.write(b"x")
        time.sleep(0.002)
    assert cancelled == [True]
    response.finish()
    wait_until(lambda: client.ended)


def test_a_busy_thread_still_notices_who_has_gone(sender: Any) -> None:
    client, busy = Client(gone=True), Client()
    cancelled: list[bool] = []
    stream = sender.open(busy)
    sender.open(client).on_cancel(lambda: cancelled.append(True))
    deadline = time.monotonic() + 10
    while not cancelled and time.monotonic() < deadline:
        stream.write(b"x")
        time.sleep(0.001)
    assert cancelled == [True]


def test_a_finished_request_is_not_asked_after(sender: Any) -> None:
    client = Client()
    cancelled: list[bool] = []
    response = sender.open(client)
    response.on_cancel(lambda: cancelled.append(True))
    response.finish()
    wait_until(lambda: client.ended)
    client.gone = True
    time.sleep(0.1)
    assert cancelled == []


def test_a_failing_question_after_a_client_does_not_stop_the_thread(sender: Any) -> None:
    client, other = Client(unknown=True), Client(gone=True)
    cancelled: list[bool] = []
    sender.open(client).on_cancel(lambda: pytest.fail("cancelled"))
    sender.open(other).on_cancel(lambda: cancelled.append(True))
    wait_until(lambda: cancelled)


def test_the_end_sends_what_waits(responses: ModuleType) -> None:
    sender = responses.ResponseSender()
    client = Client()
    client.may_send.clear()
    response = sender.open(client)
    response.write(b"first")
    time.sleep(0.02)
    response.write(b" last")
    response.finish()
    threading.Timer(0.05, client.may_send.set).start()
    sender.stop()
    assert client.body == b"first last"
    assert client.ended
