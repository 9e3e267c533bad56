"""A real engine in this process, without Triton, and requests to it as the channel makes them."""

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from adapter_sync.errors import LoraServerError
from adapter_sync.lora_map import (
    LORA_MAP_FILE,
    VERSION_FOLDER,
    LoraMap,
    LoraMapEntry,
    adapter_files_folder,
    companion_name,
    dump_lora_map,
)
from gateway.inference.endpoints import INFERENCE_ENDPOINTS, parse_request

if TYPE_CHECKING:
    from engine.base_engine import BaseEngine
    from engine.responses import Failure

ROOT = Path(__file__).resolve().parents[3]
MODELS = ROOT / ".runtime" / "models"
GENERATION, EMBEDDING = "smollm2-135m-instruct", "all-minilm-l6-v2"
ADAPTERS: Mapping[str, str] = MappingProxyType({"finance": "adp_finance@1", "legal": "adp_legal@1"})
"""The example adapters' identities in the engine."""
NATIVE = "native"
"""In the place of an endpoint: a direct client's tensors."""
SMALL: Mapping[str, Any] = MappingProxyType(
    {
        "dtype": "float32",
        "max_model_len": 512,
        "max_num_seqs": 16,
        # Prompts of some sentences take several steps, and a few long answers fill the cache, so
        # that requests are preempted.
        "max_num_batched_tokens": 64,
        "kv_cache_memory_bytes": 48 << 20,
        "enforce_eager": True,
        "enable_lora": True,
        "max_loras": 2,
        "max_lora_rank": 16,
        "max_cpu_loras": 4,
        "enable_auto_tool_choice": True,
        "tool_call_parser": "hermes",
    }
)
"""An engine that has little room for everything."""
ENCODER: Mapping[str, Any] = MappingProxyType(
    # The memory is bounded, or vLLM wants most of the machine's.
    {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 48 << 20}
)
CANCELLED = 499
_CHECKS = {endpoint.name: endpoint for endpoint in INFERENCE_ENDPOINTS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request: `body` is a client's, or for NATIVE the sampling parameters and the tensors."""

    endpoint: str
    body: Mapping[str, Any]
    lora_name: str | None = None
    cancel_after_s: float | None = None
    tenant: str = "a"

    def dump(self) -> str:
        """As one line of JSON, which `load` reads."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(fields)

    @classmethod
    def load(cls, line: str) -> "Asked":
        """The request of `dump`."""
        return cls(**json.loads(line))


@dataclass(slots=True)
class Answer:
    """Responder of one request, of the channel's kind and of the native kind."""

    status: int | None = None
    body: bytes = b""
    tensors: list[Mapping[str, Any]] = field(default_factory=list)

    def write(self, body: bytes, *, http_status: int | None = None, usage: object = None) -> None:
        del usage
        self.status = self.status or http_status
        self.body += body

    def send(self, tensors: Mapping[str, Any], *, final: bool) -> None:
        del final
        self.status = 200
        self.tensors.append(tensors)

    def fail(self, failure: "Failure", message: str) -> None:
        statuses = {"INVALID_ARG": 400, "NOT_FOUND": 404, "CANCELLED": CANCELLED}
        statuses |= {"UNAVAILABLE": 429, "INTERNAL": 500}
        self.status, self.body = statuses[failure.value], message.encode(errors="replace")


def _without_triton() -> None:
    """Stand in for the module that exists only inside Triton's stub; nothing here calls it."""
    sys.modules.setdefault("triton_python_backend_utils", ModuleType("triton_stand_in"))


def _write_model(repository: Path, base_model: str, settings: Mapping[str, Any]) -> Path:
    folder = repository / base_model
    (folder / VERSION_FOLDER).mkdir(parents=True)
    model = {"model": base_model, **settings}
    (folder / VERSION_FOLDER / "model.json").write_text(json.dumps(model))
    if not settings.get("enable_lora"):
        return folder
    entries = []
    for name, lora_name in ADAPTERS.items():
        files = adapter_files_folder(repository, base_model) / lora_name
        shutil.copytree(ROOT / "examples" / name / "adapter", files)
        entries.append(LoraMapEntry(lora_name=lora_name, folder=lora_name, rank=16, name=name))
    companion = repository / companion_name(base_model) / VERSION_FOLDER
    companion.mkdir(parents=True)
    lora_map = LoraMap(revision=1, adapters=tuple(entries))
    (companion / LORA_MAP_FILE).write_text(dump_lora_map(lora_map))
    return folder


@asynccontextmanager
async def running_engine(
    folder: Path, base_model: str, settings: Mapping[str, Any]
) -> AsyncIterator["BaseEngine"]:
    """An engine with the example adapters, its files in `folder`."""
    _without_triton()
    from engine.base_engine import BaseEngine  # noqa: PLC0415 - vLLM takes seconds to import
    from engine.engine_arguments import (  # noqa: PLC0415
        read_admission,
        read_engine_arguments,
    )

    model_folder = _write_model(folder, base_model, settings)
    version_folder = model_folder / VERSION_FOLDER
    arguments = read_engine_arguments(
        version_folder, served_model_name=base_model, models_dir=MODELS
    )
    engine = await BaseEngine.start(arguments, read_admission(version_folder), max_step_s=60)
    try:
        await engine.serve_adapters(model_folder, folder / "s")
        yield engine
    finally:
        await engine.stop()


async def ask(engine: "BaseEngine", asked: Asked, request_id: str) -> Answer:
    """The answer, when it has come or the request has been cancelled. What the gateway refuses
    never gets to the engine."""
    answer = Answer()
    task = asyncio.create_task(_answer(engine, asked, request_id, answer))
    await asyncio.wait({task}, timeout=asked.cancel_after_s)
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
        if task.cancelled():
            answer.status = answer.status or CANCELLED
            return answer
    task.result()
    return answer


async def _answer(engine: "BaseEngine", asked: Asked, request_id: str, answer: Answer) -> None:
    if asked.endpoint == NATIVE:
        await engine.answer_native(_tensors(asked), "", answer)
        return
    try:
        parsed = parse_request(_CHECKS[asked.endpoint], json.dumps(asked.body).encode())
    except LoraServerError as error:
        answer.write(str(error).encode(errors="replace"), http_status=400)
        return
    request = {
        "endpoint": asked.endpoint,
        "lora_name": asked.lora_name,
        "served_name": "asked",
        "request_id": request_id,
        "cache_salt": asked.tenant,
        "tenant": asked.tenant,
        "weight": 1.0,
        "body": parsed.body,
    }
    await engine.answer(json.dumps(request).encode(), answer)


def _tensors(asked: Asked) -> dict[str, Any]:
    body = dict(asked.body)
    sampling = body.pop("sampling_parameters", {})
    if isinstance(sampling, dict) and asked.lora_name is not None:
        sampling = sampling | {"lora_name": asked.lora_name}
    text = str(body.pop("text_input", "")).encode("utf-8", "surrogatepass")
    flags = {name: np.array([value], dtype=bool) for name, value in body.items()}
    return flags | {
        "text_input": np.array([text], dtype=np.object_),
        "sampling_parameters": np.array([json.dumps(sampling).encode()], dtype=np.object_),
    }
