"""The seam speaks Triton's protocol, and every gRPC error is a transient error of ours."""

import json

import grpc
import pytest
from tritonclient.grpc import service_pb2

from adapter_sync.errors import TransientError, TritonRefusedError, TritonUnavailableError
from gateway.triton import EngineRequest, engine_response, infer_request, transient_error


def _rpc_error(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, nothing, nothing, details="why")


def _response(**outputs: bytes) -> service_pb2.ModelInferResponse:
    response = service_pb2.ModelInferResponse()
    for name, raw in outputs.items():
        response.outputs.add(name=name, datatype="BYTES", shape=[1])
        response.raw_output_contents.append(raw)
    return response


def test_a_request_is_one_element_of_json() -> None:
    request = EngineRequest(
        endpoint="chat.completions",
        lora_name=None,
        served_name="tiny",
        request_id="0" * 32,
        cache_salt="salt",
        tenant="acme",
        weight=2,
        body={"messages": [{"content": "é \ud800"}]},
    )
    message = infer_request("tiny", request)
    (raw,) = message.raw_input_contents
    assert (message.model_name, message.id) == ("tiny", "0" * 32)
    assert int.from_bytes(raw[:4], "little") == len(raw) - 4
    assert json.loads(raw[4:]) == {
        "endpoint": "chat.completions",
        "lora_name": None,
        "served_name": "tiny",
        "request_id": "0" * 32,
        "cache_salt": "salt",
        "tenant": "acme",
        "weight": 2,
        "body": {"messages": [{"content": "é \ud800"}]},
    }
    assert message.parameters["triton_enable_empty_final_response"].bool_param


def test_a_response_is_read_whatever_the_order_of_its_outputs() -> None:
    response = _response(http_status=(404).to_bytes(4, "little"), openai_response=b"\2\0\0\0ab")
    read = engine_response(response)
    assert (read.status, read.payload) == (404, b"ab")


def test_a_response_of_several_elements_is_joined() -> None:
    read = engine_response(_response(openai_response=b"\1\0\0\0a\0\0\0\0\2\0\0\0bc"))
    assert (read.status, read.payload) == (None, b"abc")


def test_a_response_that_is_cut_is_refused() -> None:
    with pytest.raises(TritonRefusedError):
        engine_response(_response(openai_response=b"\5\0\0\0ab"))


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
