"""Triton's own clients, unchanged, against a base model: NVIDIA's vLLM backend's tensors."""

import asyncio
import json
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as grpcaio
import tritonclient.http as httpclient
import tritonclient.http.aio as httpaio
from tritonclient.utils import InferenceServerException

from tests.stack_process import BASE_MODEL, Stack, example, upload

PROMPT = "The capital of France is"
GREEDY = {"temperature": "0", "max_tokens": "6"}


@pytest.fixture(scope="module")
def lora_id(stack: Stack) -> str:
    """An adapter's, that serves."""
    with stack.api(stack.new_key(f"direct-{uuid.uuid4().hex}")) as api:
        document = upload(api, "legal", example("legal"), wait_s=30).json()
    assert document["status"] == "ready"
    adapter_id: str = document["id"]
    return adapter_id


@pytest.fixture
def grpc_url(stack: Stack) -> str:
    return f"127.0.0.1:{stack.environment['TRITON_GRPC_PORT']}"


@pytest.fixture
def http(stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{stack.triton_url}", timeout=60) as client:
        yield client


def inputs(module: Any, **values: Any) -> list[Any]:
    """One tensor each, as vllm_backend's sample client makes them."""
    return [tensor(module, name, each) for name, each in {"text_input": PROMPT, **values}.items()]


def tensor(module: Any, name: str, value: Any) -> Any:
    if isinstance(value, bool):
        made = module.InferInput(name, [1], "BOOL")
        made.set_data_from_numpy(np.array([value]))
        return made
    text = value if isinstance(value, str) else json.dumps(value)
    made = module.InferInput(name, [1], "BYTES")
    made.set_data_from_numpy(np.array([text.encode()], dtype=np.object_))
    return made


def streamed(url: str, **values: Any) -> list[Any]:
    """Every result of one request over a gRPC stream; the last one may be an error."""
    results: list[Any] = []
    ended = threading.Event()

    def note(result: Any, error: Any) -> None:
        results.append(error or result)
        if error is not None or is_final(result):
            ended.set()

    with grpcclient.InferenceServerClient(url) as client:
        client.start_stream(note)
        client.async_stream_infer(
            BASE_MODEL, inputs(grpcclient, **values), enable_empty_final_response=True
        )
        assert ended.wait(60)
        client.stop_stream()
    return results


def is_final(result: Any) -> bool:
    return bool(result.get_response().parameters["triton_final_response"].bool_param)


def text_of(results: list[Any]) -> str:
    arrays = [each.as_numpy("text_output") for each in results]
    return "".join(array[0].decode() for array in arrays if array is not None)


def test_the_text_is_the_same_by_every_way(stack: Stack, grpc_url: str, http: httpx.Client) -> None:
    generated = http.post(
        f"/v2/models/{BASE_MODEL}/generate",
        json={"text_input": PROMPT, "sampling_parameters": json.dumps(GREEDY)},
    )
    assert generated.status_code == 200, generated.text
    whole: str = generated.json()["text_output"]
    assert whole.startswith(f"{PROMPT} Paris")
    body = {"text_input": PROMPT, "stream": True, "sampling_parameters": json.dumps(GREEDY)}
    events = http.post(f"/v2/models/{BASE_MODEL}/generate_stream", json=body).text
    pieces = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: ")]
    assert PROMPT + "".join(piece["text_output"] for piece in pieces) == whole
    by_grpc = streamed(grpc_url, stream=True, sampling_parameters=GREEDY)
    assert PROMPT + text_of(by_grpc) == whole
    assert len(by_grpc) > 3
    in_one_piece = streamed(grpc_url, sampling_parameters=GREEDY)
    assert text_of(in_one_piece) == whole
    assert asyncio.run(_by_asyncio(grpc_url)) == whole
    assert asyncio.run(_is_ready(stack))


async def _by_asyncio(url: str) -> str:
    async with grpcaio.InferenceServerClient(url) as client:

        async def requests() -> Any:
            yield {
                "model_name": BASE_MODEL,
                "inputs": inputs(grpcaio, stream=True, sampling_parameters=GREEDY),
                "request_id": "7",
            }

        texts = []
        async for result, error in client.stream_infer(requests()):
            assert error is None
            assert result.get_response().id == "7"
            texts.append(result.as_numpy("text_output")[0].decode())
            if is_final(result):
                break
        return PROMPT + "".join(texts)


async def _is_ready(stack: Stack) -> bool:
    async with httpaio.InferenceServerClient(stack.triton_url) as client:
        return bool(await client.is_model_ready(BASE_MODEL))


def test_the_prompt_can_be_left_out_and_more_be_returned(http: httpx.Client) -> None:
    answer = http.post(
        f"/v2/models/{BASE_MODEL}/generate",
        json={
            "text_input": PROMPT,
            "exclude_input_in_output": True,
            "return_finish_reason": True,
            "return_cumulative_logprob": True,
            "return_logprobs": True,
            "return_num_input_tokens": True,
            "return_num_output_tokens": True,
            "sampling_parameters": json.dumps({**GREEDY, "logprobs": 1}),
        },
    ).json()
    assert answer["text_output"].startswith(" Paris")
    assert answer["finish_reason"] == "length"
    assert answer["cumulative_logprob"] < 0
    assert len(json.loads(answer["logprobs"])) == answer["num_output_tokens"] == 6
    assert answer["num_input_tokens"] == 5


def test_the_sum_of_the_logprobs_needs_no_logprobs_asked_for(http: httpx.Client) -> None:
    answer = http.post(
        f"/v2/models/{BASE_MODEL}/generate",
        json={
            "text_input": PROMPT,
            "return_cumulative_logprob": True,
            "return_logprobs": True,
            "sampling_parameters": json.dumps(GREEDY),
        },
    ).json()
    assert answer["cumulative_logprob"] < 0
    assert answer["logprobs"] == "null"


def test_several_choices_are_elements(grpc_url: str) -> None:
    asked = {"n": 3, "temperature": 1, "max_tokens": 3, "seed": 1}
    (result, *_) = streamed(grpc_url, sampling_parameters=asked)
    assert result.as_numpy("text_output").shape == (3,)


@pytest.mark.parametrize("stream", [False, True])
def test_an_adapter_is_asked_for_by_its_id(grpc_url: str, lora_id: str, stream: bool) -> None:  # noqa: FBT001
    base = text_of(streamed(grpc_url, stream=stream, sampling_parameters=GREEDY))
    asked = {**GREEDY, "lora_name": lora_id}
    assert text_of(streamed(grpc_url, stream=stream, sampling_parameters=asked)) != base


def test_the_companion_tells_what_may_be_asked_for(stack: Stack, lora_id: str) -> None:
    client = httpclient.InferenceServerClient(stack.triton_url)
    document = json.loads(client.infer(f"{BASE_MODEL}-adapters", []).as_numpy("status")[0])
    (told,) = (each for each in document["adapters"] if each["id"] == lora_id)
    assert told["name"] == f"{BASE_MODEL}:legal"
    assert told["state"] == "loaded"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sampling_parameters": {"lora_name": "nobody's"}}, "There is no adapter"),
        ({"sampling_parameters": {"temperature": -1}}, "temperature"),
        ({"sampling_parameters": {"temprature": 1}}, "temprature"),
        ({"sampling_parameters": {"n": 10**9}}, "n must be at most"),
        ({"openai_request": "{}"}, "and no openai_request"),
        ({"sampling_parameters": "{"}, "not JSON"),
        ({"image": "aGVsbG8="}, "text only"),
        ({"text_input": "x " * 4000}, "maximum context length"),
    ],
)
def test_what_is_refused_has_a_reason(
    http: httpx.Client, grpc_url: str, values: dict[str, Any], words: str
) -> None:
    body = {"text_input": PROMPT, **values}
    asked = body.get("sampling_parameters")
    if isinstance(asked, dict):
        body["sampling_parameters"] = json.dumps(asked)
    answer = http.post(f"/v2/models/{BASE_MODEL}/generate", json=body)
    # Triton's HTTP endpoint says 400 whatever the error's code is.
    assert answer.status_code == 400
    assert words in answer.text
    assert "adp_" not in answer.text
    (error,) = streamed(grpc_url, **values)
    assert isinstance(error, InferenceServerException)
    assert words in str(error)
