"""A Triton model that emits ready tokens at a set rate: an engine that costs next to nothing.

All around it is this project's own: the gateway, Triton and the way between them. It is copied
into a model repository (`ready_tokens/__init__.py`), so it imports nothing of `stack`.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from engine.base_model import TritonPythonModel as BaseModel
from engine.token_usage import TokenUsage

if TYPE_CHECKING:
    from engine.base_engine import BaseEngine, NativeResponder
    from engine.channels import Responder
    from engine.native_request import Tensors

RATE = "ready_tokens_per_s"
"""The key of 1/model.json: how many tokens a second each stream gets."""
TEXT = " ready"
PROMPT_TOKENS = 1


class TritonPythonModel(BaseModel):
    """What Triton's stub calls."""

    async def start_engine(self, model_folder: Path, version_folder: Path) -> "BaseEngine":
        """What stands for the engine: it has those of its methods that are called."""
        settings = json.loads((version_folder / "model.json").read_text(encoding="utf-8"))
        engine = ReadyTokens(model_folder.name, tokens_per_s=settings[RATE])
        return cast("BaseEngine", engine)


class ReadyTokens:
    """As in an engine's steps, every request that is there gets a token at the same moment."""

    def __init__(self, model: str, *, tokens_per_s: float) -> None:
        self._model = model
        self._period_s = 1 / tokens_per_s
        self._step = asyncio.Event()
        self._stepping = asyncio.create_task(self._keep_stepping())

    async def answer(self, raw: bytes, responder: "Responder") -> None:
        """Stream a chat completion."""
        body = json.loads(raw)["body"]
        count = body.get("max_completion_tokens") or body["max_tokens"]
        status: int | None = 200
        token = self._event({"content": TEXT}, None)
        responder.write(b"", usage=TokenUsage(PROMPT_TOKENS, 0))
        async for number in self._steps(count):
            event = token if number > 1 else self._event({"role": "assistant"}, None) + token
            responder.write(event, http_status=status, usage=TokenUsage(PROMPT_TOKENS, number))
            status = None
        responder.write(self._event({}, "length") + self._end(count))

    async def answer_native(
        self, tensors: "Tensors", _parameters: str, responder: "NativeResponder"
    ) -> None:
        """Stream to a direct client."""
        count = json.loads(tensors["sampling_parameters"].item())["max_tokens"]
        answer = {
            "text_output": np.array([TEXT.encode()], dtype=np.object_),
            "num_output_tokens": np.array([1], dtype=np.uint32),
        }
        async for number in self._steps(count):
            responder.send(answer, final=number == count)

    def health(self) -> dict[str, Any]:
        """Tell that there is nothing to die."""
        return {"alive": True, "reason": None, "proof_age_s": 0.0}

    async def stop(self) -> None:
        """End the steps."""
        self._stepping.cancel()
        with suppress(asyncio.CancelledError):
            await self._stepping

    async def _steps(self, count: int) -> AsyncIterator[int]:
        for number in range(1, count + 1):
            await self._step.wait()
            yield number

    async def _keep_stepping(self) -> None:
        while True:
            await asyncio.sleep(self._period_s)
            step, self._step = self._step, asyncio.Event()
            step.set()

    def _event(self, delta: Mapping[str, str], finish_reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._chunk(choices=[choice])

    def _end(self, count: int) -> bytes:
        usage = {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": count,
            "total_tokens": PROMPT_TOKENS + count,
        }
        return self._chunk(choices=[], usage=usage) + b"data: [DONE]\n\n"

    def _chunk(self, **fields: Any) -> bytes:
        chunk = {
            "id": "chatcmpl-ready",
            "object": "chat.completion.chunk",
            "created": 0,
            "model": self._model,
            **fields,
        }
        return b"data: " + json.dumps(chunk).encode() + b"\n\n"
