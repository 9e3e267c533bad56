"""The seam speaks the engine's protocol, and every gRPC error is a transient error of ours."""

import json

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor

from adapter_sync.errors import TransientError, TritonRefusedError, TritonUnavailableError
from engine.frames import final_frame, frame, refusal
from engine.token_usage import TokenUsage
from gateway import engine_client
from gateway.engine_client import EngineRequest
from gateway.triton_protocol import (
    Frame,
    document,
    joined,
    opening,
    opening_id,
    read_frames,
    submission,
    submitted_numbers,
    transient_error,
)

UINT32 = st.integers(0, 2**32 - 1)
REQUEST = EngineRequest(
    endpoint="chat.completions",
    lora_name=None,
    served_name="tiny",
    request_id="0" * 32,
    cache_salt="salt",
    tenant="acme",
    weight=2,
    body={"messages": [{"content": "é \ud800"}]},
)


def _rpc_error(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, nothing, nothing, details="why")


def _response(frames: bytes) -> service_pb2.ModelInferResponse:
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="frames", datatype="UINT8", shape=[len(frames)])
    response.raw_output_contents.append(frames)
    return response


def _tensors(message: service_pb2.ModelInferRequest) -> dict[str, bytes]:
    names = [each.name for each in message.inputs]
    return dict(zip(names, message.raw_input_contents, strict=True))


def test_a_request_is_json() -> None:
    assert json.loads(document(REQUEST)) == {
        "endpoint": "chat.completions",
        "lora_name": None,
        "served_name": "tiny",
        "request_id": "0" * 32,
        "cache_salt": "salt",
        "tenant": "acme",
        "weight": 2,
        "body": {"messages": [{"content": "é \ud800"}]},
    }


def test_requests_that_wait_go_as_one_message() -> None:
    message = submission("tiny", "c", {7: b"seven", 8: b"eight"}, cancelled=[3])
    tensors = _tensors(message)
    assert message.model_name == "tiny"
    assert submitted_numbers(message.id) == [7, 8]
    assert deserialize_bytes_tensor(tensors["channel"]).tolist() == [b"c"]
    assert deserialize_bytes_tensor(tensors["openai_request"]).tolist() == [b"seven", b"eight"]
    assert tensors["number"] == b"\7\0\0\0\10\0\0\0"
    assert tensors["cancel"] == b"\3\0\0\0"
    assert [list(each.shape) for each in message.inputs] == [[1], [2], [2], [1]]


def test_an_opening_is_told_its_end() -> None:
    message = opening("tiny", "c", 2)
    tensors = _tensors(message)
    assert list(tensors) == ["channel", "opening"]
    assert tensors["opening"] == b"\2\0\0\0"
    assert message.id == opening_id(2)
    assert message.parameters["triton_enable_empty_final_response"].bool_param


PIECE = st.tuples(
    UINT32,
    st.binary(max_size=40),
    st.none() | st.integers(100, 599),
    st.none() | st.builds(TokenUsage, UINT32, UINT32),
)


@given(st.lists(PIECE))
def test_frames_are_read_as_they_were_made(
    pieces: list[tuple[int, bytes, int | None, TokenUsage | None]],
) -> None:
    made = b"".join(
        frame(number, body, http_status=status, usage=usage)
        for number, body, status, usage in pieces
    )
    read = list(read_frames(_response(made)))
    assert [(each.number, each.payload, each.status) for each in read] == [
        (number, body, status) for number, body, status, _ in pieces
    ]
    told = [
        each.usage and (each.usage.prompt_tokens, each.usage.completion_tokens) for each in read
    ]
    assert told == [usage and tuple(usage) for *_, usage in pieces]
    assert not any(each.is_final or each.is_unknown_channel for each in read)


def test_the_end_and_the_refusal_are_told_apart() -> None:
    end, refused = read_frames(_response(final_frame(1) + refusal(2)))
    assert end == Frame(1, None, None, b"", is_final=True, is_unknown_channel=False)
    assert refused == Frame(2, None, None, b"", is_final=True, is_unknown_channel=True)


@given(st.binary(min_size=1, max_size=40), st.integers(1, 58))
def test_frames_that_are_cut_are_refused(body: bytes, cut: int) -> None:
    made = frame(1, body, http_status=None, usage=None)
    with pytest.raises(TritonRefusedError):
        list(read_frames(_response(made[: -min(cut, len(made) - 1)])))


def test_frames_of_a_request_are_joined_to_one_piece() -> None:
    usages = [engine_client.TokenUsage(prompt_tokens=5, completion_tokens=n) for n in (1, 2)]
    frames = [
        Frame(1, 200, usages[0], b"a", is_final=False, is_unknown_channel=False),
        Frame(1, None, usages[1], b"b", is_final=False, is_unknown_channel=False),
        Frame(1, None, None, b"c", is_final=False, is_unknown_channel=False),
    ]
    piece = joined(frames)
    assert (piece.status, piece.payload, piece.usage) == (200, b"abc", usages[1])


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.name != "OK"])
def test_every_grpc_error_is_transient(code: grpc.StatusCode) -> None:
    error = transient_error(_rpc_error(code))
    assert isinstance(error, TransientError)
    assert str(error) == f"{code.name}: why"


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (grpc.StatusCode.UNAVAILABLE, TritonUnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, TritonUnavailableError),
        (grpc.StatusCode.INVALID_ARGUMENT, TritonRefusedError),
        (grpc.StatusCode.INTERNAL, TritonRefusedError),
    ],
)
def test_no_answer_and_a_refusal_are_told_apart(
    code: grpc.StatusCode, cls: type[TransientError]
) -> None:
    assert type(transient_error(_rpc_error(code))) is cls
