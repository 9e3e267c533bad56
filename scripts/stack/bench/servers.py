"""The servers that are compared, on the same weights, engine arguments and adapters."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from adapter_sync.registry import Registry
from stack.bench.client import GENERATE_STREAM, Target
from stack.bench.scenarios import ADAPTERS
from stack.child import all_at_once, answers, running
from stack.installation import ROOT, environment_of, free_ports, settings_below
from stack.vllm_server import running_vllm

BASE_MODEL = "smollm2-135m-instruct"
MODEL_JSON = ROOT / "model_repository" / BASE_MODEL / "1" / "model.json"
TOKENIZER = ROOT / ".runtime" / "models" / BASE_MODEL
EXAMPLES = ("finance", "healthcare", "legal")
LITELLM = ROOT / ".runtime" / "litellm" / "bin" / "litellm"
CHAT, CHAT_PATH = "openai-chat", "/v1/chat/completions"
UPLOAD_WITHIN_S = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One that is measured. `adapters` are what its clients call them."""

    name: str
    target: Target
    base_model: str
    adapters: Sequence[str]
    roots: Sequence[psutil.Process]

    def models(self, scenario: str) -> Sequence[str]:
        """What requests ask for, in turn."""
        return self.adapters[: ADAPTERS[scenario]] or [self.base_model]


def example(number: int) -> Path:
    """The PEFT folder of the adapter of this number."""
    return ROOT / "examples" / EXAMPLES[number % len(EXAMPLES)] / "adapter"


def adapter_names(scenarios: Sequence[str]) -> list[str]:
    """What all servers call the adapters that these scenarios need."""
    return [f"bench-{number:02}" for number in range(max(ADAPTERS[each] for each in scenarios))]


@contextlib.contextmanager
def running_servers(
    names: Sequence[str], scenarios: Sequence[str], folder: Path
) -> Iterator[dict[str, Server]]:
    """Start the servers, with all adapters loaded; two engines in all. Raises ChildError.

    Those that wait for their turn use no CPU: an idle engine sleeps.
    """
    adapters = adapter_names(scenarios)
    servers: dict[str, Server] = {}
    installation = Installation(folder / "ours")
    engines = {}
    if {"vllm", "litellm"} & set(names):
        engines["vllm"] = running_vllm_peer(folder / "vllm", adapters)
    if {"ours", "triton"} & set(names):
        engines["ours"] = installation.running()
    with all_at_once(engines) as started, contextlib.ExitStack() as stack:
        if vllm := started.get("vllm"):
            servers["vllm"] = vllm
            if "litellm" in names:
                servers["litellm"] = stack.enter_context(running_litellm(folder / "litellm", vllm))
        if "ours" in started:
            ids = [installation.upload(name, example(i)) for i, name in enumerate(adapters)]
            servers["ours"] = installation.server(adapters)
            servers["triton"] = installation.triton(ids)
        yield {name: servers[name] for name in names}


@contextlib.contextmanager
def running_vllm_peer(
    folder: Path, adapters: Sequence[str], *, model_json: Path = MODEL_JSON
) -> Iterator[Server]:
    """VLLM's own server. Raises ChildError."""
    named = {f"{BASE_MODEL}:{name}": example(number) for number, name in enumerate(adapters)}
    with running_vllm(
        folder,
        model_json=model_json,
        adapters=named,
        # For hot_load: adapters by request, and calls into the worker.
        environment={"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_SERVER_DEV_MODE": "1"},
    ) as server:
        yield Server(
            name="vllm",
            target=Target(backend=CHAT, base_url=server.url, endpoint=CHAT_PATH),
            base_model=BASE_MODEL,
            adapters=list(named),
            roots=[server.process],
        )


