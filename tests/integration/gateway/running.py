"""A gateway on a real server over a real registry, and clients for it."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import numpy as np
import uvicorn
from openai import OpenAI
from pydantic import SecretStr
from safetensors.numpy import save

from adapter_sync.record import Adapter, AdapterStatus, BaseModel, Tenant
from adapter_sync.registry import Registry
from adapter_sync.settings import Settings
from adapter_sync.tiers import load_tiers
from gateway.app import create_app
from gateway.limits import Limits
from tests.integration.gateway.conformance import Conforming

BASE_MODEL = "tiny"
OTHER_BASE_MODEL = "org/cold"
HIDDEN = 16
ADMIN_KEY = "admin-0123456789abcdef0123456789abcdef"
PATIENCE_S = 60
Prompt: TypeAlias = Callable[[str], str]
FAST_LIMITS = Limits(
    first_response_s=1.5,
    between_responses_s=0.5,
    request_timeout_s=10,
    loading_wait_s=0.5,
    keep_alive_s=0.2,
    body_idle_s=1,
    max_body_bytes=100_000,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A running gateway and the registry it works on."""

    url: str
    registry: Registry
    data_folder: Path
    conforming: Conforming


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A tenant with a key, and its HTTP client."""

    url: str
    tenant: Tenant
    api_key: str
    http: httpx.Client
    registry: Registry

    @property
    def openai(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=self.api_key, max_retries=0)

    def chat(self, prompt: str, **fields: Any) -> httpx.Response:
        body = {"model": BASE_MODEL, "messages": [{"role": "user", "content": prompt}], **fields}
        return self.http.post("/v1/chat/completions", json=body)

    @contextmanager
    def chat_stream(self, prompt: str, **fields: Any) -> Iterator[httpx.Response]:
        messages = [{"role": "user", "content": prompt}]
        body = {"model": BASE_MODEL, "messages": messages, "stream": True, **fields}
        with self.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            yield answer

    def upload(
        self,
        name: str,
        weights: bytes | None = None,
        *,
        prefer: str = "wait=0",
        if_match: str | None = None,
        **fields: str,
    ) -> httpx.Response:
        return self.http.post(
            "/v1/adapters/upload",
            data={"name": name, "base_model": BASE_MODEL, **fields},
            files={"file": ("adapter_model.safetensors", weights or adapter_weights())},
            headers={"prefer": prefer} | ({} if if_match is None else {"if-match": if_match}),
        )

    def replace(self, name: str, seed: int, **options: str) -> httpx.Response:
        """Upload other weights in the place of what is there."""
        return self.upload(name, adapter_weights(seed=seed), replace="true", **options)

    def report(self, adapter_id: str, status: AdapterStatus, reason: str | None = None) -> Adapter:
        """Put the adapter's newest revision into a status, as adapter_sync would."""
        adapter = self.registry.adapter(self.tenant.id, adapter_id)
        self.registry.set_adapter_status(
            adapter.id, adapter.revision.digest, status, error_code=reason, error_message=reason
        )
        return self.registry.adapter(self.tenant.id, adapter.id)

    def upload_as(self, name: str, status: AdapterStatus, reason: str | None = None) -> Adapter:
        """Upload an adapter and put it into a status, as adapter_sync would."""
        uploaded = self.upload(name)
        assert uploaded.status_code == 201, uploaded.text
        return self.report(uploaded.json()["id"], status, reason)


def body_for(path: str, text: str, **fields: Any) -> dict[str, Any]:
    """A request to an endpoint that asks the engine."""
    chat = {"messages": [{"role": "user", "content": text}]}
    own: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": chat,
        "/v1/messages": {**chat, "max_tokens": 5},
        "/v1/messages/count_tokens": chat,
        "/v1/responses": {"input": text},
        "/v1/completions": {"prompt": text},
        "/v1/embeddings": {"input": text},
        "/tokenize": {"prompt": text},
        "/detokenize": {"tokens": [text]},
    }
    return {"model": BASE_MODEL, **own[path], **fields}


def adapter_weights(rank: int = 4, hidden: int = HIDDEN, seed: int = 0) -> bytes:
    """A LoRA adapter, which fits BASE_MODEL unless told otherwise."""
    random = np.random.default_rng(seed)
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    return save(
        {
            f"{prefix}.lora_A.weight": random.normal(size=(rank, hidden)).astype(np.float32),
            f"{prefix}.lora_B.weight": random.normal(size=(hidden, rank)).astype(np.float32),
        }
    )


def base_model(name: str) -> BaseModel:
    return BaseModel(
        name=name,
        max_lora_rank=8,
        max_model_len=128,
        tensor_shapes={"model.layers.0.self_attn.q_proj.weight": (HIDDEN, HIDDEN)},
    )


@contextmanager
def running_gateway(
    folder: Path,
    triton_port: int,
    limits: Limits,
    *,
    admin_key: str | None = ADMIN_KEY,
    tiers_file: Path | None = None,
    registry_url: str | None = None,
) -> Iterator[Gateway]:
    """The gateway on a free port, stopped at the end as SIGTERM would."""
    settings = Settings(
        _env_file=None,  # type: ignore[call-arg]  # pydantic-settings' own argument
        lora_data_dir=folder,
        triton_grpc_port=triton_port,
        lora_admin_key=None if admin_key is None else SecretStr(admin_key),
        lora_tiers_file=tiers_file,
        lora_registry_url=None if registry_url is None else SecretStr(registry_url),
    )
    app = Conforming(create_app(settings, limits))
    config = uvicorn.Config(app, port=0, lifespan="on", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    registry = Registry.open(settings.registry_url, load_tiers(tiers_file))
    try:
        while not server.started:
            assert thread.is_alive(), "the gateway did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Gateway(
            url=f"http://127.0.0.1:{port}",
            registry=registry,
            data_folder=folder,
            conforming=app,
        )
    finally:
        server.should_exit = True
        thread.join()
        registry.close()
    assert app.departures == []


@contextmanager
def client_of(gateway: Gateway, tier: str = "shared") -> Iterator[Client]:
    """A new tenant's client."""
    tenant = gateway.registry.create_tenant(f"t-{uuid.uuid4().hex[:12]}", tier)
    api_key = gateway.registry.create_key(tenant.name)
    headers = {"authorization": f"Bearer {api_key}"}
    with httpx.Client(base_url=gateway.url, headers=headers, timeout=PATIENCE_S) as http:
        yield Client(
            url=gateway.url,
            tenant=tenant,
            api_key=api_key,
            http=http,
            registry=gateway.registry,
        )
