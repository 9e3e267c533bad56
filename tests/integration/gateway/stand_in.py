"""A server that speaks Triton's protocol, for faults that a real one can't be made to show.

What it does is chosen by the last message of each request, so tests share no state.
"""

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

STARTING_BASE_MODEL = "starting"
PATIENCE_S = 60
PROMPT_TOKENS = 7
WORDS = ("The", " capital", " is", " Paris", ".")

Response: TypeAlias = service_pb2.ModelStreamInferResponse
Script = Callable[["Exchange"], Iterator[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A request as the stand-in got it, when its caller went away, and whether that was later."""

    base_model: str
    request: Mapping[str, Any]
    empty_final_wanted: bool
    context: Any
    cancelled: threading.Event
    ended_here: threading.Event
    attempt: int
    """1 for the first request of this prompt."""

    @property
    def stream(self) -> bool:
        return bool(self.request["body"].get("stream"))


class StandIn(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Speaks the part of Triton's protocol that the gateway uses."""

    def __init__(self) -> None:
        self.exchanges: dict[str, Exchange] = {}
        self.attempts: Counter[str] = Counter()
        self._arrived: defaultdict[str, threading.Event] = defaultdict(threading.Event)

    def wait_for(self, prompt: str) -> Exchange:
        """The exchange of the request whose last message ends with this."""
        assert self._arrived[prompt].wait(PATIENCE_S)
        return self.exchanges[prompt]

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002
        return service_pb2.ModelReadyResponse(ready=request.name != STARTING_BASE_MODEL)

    def ModelStreamInfer(self, requests: Any, context: Any) -> Iterator[Response]:  # noqa: N802
        message = next(requests)
        request = json.loads(message.raw_input_contents[0][4:])
        cancelled = threading.Event()
        prompt = prompt_of(request["body"])
        self.attempts[prompt] += 1
        exchange = Exchange(
            base_model=message.model_name,
            request=request,
            empty_final_wanted=message.parameters["triton_enable_empty_final_response"].bool_param,
            context=context,
            cancelled=cancelled,
            ended_here=threading.Event(),
            attempt=self.attempts[prompt],
        )
        context.add_callback(cancelled.set)
        threading.Thread(target=_await_cancel, args=(requests, cancelled), daemon=True).start()
        self.exchanges[prompt] = exchange
        self._arrived[prompt].set()
        yield from SCRIPTS.get(prompt.partition("#")[0], _hello)(exchange)


def _await_cancel(requests: Iterator[Any], cancelled: threading.Event) -> None:
    """The gateway's word on the same stream that an answer is wanted no more."""
    with suppress(grpc.RpcError):
        for message in requests:
            assert [each.name for each in message.inputs] == ["cancel"]
            cancelled.set()


def prompt_of(body: Mapping[str, Any]) -> str:
    """The last of what the client wrote, whatever the endpoint calls it."""
    if "messages" in body:
        body = body["messages"][-1]
    names = ("content", "prompt", "input", "tokens")
    prompt = next((body[name] for name in names if name in body), None)
    return str(prompt[-1] if isinstance(prompt, list) and prompt else prompt)


def response(
    payload: bytes | None = None,
    *,
    status: int | None = None,
    usage: Sequence[int] | None = None,
    final: bool = False,
) -> Any:
    message = Response()
    infer = message.infer_response
    if payload is not None:
        infer.outputs.add(name="openai_response", datatype="BYTES", shape=[1])
        infer.raw_output_contents.append(len(payload).to_bytes(4, "little") + payload)
    if status is not None:
        infer.outputs.add(name="http_status", datatype="INT32", shape=[1])
        infer.raw_output_contents.append(status.to_bytes(4, "little"))
    if usage is not None:
        infer.outputs.add(name="usage", datatype="INT32", shape=[2])
        infer.raw_output_contents.append(b"".join(n.to_bytes(4, "little") for n in usage))
    infer.parameters["triton_final_response"].bool_param = final
    return message


def event(word: str, served_name: str) -> bytes:
    chunk = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": served_name,
        "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}],
    }
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def whole(text: str, request: Mapping[str, Any]) -> bytes:
    """An answer in one piece, in the shape of the endpoint that was asked."""
    message = {"role": "assistant", "content": text}
    answer = {"id": "1", "created": 1, "model": request["served_name"]}
    chat = {"index": 0, "message": message, "finish_reason": "stop"}
    completion = {"index": 0, "text": text, "finish_reason": "stop"}
    shapes: dict[str, dict[str, Any]] = {
        "chat.completions": {**answer, "object": "chat.completion", "choices": [chat]},
        "completions": {**answer, "object": "text_completion", "choices": [completion]},
        "responses": {**answer, "object": "response", "output": [], "status": "completed"},
        "messages": {**answer, "type": "message", "role": "assistant", "content": []},
        "messages.count_tokens": {"input_tokens": 1},
        "embeddings": {**answer, "object": "list", "data": []},
        "tokenize": {"count": 1, "max_model_len": 128, "tokens": [1]},
        "detokenize": {"prompt": text},
    }
    return json.dumps(shapes[request["endpoint"]]).encode()


def _counts(exchange: Exchange) -> Iterator[Response]:
    """As the engine does: the prompt before the first byte, then a token a word."""
    served_name = exchange.request["served_name"]
    yield response(usage=(PROMPT_TOKENS, 0))
    if not exchange.stream:
        used = (PROMPT_TOKENS, len(WORDS))
        yield response(whole("".join(WORDS), exchange.request), status=200, usage=used)
    else:
        for index, word in enumerate(WORDS):
            used = (PROMPT_TOKENS, index + 1)
            yield response(event(word, served_name), status=None if index else 200, usage=used)
        yield response(b"data: [DONE]\n\n")
    yield response(final=True)


def _counts_then(exchange: Exchange, then: Script) -> Iterator[Response]:
    """Three tokens, and then no more of them."""
    served_name = exchange.request["served_name"]
    yield response(usage=(PROMPT_TOKENS, 0))
    yield response(event("The", served_name), status=200, usage=(PROMPT_TOKENS, 3))
    yield from then(exchange)


def _takes_the_prompt(exchange: Exchange) -> Iterator[Response]:
    yield response(usage=(PROMPT_TOKENS, 0))
    yield from _hangs(exchange)


def _hello(exchange: Exchange) -> Iterator[Response]:
    served_name = exchange.request["served_name"]
    if not exchange.stream:
        yield response(whole("".join(WORDS), exchange.request), status=200)
    else:
        for index, word in enumerate(WORDS):
            yield response(event(word, served_name), status=None if index else 200)
        yield response(b"data: [DONE]\n\n")
    yield response(final=True)


def _lingers(exchange: Exchange) -> Iterator[Response]:
    """As Triton does: moments lie between the last bytes, the final response and the end."""
    for message in _hello(exchange):
        if message.infer_response.parameters["triton_final_response"].bool_param:
            time.sleep(0.03)
        yield message
    time.sleep(0.03)
    if exchange.context.is_active():
        exchange.ended_here.set()


def _slow_hello(exchange: Exchange) -> Iterator[Response]:
    time.sleep(0.7)
    yield from _hello(exchange)


def _refuses(exchange: Exchange, *, status: int, code: int | str) -> Iterator[Response]:
    error = {
        "message": f"{exchange.request['lora_name']} at /srv/data/adapters/x is not good",
        "type": "BadRequestError",
        "param": None,
        "code": code,
    }
    yield response(json.dumps({"error": error}).encode(), status=status, final=True)


def _starts_then(exchange: Exchange) -> Iterator[Response]:
    served_name = exchange.request["served_name"]
    payload = event("The", served_name) if exchange.stream else whole("The", exchange.request)
    yield response(payload, status=200)


def _breaks(exchange: Exchange) -> Iterator[Response]:
    yield from _starts_then(exchange)
    yield Response(error_message="the stub in /srv/triton died")


def _aborts(exchange: Exchange) -> Iterator[Response]:
    yield from _starts_then(exchange)
    exchange.context.abort(grpc.StatusCode.INTERNAL, "lost in /srv/triton")


def _fails_midway(exchange: Exchange) -> Iterator[Response]:
    yield from _starts_then(exchange)
    yield from _refuses(exchange, status=500, code=500)


def _hangs(exchange: Exchange) -> Iterator[Response]:
    exchange.cancelled.wait(PATIENCE_S)
    yield from ()


def _hangs_midway(exchange: Exchange) -> Iterator[Response]:
    yield from _starts_then(exchange)
    yield from _hangs(exchange)


def _slow_refusal(exchange: Exchange) -> Iterator[Response]:
    time.sleep(0.7)
    yield from _refuses(exchange, status=400, code=400)


def _replaced(exchange: Exchange, *, times: int) -> Iterator[Response]:
    """The engine lets go of the adapter while the request is on its way."""
    if exchange.attempt > times:
        yield from _hello(exchange)
    else:
        time.sleep(0.7)
        yield from _refuses(exchange, status=404, code="adapter_not_loaded")


def _goes_on(exchange: Exchange) -> Iterator[Response]:
    yield from _starts_then(exchange)
    while not exchange.cancelled.wait(0.02):
        yield response(event(" more", exchange.request["served_name"]))


SCRIPTS: Mapping[str, Script] = {
    "hello": _hello,
    "lingers": _lingers,
    "slow hello": _slow_hello,
    "refused": lambda exchange: _refuses(exchange, status=400, code=400),
    "slow refusal": _slow_refusal,
    "crashed": lambda exchange: _refuses(exchange, status=500, code=500),
    "not loaded": lambda exchange: _refuses(exchange, status=404, code="adapter_not_loaded"),
    "replaced": lambda exchange: _replaced(exchange, times=1),
    "replaced twice": lambda exchange: _replaced(exchange, times=2),
    "always replaced": lambda exchange: _replaced(exchange, times=100),
    "error": lambda _: iter([Response(error_message="unknown model in /srv/triton")]),
    "no status": lambda _: iter([response(b"{}", final=True)]),
    "only final": lambda _: iter([response(final=True)]),
    "breaks": _breaks,
    "aborts": _aborts,
    "ends": _starts_then,
    "fails midway": _fails_midway,
    "hangs": _hangs,
    "hangs midway": _hangs_midway,
    "goes on": _goes_on,
    "counts": _counts,
    "counts and hangs": lambda exchange: _counts_then(exchange, _hangs),
    "counts and breaks": lambda exchange: _counts_then(exchange, _breaks),
    "takes the prompt": _takes_the_prompt,
    "odd usage": lambda _: iter([response(b"{}", status=200, usage=(1,), final=True)]),
}


@contextmanager
def stand_in_server(stand_in: StandIn) -> Iterator[int]:
    """The stand-in on a free port."""
    server = grpc.server(ThreadPoolExecutor(16))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(stand_in, server)
    port: int = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()