@contextlib.contextmanager
def running_litellm(folder: Path, behind: Server) -> Iterator[Server]:
    """LiteLLM's proxy, one worker, asking for its key, in front of vLLM's server.

    Its virtual keys would need a database as well; the master key is checked without one.
    Raises ChildError.
    """
    set_up = [str(ROOT / "scripts" / "setup"), *os.environ.get("LORA_SETUP", "").split()]
    subprocess.run([*set_up, "--quiet", "--litellm"], check=True)
    key = f"sk-{secrets.token_hex(16)}"
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / "config.yaml"
    configuration.write_text(json.dumps(litellm_configuration(behind, key)), encoding="utf-8")
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    words = ["--config", str(configuration), "--host", "127.0.0.1", "--port", str(port)]
    with running(
        [str(LITELLM), *words, "--num_workers", "1", "--telemetry", "False"],
        log=folder / "litellm.log",
        # Nothing is fetched at its start.
        environment={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"},
        is_ready=lambda: answers(f"{url}/health/liveliness"),
    ) as process:
        yield Server(
            name="litellm",
            target=Target(backend=CHAT, base_url=url, endpoint=CHAT_PATH, key=key),
            base_model=behind.base_model,
            adapters=behind.adapters,
            roots=[process, *behind.roots],
        )


def litellm_configuration(behind: Server, key: str) -> Mapping[str, object]:
    """LiteLLM's config.yaml (JSON is YAML): https://docs.litellm.ai/docs/proxy/configs."""
    return {
        "model_list": [
            {
                "model_name": model,
                "litellm_params": {
                    "model": f"hosted_vllm/{model}",
                    "api_base": f"{behind.target.base_url}/v1",
                    "api_key": "none",
                },
            }
            for model in (behind.base_model, *behind.adapters)
        ],
        "general_settings": {"master_key": key},
    }


class Installation:
    """The project's server, in a folder and on ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.settings = settings_below(folder)
        self.url = f"http://127.0.0.1:{self.settings.gateway_port}"
        self.log = folder / "serve.log"
        self.key = ""
        self.roots: list[psutil.Process] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[Server]:
        """scripts/serve, ready, with a tenant whose key is kept. Raises ChildError."""
        with self.running_again():
            self.key = self.new_key("bench")
            yield self.server([])

    @contextlib.contextmanager
    def running_again(self) -> Iterator[None]:
        """scripts/serve, ready, with what an earlier one has left. Raises ChildError."""
        settings = self.settings
        environment = {"LORA_HOME": str(ROOT), **environment_of(settings)}
        with running(
            [sys.executable, "-P", "-m", "stack.serve"],
            log=self.log,
            environment=environment,
            is_ready=lambda: answers(f"{self.url}/health/ready"),
        ) as process:
            self.roots = [process]
            yield

    def new_key(self, tenant: str) -> str:
        """A new tenant's key."""
        registry = Registry.open(self.settings.registry_url)
        try:
            # The tier of the highest limits: none of them is to be met.
            registry.create_tenant(tenant, "dedicated")
            return registry.create_key(tenant)
        finally:
            registry.close()

    def api(self, key: str | None = None) -> httpx.Client:
        """The gateway, as the tenant, or with another's key."""
        headers = {"Authorization": f"Bearer {key or self.key}"}
        return httpx.Client(
            base_url=self.url, headers=headers, trust_env=False, timeout=UPLOAD_WITHIN_S
        )

    def upload(self, name: str, folder: Path, *, replace: bool = False) -> str:
        """Upload a PEFT folder and wait until it is ready; its id."""
        with self.api() as api:
            answer = api.post(
                "/v1/adapters/upload",
                data={
                    "name": name,
                    "base_model": BASE_MODEL,
                    "replace": str(replace).lower(),
                },
                files={
                    "config": (folder / "adapter_config.json").read_bytes(),
                    "file": (folder / "adapter_model.safetensors").read_bytes(),
                },
                headers={"Prefer": f"wait={UPLOAD_WITHIN_S // 2}"},
            ).raise_for_status()
        adapter = answer.json()
        if adapter["status"] != "ready":
            raise RuntimeError(f"{name} did not become ready: {answer.text}")
        adapter_id: str = adapter["id"]
        return adapter_id

    def server(self, adapters: Sequence[str]) -> Server:
        """All of it, through the gateway."""
        return Server(
            name="ours",
            target=Target(backend=CHAT, base_url=self.url, endpoint=CHAT_PATH, key=self.key),
            base_model=BASE_MODEL,
            adapters=[f"{BASE_MODEL}:{name}" for name in adapters],
            roots=self.roots,
        )

    def triton(self, adapter_ids: Sequence[str]) -> Server:
        """The same Triton alone, asked by a direct client."""
        return Server(
            name="triton",
            target=Target(
                backend=GENERATE_STREAM,
                base_url=f"http://127.0.0.1:{self.settings.triton_http_port}",
                endpoint=f"/v2/models/{BASE_MODEL}/generate_stream",
            ),
            base_model=BASE_MODEL,
            adapters=adapter_ids,
            roots=self.roots,
        )
