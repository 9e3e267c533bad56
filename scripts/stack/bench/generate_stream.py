"""Triton's `generate_stream` as one more backend of `vllm bench serve`, which has none for it.

The same measuring as its OpenAI backends: a time stamp for each event that carries text.
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_generate.md
"""

import json
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import aiohttp
from vllm.benchmarks.lib.endpoint_request_func import (
    RequestFuncInput,
    RequestFuncOutput,
    StreamedResponseHandler,
)

RequestFunction = Callable[..., Any]


def request_function(rendered: Callable[[str], str]) -> RequestFunction:
    """A request function as `ASYNC_REQUEST_FUNCS` holds them.

    `rendered` puts a user's words into the model's chat template, so that the engine gets the
    same prompt from Triton's client as from the OpenAI ones. Its time is not measured.
    """

    async def ask(
        request_func_input: RequestFuncInput, session: aiohttp.ClientSession, pbar: Any = None
    ) -> RequestFuncOutput:
        body = body_of(request_func_input, rendered(request_func_input.prompt))
        output = RequestFuncOutput(prompt_len=request_func_input.prompt_len)
        try:
            await _stream(session, request_func_input.api_url, body, output)
        except (aiohttp.ClientError, ValueError, OSError) as error:
            output.success, output.error = False, repr(error)
        if pbar is not None:
            pbar.update(1)
        return output

    return ask


def body_of(asked: RequestFuncInput, prompt: str) -> dict[str, object]:
    """The JSON of `generate_stream`; the model's name is the URL's unless it is an adapter."""
    sampling = {"max_tokens": asked.output_len, "ignore_eos": asked.ignore_eos}
    sampling |= asked.extra_body or {}
    if f"/models/{asked.model}/" not in asked.api_url:
        sampling["lora_name"] = asked.model
    return {
        "text_input": prompt,
        "stream": True,
        "sampling_parameters": json.dumps(sampling),
        "return_num_output_tokens": True,
    }


async def _stream(
    session: aiohttp.ClientSession, url: str, body: dict[str, object], output: RequestFuncOutput
) -> None:
    output.start_time = latest = time.perf_counter()
    handler = StreamedResponseHandler()
    async with session.post(url, json=body) as response:
        if response.status != HTTPStatus.OK:
            output.error = await response.text()
            return
        async for piece in response.content.iter_any():
            for message in handler.add_chunk(piece):
                event = json.loads(message.removeprefix("data: "))
                if "error" in event:
                    raise ValueError(event["error"])
                now = time.perf_counter()
                if output.ttft:
                    output.itl.append(now - latest)
                else:
                    output.ttft = now - output.start_time
                latest = now
                output.generated_text += event["text_output"]
                output.output_tokens += event["num_output_tokens"]
    output.latency = latest - output.start_time
    output.success = bool(output.ttft)
