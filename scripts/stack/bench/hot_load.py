"""How long a new adapter takes from its upload's last byte to its first token.

The floor is what can't be left out: copying the file, hashing it, and vLLM's own loading.
"""

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from safetensors.numpy import save_file

from adapter_sync.base_models import read_base_model
from adapter_sync.validation.linear_layers import linear_layers
from stack.bench.client import Load, LoadClient
from stack.bench.figures import HotLoad
from stack.bench.servers import BASE_MODEL, MODEL_JSON, TOKENIZER, Server

LOOK_PERIOD_S = 0.005
BUSY_STREAMS = 8
BUSY_TOKENS = 96
BUSY_BEFORE_S = 2.0
PIECE_BYTES = 1 << 16
FLOAT_BYTES = 4
WITHIN_S = 120
BOUNDARY = "hot-load"
SEED = 2_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A PEFT folder's two files."""

    folder: Path

    @property
    def weights(self) -> Path:
        """The tensors."""
        return self.folder / "adapter_model.safetensors"

    @property
    def config(self) -> Path:
        """PEFT's config."""
        return self.folder / "adapter_config.json"

    @property
    def mb(self) -> float:
        """How large it is."""
        return round(self.weights.stat().st_size / 1e6, 1)


def hot_loads(
    sizes_mb: Sequence[int], ours: Server, vllm: Server, client: LoadClient, folder: Path
) -> Iterator[HotLoad]:
    """One of each size, idle and while eight streams of the base model run."""
    for size_mb in sizes_mb:
        adapter = write_adapter(folder / f"adapter-{size_mb}mb", size_mb)
        for load in ("idle", "busy"):
            with busy(client, ours) if load == "busy" else contextlib.nullcontext():
                stages_s = upload_and_ask(ours, adapter, f"hot-{size_mb}-{load}")
            with busy(client, vllm) if load == "busy" else contextlib.nullcontext():
                floor_s = floor(vllm, adapter, folder / "floor", f"hot-{size_mb}-{load}")
            yield HotLoad(
                mb=adapter.mb,
                load=load,
                stages_s={name: round(value, 3) for name, value in stages_s.items()},
                total_s=round(sum(stages_s.values()), 3),
                floor_s=round(floor_s, 3),
            )


def write_adapter(folder: Path, size_mb: int) -> Adapter:
    """Small random numbers on every linear layer, in float32, of the rank that gives the size."""
    base = read_base_model(MODEL_JSON.parent.parent, models_dir=TOKENIZER.parent)
    layers = linear_layers(base.tensor_shapes)
    rank = max(1, round(size_mb * 1e6 / FLOAT_BYTES / sum(map(sum, layers.values()))))
    numbers = np.random.default_rng(size_mb)
    tensors = {}
    for module, (outputs, inputs) in layers.items():
        for part, shape in (("lora_A", (rank, inputs)), ("lora_B", (outputs, rank))):
            values = 0.001 * numbers.standard_normal(shape, dtype=np.float32)
            tensors[f"base_model.model.{module}.{part}.weight"] = values
    adapter = Adapter(folder=folder)
    folder.mkdir(parents=True)
    save_file(tensors, adapter.weights)
    modules = sorted({module.rpartition(".")[2] for module in layers})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": modules}
    adapter.config.write_text(json.dumps(config), encoding="utf-8")
    return adapter


def upload_and_ask(ours: Server, adapter: Adapter, name: str) -> dict[str, float]:
    """Seconds of each stage, from the moment when the upload's last byte is sent."""
    form = _Form(adapter, name)
    headers = {"Authorization": f"Bearer {ours.target.key}"}
    with httpx.Client(
        base_url=ours.target.base_url, headers=headers, trust_env=False, timeout=WITHIN_S
    ) as api:
        api.get("/v1/models").raise_for_status()  # the connection is there
        content_type = f"multipart/form-data; boundary={BOUNDARY}"
        answer = api.post(
            "/v1/adapters/upload",
            content=iter(form),
            headers={"Content-Type": content_type, "Prefer": "wait=0"},
        ).raise_for_status()
        accepted = time.perf_counter()
        uploaded = answer.json()
        path = f"/v1/adapters/{uploaded['id']}"
        while (state := api.get(path).json())["status"] != "ready":
            if state["status"] == "failed":
                raise RuntimeError(f"{name} did not become ready: {state['error']}")
            time.sleep(LOOK_PERIOD_S)
        ready = time.perf_counter()
        _read_first_token(api, uploaded["model"])
        answered = time.perf_counter()
        api.delete(path).raise_for_status()
    return {
        "receive_and_check": accepted - form.sent_at,
        "load": ready - accepted,
        "first_token": answered - ready,
    }


def floor(vllm: Server, adapter: Adapter, folder: Path, name: str) -> float:
    """Seconds to copy, hash, and have vLLM's own server load the adapter."""
    began = time.perf_counter()
    copy = Adapter(folder=shutil.copytree(adapter.folder, folder / name))
    with copy.weights.open("rb") as file:
        hashlib.file_digest(file, "sha256")
    with httpx.Client(base_url=vllm.target.base_url, trust_env=False, timeout=WITHIN_S) as api:
        loaded = {"lora_name": name, "lora_path": str(copy.folder)}
        api.post("/v1/load_lora_adapter", json=loaded).raise_for_status()
        took_s = time.perf_counter() - began
        api.post("/v1/unload_lora_adapter", json={"lora_name": name}).raise_for_status()
    return took_s


@contextlib.contextmanager
def busy(client: LoadClient, server: Server) -> Iterator[None]:
    """Streams of the base model that begin before the block and go on for its while."""
    load = Load(
        models=[server.base_model],
        streams=BUSY_STREAMS,
        prompts=BUSY_STREAMS,
        input_tokens=16,
        output_tokens=BUSY_TOKENS,
        seed=SEED,
    )
    with ThreadPoolExecutor(max_workers=1) as pool:
        running = pool.submit(client.measure, server.target, load)
        time.sleep(BUSY_BEFORE_S)
        yield
        running.result()


class _Form:
    """The upload's body, piece by piece; `sent_at` is when the last piece had been taken."""

    def __init__(self, adapter: Adapter, name: str) -> None:
        self._adapter = adapter
        self._name = name
        self.sent_at = 0.0

    def __iter__(self) -> Iterator[bytes]:
        yield self._field("name", self._name.encode())
        yield self._field("base_model", BASE_MODEL.encode())
        yield self._field("config", self._adapter.config.read_bytes(), file=True)
        yield self._head("file", file=True)
        with self._adapter.weights.open("rb") as weights:
            while piece := weights.read(PIECE_BYTES):
                yield piece
        yield f"\r\n--{BOUNDARY}--\r\n".encode()
        self.sent_at = time.perf_counter()

    def _field(self, name: str, value: bytes, *, file: bool = False) -> bytes:
        return self._head(name, file=file) + value + b"\r\n"

    def _head(self, name: str, *, file: bool) -> bytes:
        filename = f'; filename="{name}"' if file else ""
        return (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{filename}\r\n\r\n'
        ).encode()


def _read_first_token(api: httpx.Client, model: str) -> None:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 1,
        "stream": True,
    }
    with api.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: "):
                return
