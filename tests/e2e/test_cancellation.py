"""A client that leaves stops its work in the engine, however it came and wherever its work is.

Each test prints how long that took from the moment of leaving: run it with -s to see.
"""

import json
import os
import signal
import socket
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient

from adapter_sync.settings import Settings
from engine.handover import ask
from tests.stack_process import BASE_MODEL, Stack, is_ready, wait_for

# Of a stream that is cancelled tritonclient's own thread raises.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
SOON_S = 10
"""A whole answer would take a minute; how soon it really is is printed."""
STEP_S = 0.005
MAX_NUM_SEQS = 64
"""The base model's own, in 1/model.json."""
Leave = Callable[[], None]
PROMPT = "Tell me a very long story."
ENDLESS = {"max_tokens": 1900, "ignore_eos": True}


class Come(Protocol):
    """Clients of one kind that send a request each; what they return lets them leave."""

    __name__: str

    def __call__(self, stack: Stack, count: int, *, stream: bool) -> Leave: ...


@pytest.fixture(autouse=True)
def _quiet(stack: Stack) -> None:
    wait_for(lambda: in_flight(stack) == 0, "a quiet engine")


def in_flight(stack: Stack) -> int:
    """The engine's own count of requests, asked past Triton and the gateway."""
    folder = Settings(lora_data_dir=stack.data).socket_folder
    (path,) = folder.glob("*.sock")
    count: int = ask(path, {})["in_flight"]
    return count


def by_gateway(stack: Stack, count: int, *, stream: bool) -> Leave:
    body = {"model": BASE_MODEL, "messages": [{"role": "user", "content": PROMPT}], **ENDLESS}
    key = stack.new_key(f"leaves-{uuid.uuid4().hex}", tier="dedicated")
    port = int(stack.environment["GATEWAY_PORT"])
    path = "/v1/chat/completions"
    header = f"Authorization: Bearer {key}"
    return by_http(port, path, {**body, "stream": stream}, count, header, stream=stream)


def by_triton_http(stack: Stack, count: int, *, stream: bool) -> Leave:
    path = f"/v2/models/{BASE_MODEL}/generate{'_stream' if stream else ''}"
    sampling = json.dumps(ENDLESS)
    body = {"text_input": PROMPT, "stream": stream, "sampling_parameters": sampling}
    return by_http(int(stack.environment["TRITON_HTTP_PORT"]), path, body, count, stream=stream)


def by_http(port: int, path: str, body: object, count: int, *headers: str, stream: bool) -> Leave:
    """`count` requests, each on a connection that is closed in the end; streams have begun.

    Triton's HTTP server sees that a client has gone when it writes.
    """
    content = json.dumps(body)
    head = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    head.append(f"Content-Length: {len(content)}")
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    for connection in connections:
        connection.sendall(("\r\n".join(head) + "\r\n\r\n" + content).encode())
    for connection in connections if stream else ():
        assert connection.recv(1)

    def leave() -> None:
        for connection in connections:
            connection.close()

    return leave


def by_triton_grpc(stack: Stack, count: int, *, stream: bool) -> Leave:
    url = f"127.0.0.1:{stack.environment['TRITON_GRPC_PORT']}"
    # A connection each: one with another's arguments would be shared.
    clients = [
        grpcclient.InferenceServerClient(url, channel_args=[("client", str(number))])
        for number in range(count)
    ]
    for client in clients:
        client.start_stream(lambda *_: None)
        client.async_stream_infer(BASE_MODEL, tensors(stream=stream))

    def leave() -> None:
        with ThreadPoolExecutor(count) as threads:
            list(threads.map(lambda client: client.stop_stream(cancel_requests=True), clients))
        for client in clients:
            client.close()

    return leave


def tensors(*, stream: bool) -> list[Any]:
    values = {
        "text_input": np.array([PROMPT.encode()], dtype=np.object_),
        "sampling_parameters": np.array([json.dumps(ENDLESS).encode()], dtype=np.object_),
        "stream": np.array([stream]),
    }
    made = []
    for name, value in values.items():
        made.append(grpcclient.InferInput(name, [1], "BOOL" if value.dtype == bool else "BYTES"))
        made[-1].set_data_from_numpy(value)
    return made


def seconds_until(stack: Stack, count: int, since: float) -> float:
    """From a moment until the engine has only so many requests."""
    while in_flight(stack) > count:
        assert time.monotonic() - since < 30
        time.sleep(STEP_S)
    return time.monotonic() - since


@pytest.mark.parametrize("count", [1, 32])
@pytest.mark.parametrize(
    ("come", "stream"),
    [
        (by_gateway, True),
        (by_gateway, False),
        # Not its answers in one piece: Triton does not see that their clients leave.
        (by_triton_http, True),
        (by_triton_grpc, True),
        (by_triton_grpc, False),
    ],
)
def test_clients_that_leave_end_their_requests(
    stack: Stack,
    come: Come,
    stream: bool,  # noqa: FBT001
    count: int,
) -> None:
    leave = come(stack, count, stream=stream)
    wait_for(lambda: in_flight(stack) == count, "the requests")
    # Past the prompts, into the answers.
    time.sleep(1)
    leave()
    took_s = seconds_until(stack, 0, time.monotonic())
    print(f"\n{come.__name__} stream={stream} count={count}: {took_s * 1000:.0f} ms")
    assert took_s < SOON_S


@pytest.mark.parametrize("come", [by_gateway, by_triton_grpc])
def test_a_client_that_leaves_while_its_request_waits_for_its_turn_ends_it(
    stack: Stack, come: Come
) -> None:
    leave_others = by_triton_grpc(stack, MAX_NUM_SEQS, stream=False)
    wait_for(lambda: in_flight(stack) == MAX_NUM_SEQS, "a full engine")
    leave = come(stack, 1, stream=False)
    wait_for(lambda: in_flight(stack) == MAX_NUM_SEQS + 1, "the one that waits")
    leave()
    took_s = seconds_until(stack, MAX_NUM_SEQS, time.monotonic())
    print(f"\n{come.__name__} queued: {took_s * 1000:.0f} ms")
    leave_others()
    assert took_s < SOON_S
    seconds_until(stack, 0, time.monotonic())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_gateway_that_ends_ends_its_requests(stack: Stack, number: signal.Signals) -> None:
    leave = by_gateway(stack, 8, stream=True)
    wait_for(lambda: in_flight(stack) == 8, "the requests")
    (gateway,) = stack.processes("-m gateway")
    began = time.monotonic()
    os.kill(gateway.pid, number)
    if number is signal.SIGTERM:
        # It lets what runs go on for a while, for those who wait for an answer.
        psutil.wait_procs([gateway], timeout=40)
        began = time.monotonic()
    took_s = seconds_until(stack, 0, began)
    print(f"\n{number.name}: {took_s * 1000:.0f} ms")
    leave()
    assert took_s < SOON_S
    wait_for(lambda: is_ready(stack), "the new gateway")
