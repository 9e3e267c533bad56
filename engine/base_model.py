"""The base model inside Triton's Python backend.

Triton's calls are passed on to an event loop in a thread of its own, where the engine lives.
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/python_backend/README.html
"""

import asyncio
import json
import locale
import logging
import os
import threading
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import triton_python_backend_utils as pb_utils

from adapter_sync.repetitions import OnceAMinute
from engine.channels import Channels, Message
from engine.engine_arguments import read_admission, read_engine_arguments, read_max_step_s
from engine.handover import socket_path
from engine.native_request import INPUTS
from engine.responses import NativeResponse, ResponseSender

if TYPE_CHECKING:
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from engine.base_engine import BaseEngine

Result = TypeVar("Result")

DEFAULT_MODELS_DIR = ".runtime/models"


class TritonPythonModel:
    """What Triton's stub calls."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Start the engine and its adapters; Triton reports READY when this returns."""
        _use_utf8()
        _tell_repeated_failures_once()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()
        self._responses = ResponseSender()
        model_folder = Path(args["model_repository"]).resolve()
        version_folder = model_folder / args["model_version"]
        self._engine = self._run(self.start_engine(model_folder, version_folder)).result()
        self._channels = Channels(self._engine.answer)

    async def start_engine(self, model_folder: Path, version_folder: Path) -> "BaseEngine":
        """The engine and its adapters."""
        # vllm takes seconds to import and needs UTF-8, so not before initialize().
        from engine.base_engine import BaseEngine

        arguments = read_engine_arguments(
            version_folder,
            served_model_name=model_folder.name,
            models_dir=Path(os.environ.get("LORA_MODELS_DIR", DEFAULT_MODELS_DIR)),
        )
        engine = await BaseEngine.start(
            arguments, read_admission(version_folder), max_step_s=read_max_step_s(version_folder)
        )
        socket = socket_path(model_folder.parent, model_folder.name)
        await engine.serve_adapters(model_folder, socket)
        return engine

    def execute(self, requests: Sequence[Any]) -> None:
        """Hand the requests over and return at once: the model is decoupled."""
        for request in requests:
            if (channel := _input(request, "channel")) is not None:
                self._take(request, channel.item())
            elif _input(request, "health") is not None:
                response = self._responses.open_native(request.get_response_sender())
                self._loop.call_soon_threadsafe(self._tell_health, response)
            else:
                self._answer_native(request)

    def _take(self, request: Any, channel: bytes) -> None:
        numbers, raw, cancelled = (
            () if (tensor := _input(request, name)) is None else tensor.tolist()
            for name in ("number", "openai_request", "cancel")
        )
        opening = _input(request, "opening")
        message = Message(
            channel=channel,
            opening=None if opening is None else opening.item(),
            submitted=dict(zip(numbers, raw, strict=True)),
            cancelled=cancelled,
        )
        response = self._responses.open(request.get_response_sender())
        self._loop.call_soon_threadsafe(self._channels.take, message, response)

    def _tell_health(self, response: NativeResponse) -> None:
        """On the engine's loop, which has to turn for it."""
        health = json.dumps(self._engine.health()).encode()
        response.send({"health": np.array([health], dtype=np.object_)}, final=True)

    def _answer_native(self, request: Any) -> None:
        # Without a channel openai_request is a mistake, which is refused as such.
        found = {name: _input(request, name) for name in ("openai_request", *INPUTS)}
        tensors = {name: tensor for name, tensor in found.items() if tensor is not None}
        response = self._responses.open_native(request.get_response_sender())
        answered = self._run(self._engine.answer_native(tensors, request.parameters(), response))
        response.on_cancel(answered.cancel)

    def finalize(self) -> None:
        """End the engine and its processes."""
        self._run(self._engine.stop()).result()
        self._responses.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self, coroutine: Coroutine[Any, Any, Result]) -> "Future[Result]":
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)


def _input(request: Any, name: str) -> "NDArray[Any] | None":
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def _tell_repeated_failures_once() -> None:
    """Where the engine is broken each request has a traceback, of ours and of vLLM's."""
    handlers = [*logging.getLogger().handlers, *logging.getLogger("vllm").handlers]
    for handler in filter(None, [*handlers, logging.lastResort]):
        handler.addFilter(OnceAMinute())


def _use_utf8() -> None:
    """The stub's interpreter is isolated and starts in the C locale, where torch can't be read."""
    locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    os.environ["LC_ALL"] = "C.UTF-8"
