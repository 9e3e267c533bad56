"""The messages between the gateway and a base model. docs/triton.md describes them.

The frames are made by engine/frames.py.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import NamedTuple

import grpc
from tritonclient.grpc import service_pb2

from adapter_sync.errors import TransientError, TritonRefusedError, TritonUnavailableError
from gateway.engine_client import EngineRequest, EngineResponse, TokenUsage

_LENGTH = struct.Struct("<I")
_HEADER = struct.Struct("<IBHIII")
_FINAL, _HAS_USAGE, _UNKNOWN_CHANNEL = 1, 2, 4
_UNAVAILABLE = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)


class Frame(NamedTuple):
    """A piece of the answer to the request of that number on its channel."""

    number: int
    status: int | None
    usage: TokenUsage | None
    payload: bytes
    is_final: bool
    is_unknown_channel: bool


def document(request: EngineRequest) -> bytes:
    """The engine's request as JSON."""
    # asdict would copy the body, level by level.
    values = {field.name: getattr(request, field.name) for field in fields(request)}
    return json.dumps(values).encode("ascii")


def opening(base_model: str, channel: str, number: int) -> service_pb2.ModelInferRequest:
    """The request whose response carries the answers to all others of the channel.

    The first opens the channel; a later one takes over from the one before.
    """
    message = _message(base_model, channel, opening_id(number))
    _add(message, "opening", "UINT32", [_LENGTH.pack(number)])
    # Without it the end of the response, which is empty, would not be told.
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    return message


def opening_id(number: int) -> str:
    """Triton's id of an opening and of what answers it."""
    return f"channel {number}"


def submission(
    base_model: str, channel: str, submitted: Mapping[int, bytes], cancelled: Sequence[int]
) -> service_pb2.ModelInferRequest:
    """Begin requests, each a document under its number, and end others by their numbers."""
    message = _message(base_model, channel, ",".join(map(str, submitted)))
    if submitted:
        _add(message, "number", "UINT32", map(_LENGTH.pack, submitted))
        _add(message, "openai_request", "BYTES", map(_element, submitted.values()))
    if cancelled:
        _add(message, "cancel", "UINT32", map(_LENGTH.pack, cancelled))
    return message


def submitted_numbers(message_id: str) -> list[int]:
    """Which requests a message of this id submitted."""
    return [int(number) for number in message_id.split(",") if number]


def read_frames(response: service_pb2.ModelInferResponse) -> Iterator[Frame]:
    """The frames of a response. Raises TritonRefusedError when it isn't what the engine sends."""
    if not response.outputs:
        return
    try:
        (raw,) = response.raw_output_contents
        yield from _frames(raw)
    except (ValueError, struct.error) as error:
        raise TritonRefusedError(f"Triton's response can't be read: {error}") from error


def joined(frames: Sequence[Frame]) -> EngineResponse:
    """Frames of one request as one piece: the status of the first, the newest usage."""
    if len(frames) == 1:
        # The usual case, every token of every stream.
        return EngineResponse(frames[0].status, frames[0].payload, frames[0].usage)
    return EngineResponse(
        status=frames[0].status,
        payload=b"".join([each.payload for each in frames]),
        usage=next((each.usage for each in reversed(frames) if each.usage is not None), None),
    )


def transient_error(error: grpc.RpcError) -> TransientError:
    """What a gRPC error means for the request."""
    message = f"{error.code().name}: {error.details()}"
    if error.code() in _UNAVAILABLE:
        return TritonUnavailableError(message)
    return TritonRefusedError(message)


def _frames(raw: bytes) -> Iterator[Frame]:
    start = 0
    while start < len(raw):
        number, flags, status, prompt, completion, length = _HEADER.unpack_from(raw, start)
        start += _HEADER.size
        if start + length > len(raw):
            raise ValueError(f"a frame ends at byte {start + length} of {len(raw)}")
        usage = None
        if flags & _HAS_USAGE:
            usage = TokenUsage(prompt, completion)
        payload = raw[start : start + length]
        start += length
        final, unknown = bool(flags & _FINAL), bool(flags & _UNKNOWN_CHANNEL)
        yield Frame(number, status or None, usage, payload, final, unknown)


def _message(base_model: str, channel: str, message_id: str) -> service_pb2.ModelInferRequest:
    message = service_pb2.ModelInferRequest(model_name=base_model, id=message_id)
    _add(message, "channel", "BYTES", [_element(channel.encode("ascii"))])
    return message


def _add(
    message: service_pb2.ModelInferRequest, name: str, datatype: str, elements: Iterable[bytes]
) -> None:
    raw = list(elements)
    message.inputs.add(name=name, datatype=datatype, shape=[len(raw)])
    message.raw_input_contents.append(b"".join(raw))


def _element(value: bytes) -> bytes:
    return _LENGTH.pack(len(value)) + value
