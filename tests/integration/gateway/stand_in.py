"""A server that speaks Triton's protocol, for faults that a real one can't be made to show.

What it does is chosen by the last message of each request, so tests share no state.
"""

import json
import queue
import struct
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor

from engine.frames import final_frame, frame, refusal
from engine.token_usage import TokenUsage

STARTING_BASE_MODEL, DEAD_BASE_MODEL = "starting", "dead"
"""One that Triton has not loaded yet, and one whose engine has died."""
PATIENCE_S = 60
IDLE_S = 0.3
"""After which a channel without requests is ended, as the engine does."""
PROMPT_TOKENS = 7
WORDS = ("The", " capital", " is", " Paris", ".")

Response: TypeAlias = service_pb2.ModelStreamInferResponse
# What a script makes its stream do, in the stream's own thread.
Act: TypeAlias = Callable[["Stream", "Exchange"], object]
Script = Callable[["Exchange"], Iterator[Act]]


@dataclass(slots=True, kw_only=True)
class Stream:
    """A gRPC stream, which is a channel: its newest opening, and its requests that run."""

    context: Any
    opening_id: str = ""
    empty_final_wanted: bool = False
    running: "dict[int, Exchange]" = field(default_factory=dict)
    acts: queue.SimpleQueue[Callable[[], object]] = field(default_factory=queue.SimpleQueue)
    responses: list[Response] = field(default_factory=list)
    is_closed: bool = False
    is_broken: bool = False
    ended_here: threading.Event = field(default_factory=threading.Event)

    def send(self, frames: bytes = b"", *, message_id: str | None = None, final: bool) -> None:
        response = Response()
        infer = response.infer_response
        infer.id = self.opening_id if message_id is None else message_id
        infer.parameters["triton_final_response"].bool_param = final
        if frames:
            infer.outputs.add(name="frames", datatype="UINT8", shape=[len(frames)])
            infer.raw_output_contents.append(frames)
        self.responses.append(response)

    def send_health(self, *, alive: bool) -> None:
        """Answer as a base model does, and end the stream."""
        told = json.dumps({"alive": alive, "reason": None, "proof_age_s": 0.5}).encode()
        response = Response()
        infer = response.infer_response
        infer.outputs.add(name="health", datatype="BYTES", shape=[1])
        infer.raw_output_contents.append(struct.pack("<I", len(told)) + told)
        self.responses.append(response)
        self.is_closed = True

    def send_error(self, message: str, *, message_id: str) -> None:
        response = Response(error_message=message)
        response.infer_response.id = message_id
        self.responses.append(response)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A request as the stand-in got it, and whether its answer is wanted no more."""

    base_model: str
    request: Mapping[str, Any]
    number: int
    message_id: str
    stream_of: Stream
    cancelled: threading.Event
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
        stream = Stream(context=context)
        context.add_callback(lambda: _cancel_all(stream))
        no_more = threading.Event()
        threading.Thread(target=self._read, args=(requests, stream, no_more), daemon=True).start()
        while context.is_active() and not (
            stream.is_broken or (stream.is_closed and no_more.is_set())
        ):
            try:
                stream.acts.get(timeout=IDLE_S if not stream.is_closed else 0.01)()
            except queue.Empty:
                if stream.opening_id and not stream.running and not stream.is_closed:
                    stream.send(final=True)
                    stream.is_closed = True
            yield from stream.responses
            stream.responses.clear()
        # As Triton does: moments lie between the final response and the end.
        time.sleep(0.03)
        if context.is_active():
            stream.ended_here.set()

    def _read(self, requests: Iterator[Any], stream: Stream, no_more: threading.Event) -> None:
        with suppress(grpc.RpcError):
            for message in requests:
                stream.acts.put(partial(self._take, message, stream))
        stream.acts.put(no_more.set)

    def _take(self, message: Any, stream: Stream) -> None:
        raw = dict(
            zip((each.name for each in message.inputs), message.raw_input_contents, strict=True)
        )
        if "health" in raw:
            stream.send_health(alive=message.model_name != DEAD_BASE_MODEL)
            return
        for number in _numbers(raw.get("cancel", b"")):
            if (exchange := stream.running.get(number)) is not None:
                exchange.cancelled.set()
        if "opening" in raw:
            before, stream.opening_id = stream.opening_id, message.id
            wanted = message.parameters["triton_enable_empty_final_response"].bool_param
            stream.empty_final_wanted = wanted
            if before:
                stream.send(message_id=before, final=True)
        documents = deserialize_bytes_tensor(raw.get("openai_request", b"")).tolist()
        for number, document in zip(_numbers(raw.get("number", b"")), documents, strict=True):
            self._begin(message, number, json.loads(document), stream)

    def _begin(self, message: Any, number: int, request: Any, stream: Stream) -> None:
        prompt = prompt_of(request["body"])
        self.attempts[prompt] += 1
        exchange = Exchange(
            base_model=message.model_name,
            request=request,
            number=number,
            message_id=message.id,
            stream_of=stream,
            cancelled=threading.Event(),
            attempt=self.attempts[prompt],
        )
        stream.running[number] = exchange
        if stream.is_closed:
            self.attempts[prompt] -= 1
            _refuse_channel(stream, exchange)
            return
        self.exchanges[prompt] = exchange
        self._arrived[prompt].set()
        threading.Thread(target=_run, args=(exchange,), daemon=True).start()


def _run(exchange: Exchange) -> None:
    script = SCRIPTS.get(prompt_of(exchange.request["body"]).partition("#")[0], _hello)
    stream = exchange.stream_of
    for act in script(exchange):
        stream.acts.put(lambda act=act: act(stream, exchange))  # type: ignore[misc]
    if exchange.cancelled.is_set():
        stream.acts.put(lambda: _end(stream, exchange))


def _numbers(raw: bytes) -> list[int]:
    numbers: list[int] = np.frombuffer(raw, dtype=np.uint32).tolist()
    return numbers


def _cancel_all(stream: Stream) -> None:
    for exchange in list(stream.running.values()):
        exchange.cancelled.set()


def prompt_of(body: Mapping[str, Any]) -> str:
    """The last of what the client wrote, whatever the endpoint calls it."""
    if "messages" in body:
        body = body["messages"][-1]
    names = ("content", "prompt", "input", "tokens")
    prompt = next((body[name] for name in names if name in body), None)
    return str(prompt[-1] if isinstance(prompt, list) and prompt else prompt)


def response(
    payload: bytes = b"",
    *,
    status: int | None = None,
    usage: tuple[int, int] | None = None,
    final: bool = False,
) -> Act:
    told = None if usage is None else TokenUsage(*usage)

    def act(stream: Stream, exchange: Exchange) -> None:
        if payload or told is not None:
            framed = frame(exchange.number, payload, http_status=status, usage=told)
            stream.send(framed, final=False)
        if final:
            _end(stream, exchange)

    return act


def _end(stream: Stream, exchange: Exchange) -> None:
    stream.running.pop(exchange.number, None)
    stream.send(final_frame(exchange.number), final=False)


def _refuse_channel(stream: Stream, exchange: Exchange) -> None:
    stream.running.pop(exchange.number)
    stream.send(refusal(exchange.number), message_id=exchange.message_id, final=True)


def _error(stream: Stream, exchange: Exchange) -> None:
    stream.running.pop(exchange.number)
    stream.send_error("unknown model in /srv/triton", message_id=exchange.message_id)


def _break(stream: Stream, _: Exchange) -> None:
    stream.send_error("the stub in /srv/triton died", message_id=stream.opening_id)
    stream.is_broken = True


def _abort(stream: Stream, _: Exchange) -> None:
    stream.context.abort(grpc.StatusCode.INTERNAL, "lost in /srv/triton")


def _end_stream(stream: Stream, _: Exchange) -> None:
    stream.is_broken = True


def _cut_frame(stream: Stream, exchange: Exchange) -> None:
    stream.send(frame(exchange.number, b"{}", http_status=200, usage=None)[:-1], final=False)


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


def _counts(exchange: Exchange) -> Iterator[Act]:
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


def _counts_then(exchange: Exchange, then: Script) -> Iterator[Act]:
    """Three tokens, and then no more of them."""
    served_name = exchange.request["served_name"]
    yield response(usage=(PROMPT_TOKENS, 0))
    yield response(event("The", served_name), status=200, usage=(PROMPT_TOKENS, 3))
    yield from then(exchange)


def _takes_the_prompt(exchange: Exchange) -> Iterator[Act]:
    yield response(usage=(PROMPT_TOKENS, 0))
    yield from _hangs(exchange)


def _hello(exchange: Exchange) -> Iterator[Act]:
    served_name = exchange.request["served_name"]
    if not exchange.stream:
        yield response(whole("".join(WORDS), exchange.request), status=200)
    else:
        for index, word in enumerate(WORDS):
            yield response(event(word, served_name), status=None if index else 200)
        yield response(b"data: [DONE]\n\n")
    yield response(final=True)


def _slow_hello(exchange: Exchange) -> Iterator[Act]:
    time.sleep(0.7)
    yield from _hello(exchange)


def _refuses(exchange: Exchange, *, status: int, code: int | str) -> Iterator[Act]:
    error = {
        "message": f"{exchange.request['lora_name']} at /srv/data/adapters/x is not good",
        "type": "BadRequestError",
        "param": None,
        "code": code,
    }
    yield response(json.dumps({"error": error}).encode(), status=status, final=True)


def _starts_then(exchange: Exchange) -> Iterator[Act]:
    served_name = exchange.request["served_name"]
    payload = event("The", served_name) if exchange.stream else whole("The", exchange.request)
    yield response(payload, status=200)


def _breaks(exchange: Exchange) -> Iterator[Act]:
    yield from _starts_then(exchange)
    yield _break


def _aborts(exchange: Exchange) -> Iterator[Act]:
    yield from _starts_then(exchange)
    yield _abort


def _ends(exchange: Exchange) -> Iterator[Act]:
    yield from _starts_then(exchange)
    yield _end_stream


def _fails_midway(exchange: Exchange) -> Iterator[Act]:
    yield from _starts_then(exchange)
    yield from _refuses(exchange, status=500, code=500)


def _hangs(exchange: Exchange) -> Iterator[Act]:
    exchange.cancelled.wait(PATIENCE_S)
    yield from ()


def _hangs_midway(exchange: Exchange) -> Iterator[Act]:
    yield from _starts_then(exchange)
    yield from _hangs(exchange)


def _slow_refusal(exchange: Exchange) -> Iterator[Act]:
    time.sleep(0.7)
    yield from _refuses(exchange, status=400, code=400)


def _replaced(exchange: Exchange, *, times: int) -> Iterator[Act]:
    """The engine lets go of the adapter while the request is on its way."""
    if exchange.attempt > times:
        yield from _hello(exchange)
    else:
        time.sleep(0.7)
        yield from _refuses(exchange, status=404, code="adapter_not_loaded")


def _reloaded(exchange: Exchange, *, times: int) -> Iterator[Act]:
    """Another instance of the base model has taken over, which does not know the channel."""
    if exchange.attempt > times:
        yield from _hello(exchange)
    else:
        yield _refuse_channel


def _goes_on(exchange: Exchange) -> Iterator[Act]:
    yield from _starts_then(exchange)
    while not exchange.cancelled.wait(0.02):
        yield response(event(" more", exchange.request["served_name"]))


SCRIPTS: Mapping[str, Script] = {
    "hello": _hello,
    "slow hello": _slow_hello,
    "refused": lambda exchange: _refuses(exchange, status=400, code=400),
    "slow refusal": _slow_refusal,
    "crashed": lambda exchange: _refuses(exchange, status=500, code=500),
    "not loaded": lambda exchange: _refuses(exchange, status=404, code="adapter_not_loaded"),
    "replaced": lambda exchange: _replaced(exchange, times=1),
    "replaced twice": lambda exchange: _replaced(exchange, times=2),
    "always replaced": lambda exchange: _replaced(exchange, times=100),
    "error": lambda _: iter([_error]),
    "no status": lambda _: iter([response(b"{}", final=True)]),
    "only final": lambda _: iter([response(final=True)]),
    "breaks": _breaks,
    "aborts": _aborts,
    "ends": _ends,
    "fails midway": _fails_midway,
    "hangs": _hangs,
    "hangs midway": _hangs_midway,
    "goes on": _goes_on,
    "counts": _counts,
    "counts and hangs": lambda exchange: _counts_then(exchange, _hangs),
    "counts and breaks": lambda exchange: _counts_then(exchange, _breaks),
    "takes the prompt": _takes_the_prompt,
    "cut": lambda _: iter([_cut_frame]),
    "reloaded": lambda exchange: _reloaded(exchange, times=1),
    "always reloaded": lambda exchange: _reloaded(exchange, times=100),
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
